"""The one-layer model of latent concept association (section 5.1 of the paper), as a Hugging Face model.

    f(x) = W_E^T W_V attn(W_E chi(x)),    attn(U) = U softmax( (W_K U)^T (W_Q U) / sqrt(d_a) )

W_E is tied: one embedding reads tokens and writes logits. There is no residual, norm, position or causal mask. Three
forwards are equal: every position (`model(ids)`), the last query alone (`model(ids, logits_to_keep=1)`), and counts
(`model.from_counts`), which weights each token of the vocabulary by how often it occurs and costs the same for every L.
"""

import math
from typing import Any, Literal, get_args, no_type_check

import torch
from einops import rearrange
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.lca.world.concepts import LATENTS

EmbeddingInit = Literal["gaussian", "orthonormal"]
ValueInit = Literal["uniform", "identity"]
AttentionInit = Literal["uniform", "zero"]


@no_type_check  # run-time checkers of dataclasses know fields alone, and this one takes whatever its file holds
class LCAConfig(PreTrainedConfig):
    """What it takes to build the model.

    Attributes:
        m: Latent bits; the vocabulary is V = 2^m.
        d_model: d, the size of an embedding.
        d_head: d_a, the size of queries and keys.
        embedding: W_E at the start: `gaussian`, N(0, 1/d), or `orthonormal` columns, one per token (d >= V).
        value: W_V at the start: `uniform` on +-1/sqrt(d), or the `identity`.
        attention: W_K and W_Q at the start: `uniform` on +-1/sqrt(d), or `zero`, which attends to all tokens alike.
        train_embedding: Whether W_E has a gradient.
        train_value: Whether W_V has one.
        train_attention: Whether W_K and W_Q have one.

    Raises:
        LcalensError: An argument outside its range.

    Example:
        >>> LCAConfig(m=6, d_model=32, d_head=16).vocab_size
        64
    """

    model_type = "lca"

    m: int = 5
    d_model: int = 32
    d_head: int = 16
    embedding: EmbeddingInit = "gaussian"
    value: ValueInit = "uniform"
    attention: AttentionInit = "uniform"
    train_embedding: bool = True
    train_value: bool = True
    train_attention: bool = True

    def __post_init__(self, **kwargs: Any):
        self.m = check_int("m", self.m, low=LATENTS[0], high=LATENTS[-1], why="a vocabulary has 2^m tokens")
        check_start(self)
        if self.embedding == "orthonormal" and self.d_model < self.vocab_size:
            raise LcalensError(
                f"d_model: {self.d_model} dimensions hold no {self.vocab_size} orthonormal embeddings; "
                f"take at least {self.vocab_size}."
            )
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """V = 2^m."""
        return 1 << self.m

    # What tools for language models ask of any configuration.
    num_hidden_layers = property(lambda self: 1)
    num_attention_heads = property(lambda self: 1)
    head_dim = property(lambda self: self.d_head)


def check_start(config: Any) -> None:
    """Refuse sizes and initialisations that no model has.

    Args:
        config: An LCAConfig, or a recipe with the same fields.

    Raises:
        LcalensError: A field outside its range.
    """
    for name in ("d_model", "d_head"):
        object.__setattr__(config, name, check_int(name, getattr(config, name), low=1))
    for name, kinds in (("embedding", EmbeddingInit), ("value", ValueInit), ("attention", AttentionInit)):
        check_choice(name, getattr(config, name), get_args(kinds))
    for name in ("train_embedding", "train_value", "train_attention"):
        if not isinstance(getattr(config, name), bool):
            raise LcalensError(f"{name}: expected True or False, got {getattr(config, name)!r:.60}.")


class LCAAttention(nn.Module):
    """softmax((W_K U)^T (W_Q U) / sqrt(d_a)), with values of the model's own width.

    Attributes:
        q: W_Q.
        k: W_K.
        v: W_V; it commutes with the attention's mean, so it may come before or after it.
    """

    def __init__(self, config: LCAConfig):
        super().__init__()
        self.scale = 1 / math.sqrt(config.d_head)
        self.q = nn.Linear(config.d_model, config.d_head, bias=False)
        self.k = nn.Linear(config.d_model, config.d_head, bias=False)
        self.v = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self,
        sources: Float[Tensor, "batch key d"],
        queries: Float[Tensor, "batch query d"],
        mask: Int[Tensor, "batch key"] | None = None,
    ) -> tuple[Float[Tensor, "batch query d"], Float[Tensor, "batch query key"]]:
        """What each query recalls, and where it looks.

        Args:
            sources: The embeddings that may be attended to.
            queries: The embeddings that attend.
            mask: 0 where there is only padding.
        """
        scores = self.q(queries) @ self.k(sources).mT * self.scale  # (batch, query, key)
        if mask is not None:
            scores = scores.masked_fill(rearrange(mask, "batch key -> batch 1 key") == 0, -math.inf)
        pattern = scores.softmax(-1)
        return pattern @ self.v(sources), pattern


