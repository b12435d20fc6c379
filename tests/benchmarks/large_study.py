"""A study of 10,000 facts, twelve schemes and six counts on a cluster of two nodes: killed once, and gone on with.

    LCALENS_COUNTERFACT=counterfact.json OMP_NUM_THREADS=1 python -m tests.benchmarks.large_study --out out/large

The model is a small one of random weights; what is measured is the machinery: how long workers wait, and what memory
is taken.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

PLACES = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # of lcalens and of helpers
sys.path[:0] = PLACES

COUNTS = (0, 1, 2, 3, 5, 8)


def drive(out, count):
    """The study itself, by workers of the cluster that this machine is in."""
    import ray
    from helpers.elsewhere import timed_part

    import lcalens
    from lcalens.core.engines import workers_of
    from lcalens.llm.efficacy import measure

    model = lcalens.load_model(out / "model")
    facts = lcalens.load_facts(os.environ["LCALENS_COUNTERFACT"])[:count]
    measure.score_part = timed_part
    seen = {"PYTHONPATH": os.pathsep.join(PLACES), "LCALENS_TIMED": str(out / "seconds")}
    ray.init(address="auto", runtime_env={"env_vars": seen}, log_to_driver=False)
    began = time.time()
    with workers_of("ray", 2) as jobs:
        found = lcalens.efficacy(
            model, facts, schemes="all", counts=COUNTS, out=out / "run", n_jobs=jobs, progress=False
        )
    found.save(out / "result")
    cells = found.provenance["cells"]
    (out / "done.json").write_text(json.dumps({"cells": cells, "seconds": time.time() - began, "began": began}))


def watch(process, out, kill_at):
    """Memory of the caller and of the workers, twice a minute; the caller is killed when so many cells are there."""
    began, rows = time.time(), []
    while process.poll() is None:
        time.sleep(5)
        there = len(list((out / "run" / "cells").glob("*.safetensors")))
        sizes = {"caller": [], "worker": []}
        for one in psutil.process_iter(["cmdline", "memory_info"]):
            line = " ".join(one.info["cmdline"] or [])
            which = "caller" if one.pid == process.pid else "worker" if line.startswith("ray::_Worker") else None
            if which:
                sizes[which].append(one.info["memory_info"].rss / 2**20)
        rows.append([time.time() - began, there, max(sizes["caller"], default=0), max(sizes["worker"], default=0)])
        if kill_at and there >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return time.time() - began, np.array(rows)


def told(rows, column):
    """The largest in each quarter of the cells, in MiB."""
    quarters = np.array_split(rows[rows[:, column] > 0], 4)
    return [round(float(quarter[:, column].max())) for quarter in quarters if len(quarter)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--facts", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=3, help="of the model: what a part takes")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    out = asked.out.absolute()
    if asked.drive:
        return drive(out, asked.facts)
    from helpers import standins
    from ray.cluster_utils import Cluster

    out.mkdir(parents=True)
    standins.save_standin(out / "model", "llama", max_position_embeddings=1024, num_hidden_layers=asked.layers)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    command = [sys.executable, "-m", "tests.benchmarks.large_study", "--out", str(out), "--facts", str(asked.facts)]
    cells = 13 * -(-asked.facts // 64)
    env = os.environ | {"RAY_ADDRESS": cluster.address}
    found = {}
    times = out / "seconds"
    times.touch()
    for name, kill_at in (("killed", int(0.4 * cells)), ("resumed", 0)):
        before, start = len(times.read_text().splitlines()), time.time()
        process = subprocess.Popen([*command, "--drive"], env=env)
        wall, rows = watch(process, out, kill_at)
        began, ended = np.loadtxt(times, skiprows=before, ndmin=2).T
        seconds, first = float((ended - began).sum()), float(began.min() - start)
        found[name] = {"wall": wall, "cells": len(began), "cell seconds": seconds, "idle": 1 - seconds / (2 * wall),
                       "until the first part began": first, "idle from then on": 1 - seconds / (2 * (wall - first)),
                       "caller MiB": told(rows, 2), "worker MiB": told(rows, 3),
                       "cells there": int(rows[-1, 1])}  # fmt: skip
        print(name, json.dumps(found[name]), flush=True)
    done = json.loads((out / "done.json").read_text())
    print(
        "resumed:",
        done["cells"],
        "computed twice:",
        found["killed"]["cells"] + found["resumed"]["cells"] - sum(done["cells"].values()),
    )
    (out / "measured.json").write_text(json.dumps(found | {"done": done}, indent=1))
    cluster.shutdown()
    return None


if __name__ == "__main__":
    main()
