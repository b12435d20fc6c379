"""Accuracy of a last-query attention model trained on latent concept association (Fig. 3a), in plain PyTorch."""

import torch
import torch.nn.functional as F


def world(m, omega, beta):
    """p(mask) of tokens 1..L-1 and pi(mask) of token L; a token is y XOR its mask."""
    distance = torch.tensor([bin(z).count("1") for z in range(2**m)]).float()
    pi = torch.exp(-distance / beta)
    pi[0] = 0.0
    pi = pi / pi.sum()
    return omega * pi + (1 - omega) / 2**m, pi


def sample(batch, length, p, pi, g):
    """Contexts (batch, length), their last token drawn from pi, and the targets y."""
    y = torch.randint(len(p), (batch,), generator=g)
    masks = torch.multinomial(p, batch * (length - 1), replacement=True, generator=g).view(batch, length - 1)
    last = torch.multinomial(pi, batch, replacement=True, generator=g)
    return torch.cat([masks, last[:, None]], 1) ^ y[:, None], y


def forward(x, e, w_k, w_q, w_v):
    """Logits (batch, V) of the last position; row t of e is the embedding e_t."""
    u = e[x]
    scores = ((u @ w_k.T) * (u[:, -1:] @ w_q.T)).sum(-1) / w_k.shape[0] ** 0.5
    h = (scores.softmax(-1)[..., None] * u).sum(1)
    return h @ w_v.T @ e.T


def accuracy(m, length, value, seed, steps=1000):
    """Accuracy on 16,000 fresh contexts; value is 'trained', 'identity' (frozen) or 'random' (frozen)."""
    g = torch.Generator().manual_seed(seed)
    d = 2**m // 2
    p, pi = world(m, 0.5, 1.0)
    e = torch.randn(2**m, d, generator=g) / d**0.5
    w_k, w_q = (torch.rand(2, min(d, 32), d, generator=g) * 2 - 1) / d**0.5
    w_v = torch.eye(d) if value == "identity" else (torch.rand(d, d, generator=g) * 2 - 1) / d**0.5
    w_k, w_q = w_k.clone(), w_q.clone()
    trained = [w.requires_grad_() for w in ([e, w_k, w_q, w_v] if value == "trained" else [e, w_k, w_q])]
    optimizer = torch.optim.AdamW(trained, lr=0.03, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        x, y = sample(512, length, p, pi, g)
        optimizer.zero_grad()
        F.cross_entropy(forward(x, e, w_k, w_q, w_v), y).backward()
        optimizer.step()
    with torch.no_grad():
        batches = [sample(1000, length, p, pi, g) for _ in range(16)]
        return sum((forward(x, e, w_k, w_q, w_v).argmax(-1) == y).sum().item() for x, y in batches) / 16000


if __name__ == "__main__":
    print({(m, v): [accuracy(m, 64, v, seed) for seed in range(5)] for m in (5, 6) for v in ("trained", "identity")})
