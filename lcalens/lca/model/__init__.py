"""The one-layer model of the toy world, its closed-form weights, and the model as a TransformerBridge."""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "AttentionInit": "lcalens.lca.model.model",
    "EmbeddingInit": "lcalens.lca.model.model",
    "LCAAttention": "lcalens.lca.model.model",
    "LCAConfig": "lcalens.lca.model.model",
    "LCAForCausalLM": "lcalens.lca.model.model",
    "ValueInit": "lcalens.lca.model.model",
    "check_start": "lcalens.lca.model.model",
    "lca_tokenizer": "lcalens.lca.model.model",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.lca.model.model import AttentionInit as AttentionInit
    from lcalens.lca.model.model import EmbeddingInit as EmbeddingInit
    from lcalens.lca.model.model import LCAAttention as LCAAttention
    from lcalens.lca.model.model import LCAConfig as LCAConfig
    from lcalens.lca.model.model import LCAForCausalLM as LCAForCausalLM
    from lcalens.lca.model.model import ValueInit as ValueInit
    from lcalens.lca.model.model import check_start as check_start
    from lcalens.lca.model.model import lca_tokenizer as lca_tokenizer

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
