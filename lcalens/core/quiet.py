"""Keeps the libraries below from drawing their own progress bars, warnings and log lines over ours."""

import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within it, transformers and TransformerLens log errors only and draw no bars; their settings come back after."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as hf_logging

    gguf_reader: Any = modeling_gguf_pytorch_utils

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    root_level = logging.getLogger().level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)  # TransformerLens logs to the root logger
    bar = gguf_reader.tqdm  # the one bar that does not ask hf_logging
    gguf_reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        logging.getLogger().setLevel(root_level)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def quiet_notebook() -> None:
    """In a notebook without ipywidgets tqdm warns, once, whoever first asks for its bar: let it be here, unheard."""
    if "IPython" in sys.modules and "tqdm.auto" not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tqdm.auto  # noqa: F401
