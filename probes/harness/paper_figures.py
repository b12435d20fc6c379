"""The paper's figures, theorems and lemmas: what they show, in which settings as far as known, and in which words.

Sentences are translated from the rendering of the main text that we have; settings are those which that text or the
file names of the paper's figures give. The figures themselves were not seen, so none of their values is here.
"""

from typing import NamedTuple

from lcalens.core.errors import LcalensError
from probes.harness.study import Counterpart


class PaperFigure(NamedTuple):
    """One figure, theorem or lemma of the paper.

    Attributes:
        title: What it shows.
        settings: The paper's settings, as known.
        sentence: What the paper says of it.
    """

    title: str
    settings: str
    sentence: str


_MODELS = "GPT-2 (124M), Gemma 2B, Gemma 2B instruct, LLaMA-2-7B"
_SWAP = "The accuracy does not drop significantly when the value matrix is replaced by the constructed one."
_GEOMETRY = (
    "The relation between the mean inner product of two tokens' embeddings and their Hamming distance roughly follows "
    "equation 5.2."
)
_CLUSTER = "Figures 3(c) and C.7 clearly show that self-attention selects tokens in the same cluster as the last token."
_SPECTRUM = (
    "Figures C.9 to C.12 show that there is an eigengap between the top and the bottom singular values, which "
    "points to a low-rank structure."
)
_VALUE = (
    "Figures 3(a) and C.1 show that freezing W_V leads to a significant drop in accuracy when the context length is "
    "small."
)
_REVERSE = "Adding sentences that contain the true target word can improve fact recall."
_NEGATED = "The second scheme uses the relation id r to add factually correct sentences."

