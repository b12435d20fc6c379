"""A head's memories by hand: Hugging Face's weights and hooks, numpy's lstsq, one context and position at a time."""

from types import SimpleNamespace

import numpy as np
import torch

WIDTH = 16  # of a stand-in's head


def parts(plain, family, layer):
    """A layer's norm and output projection as modules, the final norm, and a layer's W_V and W_O as arrays."""
    if family == "gpt2":
        block, final = plain.transformer.h[layer], plain.transformer.ln_f
        w_v, w_o = block.attn.c_attn.weight[:, 128:], block.attn.c_proj.weight
        return SimpleNamespace(norm=block.ln_1, out=block.attn.c_proj, final=final, w_v=w_v, w_o=w_o, after=None)
    block, final = plain.model.layers[layer], plain.model.norm
    w_v, w_o = block.self_attn.v_proj.weight.T, block.self_attn.o_proj.weight.T
    after = block.post_attention_layernorm if family in ("gemma2", "gemma3") else None
    return SimpleNamespace(
        norm=block.input_layernorm, out=block.self_attn.o_proj, final=final, w_v=w_v, w_o=w_o, after=after
    )


class ByHand:
    """One head of a stand-in, with `map[i, j]`, how much of dimension i it writes for one of dimension j read."""

    def __init__(self, plain, family, head):
        self.plain, self.family, (self.layer, self.head) = plain, family, head
        self.parts = parts(plain, family, self.layer)
        w_v, w_o = (weight.detach().double().numpy() for weight in (self.parts.w_v, self.parts.w_o))
        kv = self.head * (w_v.shape[1] // WIDTH) // 4
        ours = slice(self.head * WIDTH, (self.head + 1) * WIDTH)
        self.map = (w_v[:, kv * WIDTH : (kv + 1) * WIDTH] @ w_o[ours]).T

    def gain(self, norm):
        return norm.weight.detach().double().numpy() + (1 if self.family.startswith("gemma") else 0)

    def direction(self, answer):
        """What raises an answer's logit, in what the head writes."""
        found = self.plain.lm_head.weight[answer].detach().double().numpy() * self.gain(self.parts.final)
        if self.family == "gpt2":  # its norm takes the mean away
            found = found - found.mean()
        return found if self.parts.after is None else found * self.gain(self.parts.after)

    @torch.no_grad()
    def run(self, ids, change=None):
        """What attention reads at every position, where the head looks at the last, and the last position's logits."""
        seen = []
        hooks = [self.parts.norm.register_forward_hook(lambda module, given, found: seen.append(found[0]))]
        if change is not None:

            def write_more(module, given, found):
                found = found.clone()
                found[0, -1] += torch.from_numpy(change).to(found)
                return found

            hooks.append(self.parts.out.register_forward_hook(write_more))
        found = self.plain(input_ids=torch.tensor([list(ids)]), use_cache=False, output_attentions=True)
        for hook in hooks:
            hook.remove()
        looked = found.attentions[self.layer][0, self.head, -1].double().numpy()
        return seen[0].double().numpy(), looked, found.logits[0, -1].double().numpy()


def matrix(kind, own, streams, directions, pairs, scale):
    """A memory of some pairs (cue, answer) as a matrix, matched; `streams` and `directions` are by token."""
    cues = sorted({cue for cue, _ in pairs})
    x = np.array([streams[cue] for cue in cues])
    by_cue = [[answer for cue, answer in pairs if cue == one] for one in cues]
    if kind == "sum":
        found = sum(np.outer(directions[a], streams[c]) for c, a in pairs)
    elif kind == "centred":
        u, v = (np.mean([rows[pair[at]] for pair in pairs], 0) for rows, at in ((directions, 1), (streams, 0)))
        found = sum(np.outer(directions[a] - u, streams[c] - v) for c, a in pairs)
    elif kind == "answers":
        wanted = np.array([np.mean([directions[a] for a in some], 0) for some in by_cue])
        found = np.linalg.lstsq(x, wanted, rcond=1e-5)[0].T
    elif kind == "writes":
        found = np.linalg.lstsq(x, x @ own.T, rcond=1e-5)[0].T
    else:
        return np.zeros_like(own)
    loud = np.linalg.norm(own) if scale == "norm" else np.linalg.norm(x @ own.T)
    return found * loud / (np.linalg.norm(found) if scale == "norm" else np.linalg.norm(x @ found.T))


def scores_of(table, right):
    """For each cue (row) whether the highest is right, wrong ones below right ones, and the right ones' mean rank."""
    first, below, ranks = [], [], []
    means = [sum(row[j] for row in table) / len(table) for j in range(len(table[0]))]
    for row, good in zip(table, right, strict=True):
        values = [value - mean for value, mean in zip(row, means, strict=True)]
        mine = [value for value, is_good in zip(values, good, strict=True) if is_good]
        others = [value for value, is_good in zip(values, good, strict=True) if not is_good]
        first.append(float(max(mine) > max(others, default=-np.inf)))
        below.append(np.mean([(a > b) + (a == b) / 2 for a in mine for b in others]))
        ranks.append(np.mean([1 + sum(value > a for value in values) for a in mine]))
    return first, below, ranks
