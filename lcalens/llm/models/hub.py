"""Whether the hub has a model, asked once and quickly: its own client retries for most of a minute."""

from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.llm.hub import ask_hub


def reach_hub(name: str, revision: str | None, token: str | None) -> dict[str, Any]:
    """What to hand to `from_pretrained` for a hub id: its revision and token, and whether only this machine's copy.

    Args:
        name: A hub id.
        revision: A branch, tag or commit.
        token: A hub token.

    Raises:
        Exception: Whatever the hub's client says where there is no such model, no leave to read it, or neither a
            connection nor a copy on this machine.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from huggingface_hub.utils import validate_repo_id

    reach: dict[str, Any] = {"revision": revision, "token": token}
    validate_repo_id(name)
    if constants.HF_HUB_OFFLINE:
        return reach
    try:
        ask_hub(name, "config.json", revision=revision, token=token)
    except EntryNotFoundError as error:
        raise LcalensError(
            f"source: {name!r:.200} is on the hub, but without a config.json: it holds no model in Hugging Face's "
            "format (perhaps GGUF files or an adapter only). Download the .gguf file and give its path, or use the "
            "original model's id."
        ) from error
    except HfHubHTTPError:
        raise
    except Exception:
        # No connection. A copy on this machine will do, and asking the hub for each of its files would take minutes.
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            raise
        reach["local_files_only"] = True
    return reach
