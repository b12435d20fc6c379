"""A probe killed with SIGKILL and run again: nothing finished is measured twice, and the page is the same."""

import os
import re
import signal
import subprocess
import sys
import time

COMMAND = [
    sys.executable,
    "-m",
    "probes.toy.value_matrix",
    "quick",
    "--sweep-steps",
    "30",
    "60",
    "90",
    "120",
    "150",
    "180",
]


def page(folder):
    """What the page says, but for how long it took."""
    text = (folder / "quick/value_matrix.md").read_text()
    return re.sub(r"The cells took .*", "", text).replace(str(folder), "OUT")


def test_a_probe_killed_in_its_middle_goes_on_and_ends_the_same(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def start(out):
        command = [*COMMAND, "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    whole = start(tmp_path / "whole")
    assert "0 cells were there, 7 measured now" in whole.communicate(timeout=600)[0]

    cut = tmp_path / "cut"
    killed = start(cut)
    while len(list(cut.glob("cells/*.safetensors"))) < 3 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    there = len(list(cut.glob("cells/*.safetensors")))
    assert 3 <= there < 7
    assert not (cut / "quick").exists()

    told = start(cut).communicate(timeout=600)[0]
    assert f"{there} cells were there, {7 - there} measured now" in told
    assert page(cut) == page(tmp_path / "whole")
