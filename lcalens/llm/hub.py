"""Whether the hub answers, asked once and quickly: its own client retries for half a minute, and writes so."""

import contextlib
from collections.abc import Iterator

_PATIENCE = 10.0  # seconds for one small answer


def ask_hub(
    name: str, file: str, *, kind: str = "model", revision: str | None = None, token: str | None = None
) -> None:
    """Ask the hub about one file of a repository, once.

    Args:
        name: A hub id.
        file: The file.
        kind: `model` or `dataset`.
        revision: A branch, tag or commit.
        token: A hub token.

    Raises:
        Exception: Whatever the hub's client says: `HfHubHTTPError` (of which `EntryNotFoundError` is one) where the hub
            answers that there is no such thing or no leave to read it, anything else where it does not answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(name, file, repo_type=kind, revision=revision)
    get_hf_file_metadata(url, token=token, timeout=_PATIENCE, retry_on_errors=False)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within it, the hub's client and datasets use what is on this machine alone, and ask nobody."""
    import datasets.config
    from huggingface_hub import constants

    kept = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = kept