FIGURES: dict[str, PaperFigure] = {
    "Figure 1": PaperFigure(
        "examples of context hijacking",
        "GPT-2, Gemma 2B (base and instruct), LLaMA-2-7B.",
        "Examples of context hijacking for various LLMs, which show that fact retrieval is not robust.",
    ),
    "Figure 2a": PaperFigure(
        'efficacy over the number of "Do not think of" sentences',
        f"CounterFact; {_MODELS}.",
        "Figure 2(a) shows that the efficacy score drops significantly after hijacking.",
    ),
    "Figure 2b": PaperFigure(
        "efficacy over the number of negated sentences, relation P190",
        f"CounterFact, P190; {_MODELS}.",
        "The more sentences are added, the lower the ES score.",
    ),
    "Figure 3a": PaperFigure("accuracy with W_V trained, and W_V = I", "m = 5 to 8, L = 64.", _VALUE),
    "Figure 3b": PaperFigure("mean inner product of embeddings over Hamming distance", "m = 8.", _GEOMETRY),
    "Figure 3c": PaperFigure("mean attention, clusters of one bit", "m = 8, clusters of section 5.4.", _CLUSTER),
    "Figure B.1": PaperFigure("reverse hijacking", f'"Do not think of" the true object; {_MODELS}.', _REVERSE),
    "Figure B.2": PaperFigure(
        "negated sentences with the false object", f"P103, P131, P190, P641; {_MODELS}.", _NEGATED
    ),
    "Figure B.3": PaperFigure(
        "negated sentences with the true object", f"P103, P131, P190, P641; {_MODELS}.", _REVERSE
    ),
    "Figure B.4": PaperFigure(
        "related words in place of the object",
        f"P1412 (language names, and country names); {_MODELS}.",
        "Hijacking is possible even when only words semantically close to the false target are included (for the false "
        'target "French", say, "France").',
    ),
    "Figure C.1": PaperFigure("as Figure 3a, for longer contexts too", "m = 5 to 8, L = 64 and 128.", _VALUE),
    "Figure C.2": PaperFigure("accuracy after swapping W_V, over the dimension d", "m = 5 to 8, over d.", _SWAP),
    "Figure C.3": PaperFigure(
        "smallest principal angle, over the dimension d",
        "m = 5 to 8, over d; rank m.",
        "Figure C.3 shows that the constructed value matrix has on average the smallest principal angle with the "
        "trained one.",
    ),
    "Figure C.4": PaperFigure(
        "accuracy over d, embeddings trained and frozen",
        "m = 5 to 8, over d; the better learning rate of {.01, .001}.",
        "Figure C.4 clearly shows that embedding training is needed when the dimension is smaller than the vocabulary "
        "size (d < V). In the overparameterised regime (d > V) it is not required.",
    ),
    "Figure C.5": PaperFigure("as Figure 3b", "m = 7 and 8.", _GEOMETRY),
    "Figure C.6": PaperFigure(
        "as Figure C.5, with W_V = I",
        "m = 5 to 8, W_V = I.",
        "If we draw the same figure for trained transformers whose value matrix is fixed at the identity, the relation "
        "is mostly linear.",
    ),
    "Figure C.7": PaperFigure("mean attention, clusters of one bit", "m = 5 to 8, clusters of section 5.4.", _CLUSTER),
    "Figure C.8": PaperFigure(
        "mean attention, clusters of two bits",
        "m = 5 to 8, clusters by the first two bits.",
        "We extend the experiments to a cluster structure that depends on the first two latent variables; Figure C.8 "
        "shows the expected attention pattern.",
    ),
    "Figure C.9": PaperFigure("spectrum of W_E", "m = 7, d = 32, four runs.", _SPECTRUM),
    "Figure C.10": PaperFigure("spectrum of W_E", "m = 7, d = 64, four runs.", _SPECTRUM),
    "Figure C.11": PaperFigure("spectrum of W_E", "m = 8, d = 32, four runs.", _SPECTRUM),
    "Figure C.12": PaperFigure("spectrum of W_E", "m = 8, d = 64, four runs.", _SPECTRUM),
    "Figure C.13": PaperFigure(
        "errors on mixed contexts",
        "m = 5 to 8.",
        "In section C.5 we show experiments in which mixing different contexts makes transformers misclassify.",
    ),
    "Figure C.14": PaperFigure(
        "accuracy over the context length",
        "m = 5 to 8, over L.",
        "Longer contexts, made mainly of independent samples, mean a larger divergence and hence a higher recall.",
    ),
    "Theorem 1": PaperFigure(
        "the constructed model's error",
        "m >= 3, omega = 1, N = all, orthonormal embeddings, W_K = W_Q = 0.",
        "For every eps > 0 there is a transformer of equation 4.1 that reaches error eps where the context length L is "
        "large enough.",
    ),
    "Lemma 2": PaperFigure(
        "the constructed W_V and the identity where all informative tokens are neighbours",
        "m >= 3, omega = 1, N = the tokens at distance 1, orthonormal embeddings.",
        "If W_V is constructed as in equation 5.1, the error is 0. If W_V is the identity, the error is strictly "
        "above 0.",
    ),
    "Theorem 3": PaperFigure(
        "the geometry of embeddings with W_V = I",
        "m >= 3, omega = 1, N = all, W_V = I; softmax(f(x)) equal to the posterior.",
        "There are a > 0 and b such that for two tokens t != t' the inner product of W_E(t) and W_E(t') is "
        "-a D_H(t, t') + b.",
    ),
    "Theorem 4": PaperFigure(
        "the constructed model's error with embeddings of equation 5.2",
        "as Theorem 1, with embeddings of equation 5.2.",
        "Under certain conditions on a and b, the error can be arbitrarily small if b_0 and the context length L are "
        "large enough.",
    ),
    "Lemma 5": PaperFigure(
        "the rank of embeddings of equation 5.2",
        "b = b_0, N = all.",
        "If the embeddings follow equation 5.2 with b = b_0, then rank(W_E) <= m + 2.",
    ),
    "Lemma 6": PaperFigure(
        "the gradient in the attention scores",
        "clusters of one bit.",
        "When token t and t_L belong to the same cluster alpha_t is generally larger, so the contribution to the "
        "gradient of the unnormalised attention score is usually larger for tokens in the same cluster.",
    ),
    "Section 5.5": PaperFigure(
        "errors and the divergence of contexts' distributions",
        "not given.",
        "The closer the distributions are, the more easily the model misclassifies.",
    ),
}


def beside(figure: str, ours: str, caption: str, paragraph: str) -> Counterpart:
    """What stands beside one of the paper's figures: its settings and sentence from here, the rest from the probe.

    Args:
        figure: One of `FIGURES`.
        ours: Settings that the paper leaves open, as chosen here.
        caption: Of the report's figure that shows it; empty where a table alone does.
        paragraph: What we see.

    Raises:
        LcalensError: There is no such figure.
    """
    if figure not in FIGURES:
        raise LcalensError(f"figure: {figure!r} is not one of the paper's; expected one of {', '.join(FIGURES)}.")
    known = FIGURES[figure]
    return Counterpart(
        figure=figure,
        settings=f"the paper's are {known.settings} Ours are {ours}",
        sentence=known.sentence,
        caption=caption,
        paragraph=paragraph,
    )


def span(values: object) -> str:
    """The least and the largest of some numbers, to three digits, for a sentence.

    Args:
        values: Numbers in any collection.
    """
    numbers = [float(one) for one in values if one == one]  # pyright: ignore[reportGeneralTypeIssues]
    if not numbers:
        return "no number"
    low, high = min(numbers), max(numbers)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
