"""SEPFL: a face has one candidate link, to its nearest denser face, and a mixer network accepts or refuses it.

"Structure-enhanced pairwise feature learning for face clustering"; code: github.com/Stalker-DAs/SEPFL. Kept as
published: the density that adds a float32 and a float64 term, attention weights without a softmax, no threshold. k
is the length of the token mixer's weights, so that a checkpoint fits one k only. Ours where the publication is
undefined: lists of a file are sorted by similarity with equal ones in the file's order.
"""

from fcdeploy.systems import System
from fcdeploy.systems.sepfl.flow import assign, cluster, evidence, neighbors
from fcdeploy.systems.sepfl.spec import NETWORK, Recipe
from fcdeploy.systems.training_types import Tunable, probabilities, thresholds

SYSTEM = System(
    name="sepfl",
    title="SEPFL",
    paper="Structure-enhanced pairwise feature learning for face clustering; github.com/Stalker-DAs/SEPFL",
    recipe=Recipe,
    networks={"pairwise": NETWORK},
    cluster=cluster,
    neighbors=neighbors,
    evidence=evidence,
    assign=assign,
    options=("min_probability",),
    sorts_lists="always",
    tunable=lambda weights, options: (
        Tunable("links.min_probability", probabilities(0.02, 0.98, 0.04), between=True),
        Tunable("links.rho", thresholds(0.4, 0.8)),
    ),
)