class LCAForCausalLM(PreTrainedModel):
    """The model. `save_pretrained`, `from_pretrained` and the Auto classes work as for any Hugging Face model.

    Attributes:
        embed: W_E transposed: row t is the embedding of token t.
        attn: W_Q, W_K and W_V.

    Example:
        >>> import torch
        >>> toy = LCAForCausalLM(LCAConfig(m=5, d_model=16, d_head=8))
        >>> toy(torch.tensor([[3, 1, 2]])).logits.shape
        torch.Size([1, 3, 32])
    """

    embed: nn.Embedding
    attn: LCAAttention
    config_class = LCAConfig
    base_model_prefix = ""
    config: LCAConfig

    def __init__(self, config: LCAConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.attn = LCAAttention(config)
        self.post_init()
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load what `save_pretrained` wrote, with the same weights frozen.

        Args:
            *args: A folder or hub id, as for any Hugging Face model.
            **options: Any of theirs.
        """
        loaded = super().from_pretrained(*args, **options)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self) -> None:
        self.embed.requires_grad_(self.config.train_embedding)
        self.attn.v.requires_grad_(self.config.train_value)
        self.attn.q.requires_grad_(self.config.train_attention)
        self.attn.k.requires_grad_(self.config.train_attention)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        bound = 1 / math.sqrt(self.config.d_model)
        if isinstance(module, nn.Embedding):
            if self.config.embedding == "orthonormal":
                nn.init.orthogonal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=bound)
        elif isinstance(module, nn.Linear):  # each by itself: transformers initialises a module's parts before it
            kind = self.config.value if module is self.attn.v else self.config.attention
            if kind == "uniform":
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.eye_(module.weight) if kind == "identity" else nn.init.zeros_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """W_E."""
        return self.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another W_E in its place."""
        self.embed = value

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
        logits_to_keep: int = 0,
        output_attentions: bool | None = None,
        **ignored: Any,
    ) -> CausalLMOutput:
        """Logits of the concept at each position.

        Args:
            input_ids: Contexts.
            attention_mask: 0 where there is only padding; every position may look at every other.
            labels: The concepts; the loss is the cross-entropy at the last position.
            logits_to_keep: Compute the last positions alone, so many; 0 computes all.
            output_attentions: Whether to return the pattern, (batch, 1, query, key).
            **ignored: What Hugging Face passes along and this model has no use for.
        """
        sources = self.embed(input_ids)  # (batch, length, d)
        recalled, pattern = self.attn(sources, sources[:, -logits_to_keep:], attention_mask)
        logits = recalled @ self.embed.weight.T  # (batch, query, vocab)
        return CausalLMOutput(
            loss=None if labels is None else nn.functional.cross_entropy(logits[:, -1], labels),
            logits=logits,
            attentions=(rearrange(pattern, "batch query key -> batch 1 query key"),) if output_attentions else None,
        )

    def attention_from_counts(
        self, counts: Float[Tensor, "batch vocab"], last: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch vocab"]:
        """Where the last query looks: the attention to all copies of each token together.

        Args:
            counts: How often each token occurs in the context, the last one included.
            last: The last token.
        """
        # Scores against the batch's last tokens alone: no table of V x V is ever built.
        scores = self.attn.q(self.embed(last)) @ self.attn.k(self.embed.weight).T * self.attn.scale
        return (scores + counts.log()).softmax(-1)

    def gathered(self, counts: Float[Tensor, "batch vocab"], last: Int[Tensor, " batch"]) -> Float[Tensor, "batch d"]:
        """What attention gathers for the value matrix, h(x): the embeddings' mean, weighted by the attention.

        It lies in the convex hull of the embeddings (the paper's section on the value matrix's role).

        Args:
            counts: How often each token occurs in the context, the last one included.
            last: The last token.

        Example:
            >>> from lcalens import LatentConcepts, LCAConfig, LCAForCausalLM
            >>> concepts, model = LatentConcepts(3), LCAForCausalLM(LCAConfig(m=3, d_model=4))
            >>> drawn = concepts.sample_counts(2, 8, torch.Generator().manual_seed(0))
            >>> model.gathered(drawn.counts, drawn.last).shape
            torch.Size([2, 4])
        """
        return self.attention_from_counts(counts, last) @ self.embed.weight

    def from_counts(
        self, counts: Float[Tensor, "batch vocab"], last: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch vocab"]:
        """The last position's logits, at a cost of O(V) per context whatever its length.

        Args:
            counts: How often each token occurs in the context, the last one included.
            last: The last token.
        """
        return self.attn.v(self.gathered(counts, last)) @ self.embed.weight.T


def lca_tokenizer(m: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are their latent bits: at m = 3, "101 000" is tokens 5 and 0.

    Args:
        m: Latent bits.

    Raises:
        LcalensError: m is no integer from 2 to 14.
    """
    check_int("m", m, low=LATENTS[0], high=LATENTS[-1], why="a vocabulary has 2^m tokens")
    words = Tokenizer(models.WordLevel({format(token, f"0{m}b"): token for token in range(1 << m)}, unk_token=""))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False)


AutoConfig.register("lca", LCAConfig)
AutoModelForCausalLM.register(LCAConfig, LCAForCausalLM)
