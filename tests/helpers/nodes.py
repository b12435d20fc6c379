"""Clusters of two nodes on this machine, as each engine's own tools make them; workers and nodes can be killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from joblib import parallel_config

_TESTS = str(Path(__file__).parents[1])


class RayNodes:
    """Ray's own cluster for tests: a head and another node, each of one processor, with processes of their own."""

    def __init__(self):
        import ray
        from ray.cluster_utils import Cluster

        self.ray = ray
        head = {"num_cpus": 1, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(num_cpus=1)
        here = {"env_vars": {"PYTHONPATH": os.pathsep.join([_TESTS, os.environ.get("PYTHONPATH", "")])}}
        ray.init(address=self.cluster.address, runtime_env=here, log_to_driver=False, logging_level="ERROR")

    @contextmanager
    def connected(self):
        from ray.util.joblib import register_ray

        register_ray()
        with parallel_config(backend="ray"):
            yield

    def kill_node(self):
        self.cluster.remove_node(self.second, allow_graceful=False)

    def mend(self):
        self.second = self.cluster.add_node(num_cpus=1)
        self.cluster.wait_for_nodes()

    def close(self):
        self.ray.shutdown()
        self.cluster.shutdown()


class DaskNodes:
    """A scheduler and two `dask worker`s, each a nanny with one worker, in process groups of their own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.env = os.environ | {"PYTHONPATH": os.pathsep.join([_TESTS, os.environ.get("PYTHONPATH", "")])}
        file = self.folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--scheduler-file", str(file), "--port", "0", "--no-dashboard")
        self.nodes = [self._node(), self._node()]
        self.client = self._client(file)
        self.client.wait_for_workers(2, timeout=60)

    def _start(self, *words):
        log = (self.folder / f"{words[0]}-{time.time()}").open("w")
        command = [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]]
        return subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)

    def _node(self):
        words = ("--scheduler-file", str(self.folder / "scheduler.json"), "--nthreads", "1", "--no-dashboard")
        return self._start("worker", *words, "--local-directory", str(self.folder))

    def _client(self, file):
        from dask.distributed import Client

        for _ in range(300):
            if file.exists():
                break
            time.sleep(0.1)
        return Client(scheduler_file=str(file))

    @contextmanager
    def connected(self):
        with parallel_config(backend="dask"):
            yield

    @property
    def address(self):
        return self.client.scheduler.address.removeprefix("tcp://")

    def kill_node(self):
        os.killpg(self.nodes.pop().pid, signal.SIGKILL)

    def mend(self):
        self.nodes.append(self._node())
        self.client.wait_for_workers(2, timeout=60)

    def close(self):
        self.client.close()
        for process in [*self.nodes, self.scheduler]:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
