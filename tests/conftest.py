"""Every test runs with jaxtyping's shapes and beartype's types checked, in a cache and without a hub."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from jaxtyping import install_import_hook

install_import_hook("lcalens", "beartype.beartype")
