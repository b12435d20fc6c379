"""The paper's theorems and lemmas as functions that return what they claim, what is measured, and whether it holds.

Each takes the world first and then, where there is one, the model, embedding or builder that it is about; left out,
the closed form is taken. A model that does not do what the statement says gets the verdict `does not hold`.
"""

import torch

from lcalens.core.checks import check_int
from lcalens.lca.model.closed_forms import theorem1_model
from lcalens.lca.theory.claims import Claim as Claim
from lcalens.lca.theory.claims import claims_frame as claims_frame
from lcalens.lca.theory.claims import population_margin as population_margin
from lcalens.lca.theory.lemma6 import lemma6 as lemma6
from lcalens.lca.theory.lemma6 import lemma6_pull as lemma6_pull
from lcalens.lca.theory.lemma6 import score_gradients as score_gradients
from lcalens.lca.theory.lemmas import lemma2 as lemma2
from lcalens.lca.theory.lemmas import lemma5 as lemma5
from lcalens.lca.theory.theorem3 import theorem3 as theorem3
from lcalens.lca.theory.theorem3 import theorem3_solved as theorem3_solved
from lcalens.lca.theory.theorems import theorem1 as theorem1
from lcalens.lca.theory.theorems import theorem4 as theorem4
from lcalens.lca.theory.theorems import theorem4_threshold as theorem4_threshold
from lcalens.lca.theory.value_role import value_margins as value_margins
from lcalens.lca.theory.value_role import value_role as value_role
from lcalens.lca.world.concepts import LatentConcepts


def every_claim(m: int = 5, *, generator: torch.Generator) -> list[Claim]:
    """Every statement in its own setting on its closed-form model, and Theorem 1 once more at m = 2, where it fails.

    Lemma 2 is gone through exactly at m = 3, Theorem 3's equations are solved at m = 4 or less, and Lemma 6 is measured
    on a model at its random initialisation.

    Args:
        m: Latent bits of the others.
        generator: Where the randomness comes from.

    Raises:
        LcalensError: m is no integer from 3 to 8.
    """
    check_int("m", m, low=3, high=8, why="the theorems ask for 3 at least, and more than 8 takes long")
    clean, clusters = LatentConcepts(m, omega=1.0), LatentConcepts(m, neighborhood="cluster")
    return [
        theorem1(clean, generator=generator),
        theorem1(LatentConcepts(2, omega=1.0), generator=generator),
        lemma2(LatentConcepts(3, omega=1.0, neighborhood="nearest"), generator=generator),
        value_role(LatentConcepts(m), theorem1_model(LatentConcepts(m)), generator=generator),
        theorem3(clean, generator=generator),
        theorem3_solved(LatentConcepts(min(m, 4), omega=1.0), generator=generator),
        theorem4(clean, generator=generator),
        lemma5(clean),
        lemma5(clean, b=m / 2),
        lemma6(clusters, generator=generator),
        lemma6_pull(clusters, generator=generator),
    ]
