/* Contexts of latent concept association, drawn as fast as they can be counted.

   The bits are those of the torch code in sampling.py, draw for draw; a test holds the two together. Row r of a block
   reads the words seed(block), position r * words .. of the splitmix64 stream: word 0 gives the concept (its high m
   bits) and the last token (its low half); every later word gives two tokens, low half first. */

#include <stdint.h>
#include <string.h>

#define GOLDEN 0x9E3779B97F4A7C15ULL
#define CHUNK 64
#define MOST_TOKENS (1 << 14)

static inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

/* One draw of the alias table: 32 bits, of which the high m choose a cell and the rest decide within it. */
static inline uint32_t draw(uint32_t bits, int m, const uint32_t *limit, const uint32_t *alias) {
    uint32_t cell = bits >> (32 - m), rest = bits & ((1u << (32 - m)) - 1);
    const uint32_t other = alias[cell];
    return other ^ ((cell ^ other) & -(uint32_t)(rest < limit[cell])); /* no branch: it could not be predicted */
}

/* counts: (blocks * batch, V); weight[c] is written for a count of c where `weight` is given. */
void lcalens_counts(const uint64_t *seeds, int64_t blocks, int64_t batch, int64_t length, int m,
                    const uint32_t *limit, const uint32_t *alias, const uint32_t *last_limit,
                    const uint32_t *last_alias, const float *weight, float *counts, int64_t *last, int64_t *target) {
    const int64_t V = (int64_t)1 << m, words = 1 + length / 2;
    uint32_t bits[2 * CHUNK], even[MOST_TOKENS], odd[MOST_TOKENS];
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t row = 0; row < batch; row++) {
            const uint64_t base = seeds[block] + (uint64_t)(row * words + 1) * GOLDEN;
            const uint64_t first = mix(base);
            const uint32_t y = (uint32_t)(first >> (64 - m));
            const int64_t place = block * batch + row;
            float *count = counts + place * V;
            memset(even, 0, (size_t)V * sizeof *even);
            memset(odd, 0, (size_t)V * sizeof *odd);
            const uint32_t end = draw((uint32_t)first, m, last_limit, last_alias) ^ y;
            last[place] = end;
            target[place] = y;
            for (int64_t done = 0; done < length - 1; done += 2 * CHUNK) {
                const int64_t left = length - 1 - done, size = left < 2 * CHUNK ? left : 2 * CHUNK;
                for (int64_t i = 0; i < (size + 1) / 2; i++) {
                    const uint64_t word = mix(base + (uint64_t)(done / 2 + i + 1) * GOLDEN);
                    bits[2 * i] = (uint32_t)word;
                    bits[2 * i + 1] = (uint32_t)(word >> 32);
                }
                for (int64_t i = 0; i < size; i++) bits[i] = draw(bits[i], m, limit, alias) ^ y;
                /* Two histograms: a token that repeats would wait for its own last count. */
                for (int64_t i = 0; i + 1 < size; i += 2) {
                    even[bits[i]]++;
                    odd[bits[i + 1]]++;
                }
                if (size % 2) even[bits[size - 1]]++;
            }
            odd[end]++;
            if (weight)
                for (int64_t t = 0; t < V; t++) count[t] = weight[even[t] + odd[t]];
            else
                for (int64_t t = 0; t < V; t++) count[t] = (float)(even[t] + odd[t]);
        }
}
