"""Faults are tested as a user meets them, with no type checker in between: LCALENS_UNCHECKED=1 pytest tests/faults."""

import os

collect_ignore_glob = [] if "LCALENS_UNCHECKED" in os.environ else ["test_*"]
