"""L-GCN: a graph network scores the link from every face to each of its neighbors; propagation turns them to clusters.

Wang et al., "Linkage based face clustering via graph convolution network", CVPR 2019, arXiv 1903.11306. Code:
github.com/Zhongdao/gcn_clustering, the first release, 512-d; yl-1993/learn-to-cluster, a re-implementation, any width.
Both are reproduced, by their recipes: how scores of a pair are pooled, when propagation stops, and whether features
are normalised. Kept as published: hops[1] and active reach no further than hops[0], since both releases cut or read
lists so; the threshold starts at the lowest score before pooling. Ours where the publication is undefined: a face
without neighbors in its sub-graph is nobody's mean, not NaN, and a face that stands in its own list behind
position 0 is left out there.
"""

from fcdeploy.systems import System
from fcdeploy.systems.l_gcn.flow import assign, cluster, evidence, neighbors
from fcdeploy.systems.l_gcn.spec import NETWORK, Recipe, workload
from fcdeploy.systems.training_types import Tunable

# What is tried of a cluster's largest size, each half as large again as the one before it.
SIZES = (2, 5, 10, 20, 50, 100, 150, 225, 340, 500, 750, 1100, 1700, 2500, 3800, 5700, 8500)
SYSTEM = System(
    name="l-gcn",
    title="L-GCN",
    paper="Wang et al., CVPR 2019, arXiv 1903.11306",
    recipe=Recipe,
    networks={"links": NETWORK},
    cluster=cluster,
    neighbors=neighbors,
    evidence=evidence,
    assign=assign,
    options=("k", "hops"),
    workload=workload,
    pooled=lambda n, settings: n * settings.neighborhood.hops[0],
    tunable=lambda weights, options: (
        Tunable("propagation.max_size", SIZES, between=True),
        Tunable("propagation.step", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), between=True),
    ),
    fit_lists=Recipe.for_lists,
    sorts_lists="similarities",
    unit_rows=False,  # neighbors are found among the normalised rows, whatever the network takes
)
