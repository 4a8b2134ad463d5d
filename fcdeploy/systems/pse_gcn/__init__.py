"""PSE-GCN: refine every face's feature in its 2-hop neighborhood, then link it to its nearest denser face.

Li et al., "Progressive structure enhancement graph convolutional network for face clustering", Engineering
Applications of Artificial Intelligence 127, 2024; code: github.com/Stalker-DAs/PSE-GCN. Kept as published: the
second normalisation of the fixed graph, the 1e-5 in every row sum, the unused bn1, position 0 of a re-ranked list
that is skipped whatever face it holds, N_10 in re-ranking whatever k is. Ours where the publication is undefined: the
centre is always in its own neighborhood, and ties in re-ranking go by cosine similarity and id.
"""

from fcdeploy.systems import System
from fcdeploy.systems.pse_gcn.flow import assign, cluster, evidence, neighbors
from fcdeploy.systems.pse_gcn.spec import NETWORK, Recipe
from fcdeploy.systems.training_types import Tunable, thresholds

SYSTEM = System(
    name="pse-gcn",
    title="PSE-GCN",
    paper="Li et al., Engineering Applications of Artificial Intelligence 127, 2024",
    recipe=Recipe,
    networks={"refine": NETWORK},
    cluster=cluster,
    neighbors=neighbors,
    evidence=evidence,
    assign=assign,
    options=("k", "hops", "tau", "reranked"),
    tunable=lambda weights, options: (Tunable("links.tau", thresholds(0.0, 1.0), between=True),),
    inferences={
        "exact": ("encode", "neighborhood"),
        "layerwise": ("near1", "similar1", "block1", "similar2", "block2"),
    },
)
