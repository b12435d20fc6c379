"""How a model was loaded, kept on it so that another process can load the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ATTRIBUTE = "lcalens_loading"


@dataclass(frozen=True)
class Loading:
    """A call that gives the model again.

    Attributes:
        load: The function.
        source: Its first argument; a place on this machine by its whole path.
        options: Its others.
    """

    load: Callable[..., Any]
    source: str
    options: Mapping[str, Any] = field(repr=False)  # a token may be among them

    def again(self) -> Any:
        """The model, loaded anew in whatever process this is."""
        return self.load(self.source, **self.options)


def attach_loading(model: Any, loading: Loading) -> None:
    """Leave it on a TransformerBridge, where `loading_of` finds it.

    Args:
        model: A TransformerBridge.
        loading: How it was loaded.
    """
    setattr(model, _ATTRIBUTE, loading)


def loading_of(model: Any) -> Loading | None:
    """How a model was loaded; None where that was not by name or path.

    Args:
        model: A TransformerBridge.
    """
    return vars(model).get(_ATTRIBUTE)
