"""Work for other processes, which must be able to import it."""

import os

import numpy as np

from lcalens.core.errors import LcalensError


def where(model, job):
    """Which process ran it, with which model object, on how many threads."""
    import torch

    return {"found": np.array([os.getpid(), id(model), torch.get_num_threads(), job])}, 0


def grow(model, job):
    """Which process ran it; each time it keeps 80 MB more, and a while has passed since loky last looked."""
    import time

    _KEPT.append(np.ones(10_000_000))
    time.sleep(1.1)
    return {"found": np.array([os.getpid()])}, 0


_KEPT = []


def refuse(model, job):
    """What somebody's argument may do."""
    if job == 2:
        raise LcalensError("facts: the third cannot be used; give another.")
    return {"found": np.array([job])}, 0


def die(model, job):
    """What the system does to a process when memory is short: here as soon as some cells are finished."""
    import signal
    import time

    if job:
        while not all(os.path.exists(cell) for cell in job):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    return {"found": np.arange(3)}, 0


def slowly(model, job):
    """A cell that takes a moment, and leaves a line for each time it was begun."""
    import time

    folder, number = job
    with open(os.path.join(folder, f"begun-{number}"), "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.3)
    return {"found": np.array([number])}, 0


def timed_part(model, part, *, how):
    """A part of `efficacy`; when it was begun and ended is noted in the file that LCALENS_TIMED names."""
    import time

    from lcalens.llm.efficacy.parts import score_part

    began = time.time()
    found = score_part(model, part, how=how)
    with open(os.environ["LCALENS_TIMED"], "a") as file:
        file.write(f"{began} {time.time()}\n")
    return found
