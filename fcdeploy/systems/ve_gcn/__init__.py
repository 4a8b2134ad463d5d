"""VE-GCN: one network gives every face a confidence; faces link to nearer ones of higher confidence, or to those that a
second network picks.

Yang et al., "Learning to Cluster Faces via Confidence and Connectivity Estimation", CVPR 2020, arXiv 2004.00445; code:
github.com/yl-1993/learn-to-cluster, folder vegcn. GCN-V alone works with links to the nearest face of higher
confidence, between input features or between its own; with GCN-E, the most confident faces link to the one that it
finds best. Kept as published: weights of the graph are similarities and a self loop of 1; a pair counts where either
face lists the other; the threshold of similarity cuts edges, and no list; a link is shorter than 1 - tau, strictly;
similarities of transformed features are not clipped. Ours where the publication is undefined: equal confidences at the
cut of ignore_ratio go by the number of the face, equal best candidates by distance, and a face whose transformed
feature is zero keeps it.
"""

from fcdeploy.systems import System
from fcdeploy.systems.training_types import Tunable, thresholds
from fcdeploy.systems.ve_gcn.flow import assign, cluster, evidence, neighbors
from fcdeploy.systems.ve_gcn.spec import NETWORKS, Recipe, problem, searches, tolerance, workload

SYSTEM = System(
    name="ve-gcn",
    title="VE-GCN",
    paper="Yang et al., CVPR 2020, arXiv 2004.00445",
    recipe=Recipe,
    networks=NETWORKS,
    cluster=cluster,
    neighbors=neighbors,
    evidence=evidence,
    assign=assign,
    options=("k", "tau"),
    problem=problem,
    searches=searches,
    tolerance=tolerance,
    workload=workload,
    tunable=lambda weights, options: (Tunable("links.tau", thresholds(0.0, 1.0), between=True),),
    sorts_lists="always",
)
