"""Theorem 1's closed form: uniform attention, orthonormal embeddings, W_V a sum over neighbours; in plain PyTorch."""

import torch


def accuracy(m, length, seed, contexts=16000):
    """Accuracy at omega = 1, beta = 1, N = all but y, where a tie of k tokens with y among them counts 1/k."""
    g = torch.Generator().manual_seed(seed)
    v = 2**m
    distance = torch.tensor([[bin(s ^ t).count("1") for t in range(v)] for s in range(v)])
    pi = torch.exp(-distance[0].double())
    pi[0] = 0.0  # y itself is never drawn; multinomial normalises
    e = torch.eye(v, dtype=torch.float64)  # row t is e_t
    w_v = sum(torch.outer(e[t], e[distance[t] == 1].sum(0)) for t in range(v))
    total = 0.0
    for start in range(0, contexts, 1000):
        batch = min(1000, contexts - start)
        y = torch.randint(v, (batch,), generator=g)
        masks = torch.multinomial(pi, batch * length, replacement=True, generator=g).view(batch, length)
        x = masks ^ y[:, None]
        # W_K = W_Q = 0: the attention is 1/L everywhere. L times the logits are whole numbers, so that ties are exact.
        h = torch.zeros(batch, v, dtype=torch.float64)
        for position in range(length):
            h += e[x[:, position]]
        logits = h @ w_v.T @ e.T
        best = logits == logits.amax(-1, keepdim=True)
        total += (best[torch.arange(batch), y] / best.sum(-1)).sum().item()
    return total / contexts


if __name__ == "__main__":
    print({(m, n): accuracy(m, n, seed=0) for m in (2, 4, 6, 8) for n in (8, 16, 32, 64, 128)})
