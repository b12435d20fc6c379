"""One stack of runs, from the first step to the last: contexts, evaluation, divergence, a state that is kept."""

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Int
from torch import Tensor

from lcalens.core.cells import CellStore
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.training.config import TrainConfig
from lcalens.lca.training.stack import Stack, weights_of
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.sampling import GOLDEN, Counts, mix

SAMPLES = 16_000
EVALUATIONS = 20
STEPS_PER_EVALUATION = 50  # at least, which costs under 1% of them
DIVERGED = 50.0
NEVER = -1
_REPORT_EVERY = 10
_CHUNK = 1 << 21


class Trainer:
    """Trains the runs of one stack, and goes on from a state that was kept.

    Args:
        concepts: The world.
        plan: Each run's recipe, of one shape, and its seed.
        store: Where the state is kept.
        key: The state's name there.
        device: Where to train.
    """

    def __init__(
        self,
        concepts: LatentConcepts,
        plan: Sequence[tuple[TrainConfig, int]],
        store: CellStore,
        key: str,
        device: str | torch.device,
    ):
        self.concepts, self.plan, self.store, self.key = concepts, plan, store, key
        self.config, self.seeds = plan[0][0], [seed for _, seed in plan]
        self.device = torch.device(device)
        models = [start_model(concepts, config, seed).to(self.device) for config, seed in plan]  # pyright: ignore[reportArgumentType]
        self.stack = Stack(models, [recipe.lr for recipe, _ in plan], [recipe.weight_decay for recipe, _ in plan])
        # The steps before which the runs are evaluated; the last row is the end.
        count = min(EVALUATIONS, -(-self.config.steps // STEPS_PER_EVALUATION))
        self.points = [i * self.config.steps // count for i in range(count + 1)]
        self.losses = torch.zeros(len(plan), len(self.points), device=self.device)
        self.accuracies = torch.full((len(plan), len(self.points)), torch.nan, device=self.device)
        self.diverged = np.full(len(plan), NEVER)
        self._log_counts = torch.arange(self.config.context_length + 1, device=self.device).float().log()
        self._into: Counts | None = None
        self._bayes = self._reference()

    def train(self, checkpoint_seconds: float, report: Callable[[int, str], None]) -> None:
        """Every step that is left.

        Args:
            checkpoint_seconds: How often the state is kept.
            report: Told the steps done, all runs together, and how it goes.
        """
        self._restore()
        kept, steps = time.monotonic(), self.config.steps
        for step in range(self.stack.steps, steps + 1):
            if step in self.points:
                self._evaluate(self.points.index(step), step)
                if (self.diverged != NEVER).all():
                    break
            if step % _REPORT_EVERY == 0 or step == steps:
                report(step * len(self.plan), self._told(step))
            if step == steps:
                break
            if time.monotonic() - kept >= checkpoint_seconds:
                self._keep()
                kept = time.monotonic()
            batch = self._contexts("train", step)
            row = next(i for i, point in enumerate(self.points) if point > step)
            self.losses[:, row] += self.stack.step(*batch, rate=1 - step / steps)
        self._keep()

    def finish(self) -> list[dict[str, np.ndarray]]:
        """Each run's weights, history, and accuracy on fresh contexts with that of Bayes."""
        widths = np.diff(self.points, prepend=0).clip(min=1)
        losses, runs = self.losses.cpu().numpy() / widths, []
        losses[:, 0] = np.nan  # nothing was trained before the first step
        for run, (config, seed) in enumerate(self.plan):
            model = start_model(self.concepts, config, seed).to(self.device)  # pyright: ignore[reportArgumentType]
            self.stack.write(model, run)
            right, ceiling = self._final(model, seed)
            runs.append(
                {name: weight.detach().cpu().numpy() for name, weight in weights_of(model).items()}
                | {
                    "step": np.array(self.points),
                    "loss": losses[run].astype(np.float64),
                    "accuracy": self.accuracies[run].cpu().numpy().astype(np.float64),
                    "final_accuracy": np.array(right if self.diverged[run] == NEVER else np.nan),
                    "bayes": np.array(ceiling),
                    "diverged": np.array(self.diverged[run]),
                }
            )
        return runs

    def _contexts(self, purpose: str, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Every run's batch: log counts, last tokens and concepts, each with the runs as its first axis."""
        seeds = seed_words(self.seeds, purpose, step).to(self.device)
        self._into = self.concepts.sampler.counts(
            seeds, self.config.batch_size, self.config.context_length, weight=self._log_counts, into=self._into
        )
        log_counts, last, target = self._into.counts, self._into.last, self._into.target
        runs = len(self.plan)
        return (
            rearrange(log_counts, "(run batch) vocab -> run batch vocab", run=runs),
            rearrange(last, "(run batch) -> run batch", run=runs),
            rearrange(target, "(run batch) -> run batch", run=runs),
        )

    def _evaluate(self, row: int, step: int) -> None:
        """The accuracy before this step on contexts of their own; a run whose loss or weights broke is stopped."""
        log_counts, last, target = self._contexts("evaluate", step)
        logits = self.stack.forward(log_counts, last)
        hits = bayes.accuracy(
            rearrange(logits, "run batch vocab -> (run batch) vocab"), rearrange(target, "run batch -> (run batch)")
        )
        right = reduce(hits, "(run batch) -> run", "mean", run=len(self.plan))
        width = max(1, step - self.points[row - 1]) if row else 1
        sound = self.losses[:, row] / width < DIVERGED  # False for NaN
        sound &= logits.isfinite().all(-1).all(-1)
        for run in np.flatnonzero(~sound.cpu().numpy() & (self.diverged == NEVER)):
            self.diverged[run] = step
            self.stack.drop(int(run))
        self.accuracies[:, row] = right.to(self.accuracies).masked_fill(~sound, torch.nan)

    def _final(self, model: LCAForCausalLM, seed: int) -> tuple[float, float]:
        rows = min(SAMPLES, max(1, _CHUNK // self.concepts.vocab_size))
        right, ceiling, done = 0.0, 0.0, 0
        while done < SAMPLES:
            size = min(rows, SAMPLES - done)
            word = seed_words([seed], "final", done).to(self.device)
            counts, last, target = self.concepts.sampler.counts(word, size, self.config.context_length)
            with torch.no_grad():
                right += float(bayes.accuracy(model.from_counts(counts, last), target).sum())
            ceiling += size * bayes.bayes_accuracy(self.concepts, counts, last, target)
            done += size
        return right / SAMPLES, ceiling / SAMPLES

    def _reference(self) -> float:
        """Bayes on as many contexts as one evaluation has: what the bar shows beside the accuracy."""
        rows = min(self.config.batch_size, max(1, _CHUNK // self.concepts.vocab_size))
        counts, last, target = self.concepts.sampler.counts(
            seed_words(self.seeds[:1], "bayes").to(self.device), rows, self.config.context_length
        )
        return bayes.bayes_accuracy(self.concepts, counts, last, target)

    def _told(self, step: int) -> str:
        row = max(i for i, point in enumerate(self.points) if point <= step)
        mean = np.nanmean(self.accuracies[:, row].cpu().numpy()) if (self.diverged == NEVER).any() else np.nan
        lost = int((self.diverged != NEVER).sum())
        return f"accuracy {mean:.3f}, Bayes {self._bayes:.3f}" + (f", {lost} diverged" if lost else "")

    def _keep(self) -> None:
        """The whole state; the random stream is a function of seed and step, and needs no state."""
        tensors = {"trained": self.stack.trained_numbers, "moments": self.stack.moments, "losses": self.losses}
        arrays = {name: tensor.cpu().numpy() for name, tensor in (tensors | {"accuracies": self.accuracies}).items()}
        self.store.put(self.key, arrays | {"steps": np.array(self.stack.steps), "diverged": self.diverged})

    def _restore(self) -> None:
        kept = self.store.get(self.key)
        if kept is None:
            return
        self.diverged = kept["diverged"]
        for run in np.flatnonzero(self.diverged != NEVER):
            self.stack.drop(int(run))
        tensors = {"trained": self.stack.trained_numbers, "moments": self.stack.moments, "losses": self.losses}
        for name, tensor in (tensors | {"accuracies": self.accuracies}).items():
            tensor.copy_(torch.from_numpy(kept[name]))
        self.stack.steps = int(kept["steps"])


def start_model(concepts: LatentConcepts, config: TrainConfig, seed: int) -> LCAForCausalLM:
    """The untrained model of a recipe and a seed, on the CPU.

    Args:
        concepts: The world.
        config: The recipe.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed_words([seed], "weights")[0]))
        return LCAForCausalLM(config.model_config(concepts.m))


def model_of(
    cell: Mapping[str, np.ndarray], concepts: LatentConcepts, config: TrainConfig, seed: int
) -> LCAForCausalLM:
    """The model whose weights a finished run holds.

    Args:
        cell: The run.
        concepts: The world.
        config: The recipe.
        seed: Of the weights.
    """
    model = start_model(concepts, config, seed)
    with torch.no_grad():
        for name, weight in weights_of(model).items():
            weight.copy_(torch.from_numpy(cell[name]))
    return model


def seed_words(seeds: Iterable[int], purpose: str, index: int = 0) -> Int[Tensor, " run"]:
    """The seed of each run's contexts for one purpose and step.

    Args:
        seeds: The runs' seeds.
        purpose: `train`, `evaluate`, ...
        index: The step.
    """
    return mix(_first_words(tuple(seeds), purpose) + torch.tensor(index) * GOLDEN)


@functools.lru_cache(maxsize=1024)
def _first_words(seeds: tuple[int, ...], purpose: str) -> Int[Tensor, " run"]:
    """Unrelated for any two sets of arguments."""
    digests = (hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest() for seed in seeds)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])
