"""Token sequences that begin alike, computed once: tries laid out as rows of one forward pass.

A row holds a trie of token sequences. Each node is one token that sees its ancestors and itself, at the position that
is its depth, so what the model computes at a node is what it computes for the sequence that ends there. Nothing else of
a transformer knows how tokens are laid out, so the result is exact for every model that takes its positions and its
attention mask from outside; `lcalens.llm.efficacy.scoring` checks that a model does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

# What a token costs, in pairs of nodes: measured on models of 135M and 270M parameters, and flat around its best.
_PAIRS_PER_TOKEN = 400

# A batch of so many tokens runs at full speed; it takes no row that is much shorter than its longest.
_FULL_SPEED = 128
_SNUG = 0.95


@dataclass(frozen=True)
class Read:
    """A logit vector that somebody needs: which sequence, which of its tokens it predicts, and at which node it is."""

    sequence: int
    token: int
    node: int


@dataclass(frozen=True, eq=False)
class Row:
    """One trie, ancestors first. What is read comes last, so that a model may compute the last few logits alone.

    Attributes:
        ids: The token at each node.
        depths: The node's position in its sequences.
        ancestors: `ancestors[i, j]`: node i sees node j (its ancestors and itself).
        reads: What is to be read at the nodes.
        tail: How many nodes at the end hold all the reads.
    """

    ids: Int[np.ndarray, " node"]
    depths: Int[np.ndarray, " node"]
    ancestors: Bool[np.ndarray, "node node"]
    reads: tuple[Read, ...]
    tail: int


def pack(sequences: Sequence[Sequence[int]], starts: Sequence[int], *, max_nodes: int, share: bool = True) -> list[Row]:
    """Sequences as rows of tries; within a row every common beginning is held once.

    Sequences are taken in the order of their tokens, which puts common beginnings side by side. A sequence joins the
    row while the tokens it saves outweigh the pairs of nodes that then attend to each other in vain, and the row stays
    within `max_nodes`. The layout depends on the arguments alone.

    Args:
        sequences: Token ids. The last token is only predicted, never computed.
        starts: The first token of each that is to be predicted, at least 1.
        max_nodes: The most nodes in a row of more than one sequence.
        share: With False, a row holds one sequence, or several of which each begins with the one before: the plain
            layout, for models that take no mask from outside.
    """
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    rows, row = [], _Growing()
    for index in order:
        path = sequences[index][:-1]
        common = row.common(path)
        new = len(path) - common
        pays = common * _PAIRS_PER_TOKEN >= new * len(row.ids) and len(row.ids) + new <= max_nodes
        if row.ids and not (pays if share else common == len(row.path)):
            rows.append(row.finish())
            row = _Growing()
        row.add(index, path, starts[index])
    return [*rows, row.finish()] if row.ids else rows


class _Growing:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.path: list[int] = []  # the nodes of the sequence added last
        self.reads: list[Read] = []

    def common(self, path: Sequence[int]) -> int:
        shared = 0
        for node, token in zip(self.path, path, strict=False):
            if self.ids[node] != token:
                break
            shared += 1
        return shared

    def add(self, index: int, path: Sequence[int], start: int) -> None:
        nodes = self.path[: self.common(path)]
        for depth in range(len(nodes), len(path)):
            self.parents.append(nodes[-1] if nodes else -1)
            nodes.append(len(self.ids))
            self.ids.append(path[depth])
            self.depths.append(depth)
        self.path = nodes
        self.reads.extend(Read(index, token, nodes[token - 1]) for token in range(start, len(path) + 1))

    def finish(self) -> Row:
        # What follows a read node goes to the end with it: a model's own causal mask needs ancestors to come first.
        read = {item.node for item in self.reads}
        late: list[bool] = []
        for node, parent in enumerate(self.parents):
            late.append(node in read or (parent >= 0 and late[parent]))
        order = sorted(range(len(self.ids)), key=late.__getitem__)
        place = {node: new for new, node in enumerate(order)}
        seen = np.zeros((len(order), len(order)), dtype=bool)
        for node, parent in enumerate(self.parents):  # parents come before their children
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return Row(
            ids=np.array(self.ids)[order],
            depths=np.array(self.depths)[order],
            ancestors=seen[np.ix_(order, order)],
            reads=tuple(Read(item.sequence, item.token, place[item.node]) for item in self.reads),
            tail=sum(late),
        )


def batches(rows: Sequence[Row], *, max_tokens: int, max_reads: int) -> Iterator[list[Row]]:
    """Rows of like length together, padded size and kept logits bounded; the longest first.

    Args:
        rows: The rows.
        max_tokens: The most tokens in a batch, padding included; one row may be longer.
        max_reads: The most logit vectors kept in a batch; one row may need more.
    """
    batch: list[Row] = []
    tail = 0
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        longest, kept = len(batch[0].ids) if batch else 0, max(tail, row.tail)
        size = (len(batch) + 1) * longest
        wasteful = size - longest >= _FULL_SPEED and len(row.ids) < _SNUG * longest
        if batch and (size > max_tokens or (len(batch) + 1) * kept > max_reads or wasteful):
            yield batch
            batch, kept = [], row.tail
        batch.append(row)
        tail = kept
    if batch:
        yield batch
