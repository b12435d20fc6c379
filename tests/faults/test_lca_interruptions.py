"""Training killed with SIGKILL at ten random moments and resumed: bit for bit what it is undisturbed.

One process imports everything and forks a child for each life of the training, so that dying costs milliseconds.
"""

import json
import os
import subprocess
import sys

import pytest

# Out: how each life ended (9: killed; 0: it came to the end), then the digests of both trainings.
SCRIPT = """
import hashlib, json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from lcalens import LatentConcepts, TrainConfig, train
import lcalens.lca.world.bayes
from lcalens.core.sources import sources
from lcalens.lca.training.training import Trainer, _stacks

sources(Trainer, _stacks)  # read once in a process, for the keys of all that is kept: longer than a short life
folder, moments = sys.argv[1], random.Random(0)
config = TrainConfig(64, 16, 16, steps=1500, batch_size=256)

def run(out, **options):
    runs = train(LatentConcepts(5), config.grid(lr=(0.02, 0.05)), seeds=range(2), out=out, progress=False, **options)
    digest = hashlib.sha256()
    for one in runs:
        for weight in one.model.parameters():
            digest.update(weight.detach().numpy().tobytes())
        digest.update(json.dumps([one.accuracy, one.bayes, one.history.to_json()]).encode())
    return digest.hexdigest()

def life(out, result, **options):
    child = os.fork()
    if not child:
        with open(result, "w") as file:
            file.write(run(out, **options))
        os._exit(0)
    return child

start = time.monotonic()
os.waitpid(life(None, folder + "/whole"), 0)
length = time.monotonic() - start
lives = []
for _ in range(10):
    child = life(folder + "/out", folder + "/first", checkpoint_seconds=0.02)
    time.sleep(moments.uniform(0.02, 0.2) * length)
    os.kill(child, signal.SIGKILL)
    lives.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
begun = len(os.listdir(folder + "/out/cells"))
os.waitpid(life(folder + "/out", folder + "/resumed"), 0)
print(json.dumps([lives, begun, open(folder + "/whole").read(), open(folder + "/resumed").read()]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_training_killed_at_ten_random_moments_ends_bit_identical(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    lives, begun, whole, resumed = json.loads(done.stdout)
    assert begun
    assert lives.count(-9) >= 3, lives
    assert len(whole) == 64
    assert whole == resumed
