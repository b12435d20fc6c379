"""Checksums of what a tensor holds, at memory's speed, wherever it is."""

import torch
import xxhash
from jaxtyping import UInt8
from torch import Tensor

# Odd 64-bit constants without pattern, so that a multiplication loses nothing and spreads every bit.
_GOLDEN = -7046029254386353131
_ODD = (-4658895280553007687, -7723592293110705685, -4417276706812531889)
_MIXED = 1 << 22  # words at a time


@torch.no_grad()
def checksum(tensor: Tensor) -> str:
    """A checksum of a tensor's bytes, at memory's speed: XXH3 on the processor, two mixed sums on other devices.

    Args:
        tensor: Any strided tensor.
    """
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.int_repr()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    flat = plain.contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        return xxhash.xxh3_128_hexdigest(flat.numpy())  # pyright: ignore[reportArgumentType]
    return " ".join(map(str, mixed_sums(flat)))


def mixed_sums(flat: UInt8[Tensor, " byte"]) -> tuple[int, int]:
    """Two sums over 64-bit words, each word mixed and weighted by its place, so that no edit or exchange cancels.

    Args:
        flat: Bytes, on any device.
    """
    missing = -len(flat) % 8
    if missing or flat.storage_offset() % 8:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    words, sums = flat.view(torch.int64), [len(flat) - missing, missing]
    places = torch.arange(min(_MIXED, len(words)), device=flat.device) * _GOLDEN
    places = (places ^ (places >> 29)) * _ODD[0] | 1
    for chunk in words.split(_MIXED):
        # A word's high bits are folded into the low ones first: a weighted sum alone would not see signs exchanged.
        mixed = chunk * _ODD[1]
        mixed = (mixed ^ (mixed >> 32)) * _ODD[2]
        mixed = (mixed ^ (mixed >> 29)) * places[: len(chunk)]
        for which, terms in enumerate((mixed, mixed ^ (mixed >> 31))):
            sums[which] = (sums[which] * _ODD[which] + int(terms.sum())) & (1 << 64) - 1
    return sums[0], sums[1]
