"""An accelerator for each worker process of one machine."""

import multiprocessing
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def take_device(options: Mapping[str, Any]) -> None:
    """Let this worker see one GPU, the next in turn, where the model goes to `"cuda"` and there are several.

    A worker that was given its own, as Ray and Dask do, sees one and keeps it; a device with a number, such as
    `"cuda:1"`, is taken as it is. What has been computed in this process stays where it is.

    Args:
        options: What the model is loaded with.
    """
    number = re.search(r"\d+$", multiprocessing.current_process().name)  # of joblib's: LokyProcess-3
    if number is None or str(options.get("device")) != "cuda" or torch.cuda.is_initialized():
        return
    count = torch.cuda.device_count()
    if count < 2:
        return
    visible = [place.strip() for place in os.environ.get(_VISIBLE, "").split(",") if place.strip()]
    places = visible[:count] or [str(place) for place in range(count)]
    os.environ[_VISIBLE] = places[int(number[0]) % len(places)]
