"""Trains on latent concept association, then swaps W_V for closed forms (Fig. C.2), in plain PyTorch."""

import torch
import torch.nn.functional as F


def forward(x, e, w_k, w_q, w_v):
    """Logits (batch, V) of the last position; row t of e is the embedding e_t."""
    u = e[x]
    scores = ((u @ w_k.T) * (u[:, -1:] @ w_q.T)).sum(-1) / w_k.shape[0] ** 0.5
    h = (scores.softmax(-1)[..., None] * u).sum(1)
    return h @ w_v.T @ e.T


def accuracies(m, length, omega, beta, seed, steps=1000, d=None):
    """Accuracy on the same 16,000 fresh contexts of the trained W_V and of each matrix put in its place; d: V/2."""
    g = torch.Generator().manual_seed(seed)
    v, d = 2**m, 2**m // 2 if d is None else d
    distance = torch.tensor([[bin(s ^ t).count("1") for t in range(v)] for s in range(v)])
    pi = torch.exp(-distance[0] / beta)
    pi[0] = 0.0
    pi = pi / pi.sum()
    p = omega * pi + (1 - omega) / v

    def sample(batch):
        y = torch.randint(v, (batch,), generator=g)
        masks = torch.multinomial(p, batch * (length - 1), replacement=True, generator=g).view(batch, -1)
        last = torch.multinomial(pi, batch, replacement=True, generator=g)
        return torch.cat([masks, last[:, None]], 1) ^ y[:, None], y

    e = torch.randn(v, d, generator=g) / d**0.5
    w_k, w_q, w_v = ((torch.rand(rows, d, generator=g) * 2 - 1) / d**0.5 for rows in (min(d, 32), min(d, 32), d))
    trained = [w.requires_grad_() for w in (e, w_k, w_q, w_v)]
    optimizer = torch.optim.AdamW(trained, lr=0.03, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        x, y = sample(512)
        optimizer.zero_grad()
        F.cross_entropy(forward(x, *trained), y).backward()
        optimizer.step()
    with torch.no_grad():
        pairs = torch.zeros(v, v)
        for t in range(v):  # m distinct tokens other than t
            pairs[t, (t + 1 + torch.randperm(v - 1, generator=g)[:m]) % v] = 1.0
        values = {"trained": w_v, "constructed": e.T @ (distance == 1).float() @ e, "random pairs": e.T @ pairs @ e}
        values |= {"identity": torch.eye(d), "gram": e.T @ e}
        batches = [sample(1000) for _ in range(16)]
        return {
            name: sum((forward(x, e, w_k, w_q, w).argmax(-1) == y).sum().item() for x, y in batches) / 16000
            for name, w in values.items()
        }


if __name__ == "__main__":
    settings = [(m, length, d) for m in (5, 6) for length in (64, 128, 256) for d in (2**m // 4, 2**m // 2, 2**m)]
    print({(m, n, d): [accuracies(m, n, 0.5, 1.0, seed, d=d) for seed in range(5)] for m, n, d in settings})
