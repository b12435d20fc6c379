"""Work for other processes, which must be able to import it."""

import os

import numpy as np

from lcalens.core.errors import LcalensError


def where(model, job):
    """Which process ran it, with which model object, on how many threads."""
    import torch

    return {"found": np.array([os.getpid(), id(model), torch.get_num_threads(), job])}, 0


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
