"""Singular values of W_E trained on latent concept association (Fig. C.9 to C.12), in plain PyTorch."""

import torch
import torch.nn.functional as F


def ratios(m, d, length, seed, steps=1000):
    """Each singular value of the trained embeddings over the next one; entry k - 1 is the ratio after the k-th."""
    g = torch.Generator().manual_seed(seed)
    v, heads = 2**m, min(d, 32)
    distance = torch.tensor([bin(mask).count("1") for mask in range(v)]).float()
    pi = torch.exp(-distance)  # beta = 1
    pi[0] = 0.0
    pi = pi / pi.sum()
    p = 0.5 * pi + 0.5 / v  # omega = 1/2
    e = torch.randn(v, d, generator=g) / d**0.5  # row t is e_t
    w_k, w_q, w_v = ((torch.rand(rows, d, generator=g) * 2 - 1) / d**0.5 for rows in (heads, heads, d))
    weights = [w.requires_grad_() for w in (e, w_k, w_q, w_v)]
    optimizer = torch.optim.AdamW(weights, lr=0.03, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        y = torch.randint(v, (512,), generator=g)
        masks = torch.multinomial(p, 512 * (length - 1), replacement=True, generator=g).view(512, -1)
        last = torch.multinomial(pi, 512, replacement=True, generator=g)
        u = e[torch.cat([masks, last[:, None]], 1) ^ y[:, None]]
        scores = ((u @ w_k.T) * (u[:, -1:] @ w_q.T)).sum(-1) / heads**0.5
        h = (scores.softmax(-1)[..., None] * u).sum(1)
        optimizer.zero_grad()
        F.cross_entropy(h @ w_v.T @ e.T, y).backward()
        optimizer.step()
    values = torch.linalg.svdvals(e.detach().double())
    return (values[:-1] / values[1:]).tolist()


if __name__ == "__main__":
    for m, d in ((7, 32), (7, 64), (8, 32), (8, 64)):
        for length in (64, 256):
            runs = torch.tensor([ratios(m, d, length, seed) for seed in range(4)])
            after = [f"{ratio:.3f}" for ratio in runs[:, m - 1].tolist()]
            print(f"m = {m}, d = {d}, L = {length}: after the m-th {after}; the largest is after", end=" ")
            print((runs.argmax(1) + 1).tolist(), flush=True)
