"""Commands killed at fifty random moments each (SIGKILL) and started again: the undisturbed run's files, to the byte.

One process imports everything and forks a child for each life, so that dying costs milliseconds.
"""

import json
import os
import subprocess
import sys

import pytest
from helpers import standins

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")]

MOMENTS = int(os.environ.get("KILLS", "50"))
CITIES, LANDS = list(standins.CAPITALS.values()), list(standins.CAPITALS)
FACTS = [
    {
        "case_id": i, "relation_id": "P36", "prompt": "The capital of {} is", "subject": f"{LANDS[i % 16]} {i}",
        "target_true": CITIES[i % 16], "target_false": CITIES[i % 16 - 3],
    }
    for i in range(60)
]  # fmt: skip
READ = ["--model", "MODEL", "--facts", "FACTS"]
COMMANDS = {
    "hijack": ["hijack", *READ, "--schemes", "dont-think", "neutral", "--counts", "0", "1", "2", "3", "--out", "OUT"],
    "trace": ["trace", *READ, "--control", "other-object", "--out", "OUT"],
    "train": ["0.02", "0.05", "OUT"],
    "probe": ["quick", "--sweep-steps", "30", "60", "90", "--out", "OUT"],
}

# In: a folder, a command, how many moments, its words. Out: the length of the undisturbed run, how each life ended
# (-9: killed), how many cells it left, and which files of the run that went on are not the undisturbed run's.
SCRIPT = """
import hashlib, json, os, random, re, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import lcalens.cli, lcalens.llm.trace, lcalens.llm.efficacy.measure, lcalens.views.text, scipy.stats, matplotlib.pyplot
from lcalens import LatentConcepts, TrainConfig, train
from lcalens.core.sources import sources
from lcalens.lca.training.training import Trainer, _stacks
import probes.toy.value_matrix
from probes.harness.run import main as probe

folder, name, count, words = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
sources(Trainer, _stacks)  # read once in a process, for the keys of all that is kept: longer than a short life
if name in ("hijack", "trace"):
    lcalens.load_model(words[words.index("--model") + 1])

def run(out):
    told = [str(out) if word == "OUT" else word for word in words]
    if name == "train":
        config = TrainConfig(64, 16, 16, steps=400, batch_size=256)
        runs = train(LatentConcepts(5), config.grid(lr=tuple(map(float, told[:-1]))), seeds=range(2), out=out,
                     progress=False, checkpoint_seconds=0.05)
        weights = [weight.detach().numpy().tobytes() for one in runs for weight in one.model.parameters()]
        measured = json.dumps([[one.accuracy, one.bayes, one.history.to_json()] for one in runs])
        (out / "weights").write_bytes(b"".join(weights))
        (out / "measured.json").write_text(measured)
        return 0
    return lcalens.cli.main(told) if name != "probe" else probe("probes.toy.value_matrix", told)

def life(out):
    child = os.fork()
    if not child:
        try:
            silent = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(silent, 1), os.dup2(silent, 2)
            os._exit(run(out))
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(9)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def files(out):
    # but what says when and how long: manifests of studies, and a probe's line on its cells
    found = {}
    for file in sorted(out.rglob("*")):
        if file.is_file() and "studies" not in file.parts and file.suffix != ".part":
            if name == "probe" and file.parent.name == "cells":
                continue  # these tell how long they took
            content = file.read_bytes().replace(str(out).encode(), b"OUT")
            if file.suffix in (".md", ".json"):
                content = re.sub(rb"The cells took .*|\\"(seconds|cells)\\": .*", b"", content)
            if file.suffix == ".html":  # circuitsvis names each drawing at random
                content = re.sub(rb"circuits-vis-[0-9a-f-]+", b"", content)
            found[str(file.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return found

start = time.monotonic()
assert ended(life(folder / "whole")) == 0, (folder / "said").read_text()[-3000:]
length, whole = time.monotonic() - start, files(folder / "whole")
moments, lives, left, wrong = random.Random(0), [], [], []
for at in range(count):
    out = folder / f"cut-{at}"
    child = life(out)
    time.sleep(moments.uniform(0, 1) * length)
    os.kill(child, signal.SIGKILL)
    lives.append(ended(child))
    left.append(len(list(out.rglob("cells/*.safetensors"))))
    status, found = ended(life(out)), files(out)
    wrong += [[at, status, [one for one in whole.keys() | found.keys() if whole.get(one) != found.get(one)]]]
    shutil.rmtree(out)
print(json.dumps([length, lives, left, [one for one in wrong if one[1] or one[2]], sorted(whole)]))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_fifty_random_moments_ends_with_the_same_files(name, tmp_path):
    standins.save_standin(tmp_path / "model", "llama")
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    places = {"MODEL": str(tmp_path / "model"), "FACTS": str(tmp_path / "facts.json")}
    words = [places.get(word, word) for word in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), name, str(MOMENTS), *words],
        capture_output=True, text=True, timeout=3000, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    length, lives, left, wrong, files = json.loads(done.stdout)
    ends = f"{lives.count(-9)} of {MOMENTS} killed, {min(left)} to {max(left)} cells left"
    print(f"{name}: {length:.2f} s undisturbed, {ends}, {len(files)} files compared")
    assert wrong == []
    assert lives.count(-9) >= MOMENTS // 2
    assert set(left) - {0}, "no life left anything to go on with"
