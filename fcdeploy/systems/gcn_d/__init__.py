"""GCN-D: propose many overlapping clusters, let a graph network rank them, and give each face to the best.

Yang et al., "Learning to Cluster Faces on an Affinity Graph", CVPR 2019 (arXiv 1904.02749); code:
github.com/yl-1993/learn-to-cluster. Kept as published: mean features of components are not normalised again, a
proposal's graph is divided by its row sums twice, lists of components do not always hold the component itself, equal
scores go by the string order of the proposals' numbers. Ours where the publication is undefined: proposals of one
parameter set are numbered by their first face, the same proposal is taken once, the seed of a segmentation is the node
of largest degree before the graph is normalised (behind it, all are 1 but for rounding).
"""

from fcdeploy.systems import System
from fcdeploy.systems.gcn_d.flow import assign, cluster, evidence, neighbors
from fcdeploy.systems.gcn_d.spec import (
    NETWORKS,
    Recipe,
    graphs,
    problem_of_networks,
    searches,
    tunable,
)

SYSTEM = System(
    name="gcn-d",
    title="GCN-D",
    paper="Yang et al., CVPR 2019, arXiv 1904.02749",
    recipe=Recipe,
    networks=NETWORKS,
    cluster=cluster,
    neighbors=neighbors,
    evidence=evidence,
    assign=assign,
    later=("scores", "members", "detect_faces", "segment_faces", "purity_faces"),
    options=("k", "uncovered"),
    problem=problem_of_networks,
    searches=searches,
    pooled=lambda n, settings: n * settings.k,
    graphs=graphs,
    tunable=tunable,
)
