"""All probes: `python -m probes standard`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from probes.harness.run import publish, run_all, told_plainly
from probes.harness.study import Preset

# In the order in which they are begun: the longest first, and what trains the models that others need before these.
Name = Literal[
    "real.hijack_curves",
    "toy.value_swap",
    "toy.embedding_training",
    "toy.value_matrix",
    "toy.attention_selection",
    "toy.capacity",
    "toy.embedding_spectrum",
    "toy.value_subspace",
    "toy.embedding_geometry",
    "toy.toy_hijack",
    "toy.context_length",
    "toy.divergence",
    "toy.latent_bits",
    "theory.theorems",
    "theory.lemmas",
    "theory.lemma6",
    "toy.value_role",
    "real.link",
    "real.related_words",
    "real.hijack_examples",
]


@dataclass(frozen=True, kw_only=True)
class All:
    """Run the probes of the paper's claims, one after the other; what is finished is not done again.

    Attributes:
        preset: `quick` (minutes, no verdicts), `standard` (what is published) or `full`.
        only: Of these probes alone.
        out: Where pages, figures and finished cells go.
        device: Where models run.
        jobs: How many probes run at once, each in a process with its share of the cores.
        publish: Run nothing: copy the standard preset's pages to docs/claims, their verdicts to the README, and the
            curves to the report of the library.
    """

    preset: tyro.conf.Positional[Preset] = "standard"
    only: tuple[Name, ...] = ()
    out: Path = Path("out/paper")
    device: str = "cpu"
    jobs: int = 2
    publish: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: The command line; the process's own by default.
    """
    wanted = tyro.cli(All, args=arguments, prog="python -m probes")

    def run() -> None:
        if wanted.publish:
            publish(wanted.out, Path("docs/claims"), Path("README.md"))
            from probes.harness.published import write
            from probes.real.hijack_curves import RULES

            page = (wanted.out / "standard" / "hijack_curves.md").read_text(encoding="utf-8")
            write(page, {"dont-think": RULES[0].sentence, "negation": RULES[1].sentence})
        else:
            run_all(wanted.only or Name.__args__, wanted.preset, wanted.out, wanted.device, wanted.jobs)

    return told_plainly(run)


if __name__ == "__main__":
    sys.exit(main())
