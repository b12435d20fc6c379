"""Workers of a Ray cluster, for joblib: with Ray's own backend all results come at the end, and no worker stays."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias

from joblib.parallel import ParallelBackendBase, get_active_backend

from lcalens.core.errors import LcalensError

_PATIENCE = 120  # seconds until a first worker must have started
_Outcome: TypeAlias = tuple[Any, BaseException | None]


class RayWorkers(ParallelBackendBase):
    """A backend of joblib: actors of Ray, which stay for the next call and keep the model that they have loaded.

    Args:
        ray_remote_args: What each actor asks of the cluster, as `ray.remote` takes it, such as `{"num_gpus": 1}`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    uses_threads = False
    supports_sharedmem = False
    _actors: dict[str, list[Any]] = {}  # by cluster and what they ask of it  # noqa: RUF012

    def __init__(self, *, ray_remote_args: dict[str, Any] | None = None, **options: Any):
        super().__init__(**options)
        self._asks = {"num_cpus": 1} | (ray_remote_args or {})
        self._kept: list[Any] = []  # for the next call
        self._starting: dict[Any, Any] = {}
        self._ready: list[Any] = []
        self._busy: list[int] = []  # how many calls wait at each that is ready
        self._answers = ThreadPoolExecutor(1)

    def effective_n_jobs(self, n_jobs: int) -> int:
        """How many workers there can be.

        Args:
            n_jobs: How many are asked for; -1 is one for every processor of the cluster.
        """
        ray = importlib.import_module("ray")
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        room = int(ray.cluster_resources().get("CPU", 1) // self._asks["num_cpus"]) if self._asks["num_cpus"] else 1
        return max(1, room if n_jobs < 0 else min(n_jobs, room))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Start the actors that are not there.

        Args:
            n_jobs: How many are asked for.
            parallel: joblib's own.
        """
        ray = importlib.import_module("ray")
        count = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        head = next((one["NodeID"] for one in ray.nodes() if "node:__internal_head__" in one["Resources"]), "")
        asked = f"{head} {ray.get_runtime_context().get_job_id()} {sorted(self._asks.items())}"
        self._kept = self._actors.setdefault(asked, [])
        made = ray.remote(_Worker).options(**self._asks)
        self._kept.extend(made.remote() for _ in range(count - len(self._kept)))
        self._ready, self._busy = [], []
        # joblib sends the next calls from within a callback, and the thread of Ray's client must not wait for itself.
        self._answers = ThreadPoolExecutor(1, thread_name_prefix="lcalens-ray")
        self._starting = {actor.ready.remote(): actor for actor in self._kept[:count]}
        self._welcome(_PATIENCE)
        if not self._ready:
            self.abort_everything(ensure_ready=False)
            raise LcalensError(
                f"n_jobs: none of {count} workers has started on the Ray cluster in {_PATIENCE} s; see `ray status` "
                "for what its nodes have free."
            )
        return count

    def _welcome(self, patience: float | int) -> None:
        """Count in the workers that have started meanwhile: a node may have died, or is still to come."""
        ray = importlib.import_module("ray")
        if not self._starting:
            return
        started, _ = ray.wait(list(self._starting), num_returns=1, timeout=0 if self._ready else patience)
        for one in started:
            self._ready.append(self._starting.pop(one))
            self._busy.append(0)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Send some calls to the worker that has fewest waiting.

        Args:
            func: They.
            callback: Told of the future.
        """
        self._welcome(0)
        number = min(range(len(self._busy)), key=self._busy.__getitem__)
        self._busy[number] += 1

        def done(future: Any) -> None:
            self._busy[number] -= 1
            if callback is not None:
                with suppress(RuntimeError):  # the call has ended, and nobody waits for the rest
                    self._answers.submit(callback, future)

        future = self._ready[number].call.remote(func).future()
        future.add_done_callback(done)
        return future

    apply_async = submit  # joblib's name for it until 1.5

    def retrieve_result_callback(self, out: Any) -> Any:
        """What a worker gave; its error is raised.

        Args:
            out: A future.
        """
        found, error = out.result()
        if error is not None:
            raise error
        return found

    def terminate(self) -> None:
        """End nothing but the thread of callbacks: the actors stay."""
        self._answers.shutdown(wait=False)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End workers that are still at work, or that may be dead.

        Args:
            ensure_ready: Whether new ones are started.
        """
        ray = importlib.import_module("ray")
        count = len(self._ready) + len(self._starting)
        for actor in self._kept:
            ray.kill(actor)
        self._kept.clear()
        if ensure_ready:
            self.configure(count, self.parallel)


class _Worker:
    """An actor."""

    def ready(self) -> None:
        """Answered as soon as it has started."""

    def call(self, func: Callable[[], Any]) -> _Outcome:
        """What a call gives, or its error as it was raised: Ray's own would hold the whole traceback as its text."""
        try:
            return func(), None
        except Exception as error:
            return None, error


def streaming() -> Any:
    """The backend that is in force, as it gives results as they come where it can; None for joblib's choice."""
    backend: Any = get_active_backend()[0]
    if type(backend).__name__ == "RayBackend":  # Ray's own, of `register_ray()`
        return RayWorkers(ray_remote_args=backend.ray_remote_args)
    return None
