"""The rule that tells heads apart, on heads whose kinds are made by hand."""

import numpy as np
import pytest

from lcalens.core.tables import widen
from lcalens.mechanism.kind_rule import KINDS, Effects, counts_table

EXAMPLES, THRESHOLD = 40, 0.05
HEADS = {  # direct, total, looks, and what the mover and the teller that is none write to it; of a hijack of 2
    "mover": (0.6, 0.0, 0.2, 0.0, 0.0, "mover"),
    "teller": (0.6, 0.6, -0.2, 0.0, 0.0, ""),
    "amplifier": (0.0, 0.6, -0.2, 0.4, 0.0, "amplifier"),
    "hears no mover": (0.0, 0.6, 0.2, 0.0, 0.4, ""),
    "hears and carries nothing": (0.0, 0.0, 0.2, 0.4, 0.0, ""),
    "both": (0.6, 0.6, 0.2, 0.4, 0.0, "mover amplifier"),
    "resists directly": (-0.6, 0.0, 0.2, 0.0, 0.0, "counter"),
    "resists in all": (0.0, -0.6, 0.2, 0.0, 0.0, "counter"),
    "below the threshold": (0.06, 0.06, 0.2, 0.06, 0.0, ""),
    "resists below it": (-0.06, -0.06, 0.2, 0.0, 0.0, ""),
}
EXPECTED = {kind: [kind in row[-1].split() for row in HEADS.values()] for kind in KINDS}


def effects(noise, seed=0):
    generator = np.random.default_rng(seed)
    columns = [np.array(column) for column in zip(*(row[:-1] for row in HEADS.values()), strict=True)]

    def around(means):
        return means + generator.normal(0, noise, (EXAMPLES, *means.shape))

    told = np.zeros((len(HEADS), len(HEADS)))
    told[0], told[1] = columns[3], columns[4]
    return Effects(*map(around, columns[:3]), around(told), around(np.array(2.0)))


def test_heads_are_what_they_were_made():
    made = effects(0.01)
    for clusters in (None, np.arange(EXAMPLES) // 4):
        found = made.by_intervals(THRESHOLD, clusters)
        assert {kind: verdicts.tolist() for kind, verdicts in found.items()} == EXPECTED
    means = made.by_means(THRESHOLD, np.ones((2, EXAMPLES)))
    assert {kind: verdicts[1].tolist() for kind, verdicts in means.items()} == EXPECTED


def test_an_interval_that_reaches_over_the_threshold_decides_nothing():
    made = effects(0.01)
    made.direct[:, 0] = 0.2 + 3 * (-1.0) ** np.arange(EXAMPLES)
    assert not made.by_intervals(THRESHOLD, None)["mover"][0]
    assert made.by_means(THRESHOLD, np.ones((1, EXAMPLES)))["mover"][0, 0]


def test_kinds_are_counted_and_chance_finds_none():
    made = effects(0.01)
    table = widen(counts_table(made, made.by_intervals(THRESHOLD, None), THRESHOLD, None, 0)).set_index("kind")
    assert table["count"].to_dict() == {"mover": 2, "amplifier": 2, "counter": 2, "mover and amplifier": 1, "none": 5}
    for end in ("by_means", "by_means_low", "by_means_high"):
        assert table[end].tolist() == table["count"].tolist()
    assert (table["by_chance"].drop("none") < 0.5).all()
    assert table.loc["none", "by_chance"] > len(HEADS) - 1


@pytest.mark.parametrize("clusters", [None, np.zeros(EXAMPLES, dtype=int)])
def test_counts_move_with_the_examples(clusters):
    """Half of the examples say that a head carries, half that it resists: resamples find either."""
    made = effects(0.01)
    made.direct[::2, 0] = -0.6
    table = widen(counts_table(made, made.by_intervals(THRESHOLD, clusters), THRESHOLD, clusters, 0)).set_index("kind")
    assert table.loc["mover", "count"] == 1
    assert (table.loc["mover", "by_means_low"], table.loc["mover", "by_means_high"]) == (1, 2)
