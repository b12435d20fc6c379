"""`doctor` on every stand-in, as the table of docs/doctor.md.

python -m tests.matrix.doctors
"""

import os
import tempfile
import warnings

import torch

import lcalens
from tests.matrix.families import FAMILIES, boot


def row(family: str) -> str:
    """A line of the table: how many are exact, refused and wrong in float32 and bfloat16, and the seconds.

    Args:
        family: One of `FAMILIES`.
    """
    cells, seconds = [], 0.0
    for dtype in (torch.float32, torch.bfloat16):
        try:
            result = lcalens.doctor(boot(family, dtype=dtype), progress=False)
        except lcalens.LcalensError:
            cells.append("not loaded")
            continue
        counts = result.provenance["counts"]
        cells.append(", ".join(str(counts[word]) for word in ("exact", "refused", "wrong")))
        seconds += float(result.values["seconds"].sum())
    return f"| {family} | {cells[0]} | {cells[1]} | {seconds:.1f} |"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["LCALENS_CACHE"] = tempfile.mkdtemp()
    print("| family | float32: exact, refused, wrong | bfloat16 | seconds |\n|---|---|---|---|")
    for family in FAMILIES:
        print(row(family), flush=True)


if __name__ == "__main__":
    main()
