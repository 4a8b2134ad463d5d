"""NSR-FC: refine features, re-score every face's neighbors, then link by density peaks or by two pair networks.

"Enhanced face clustering with neighbor structure refinement"; code: github.com/jiacut/NSR-FC. The refinement is
PSE-GCN's; the re-scoring is that of "On Mitigating Hard Clusters" (arXiv 2207.11895); the pair networks alone, on
cosine similarities, are LCE-PCENet (github.com/illian01/LCE-PCENet). A bundle holds any run of neighbors of this
chain: refinement, re-scoring, LCENet with PCENet; the refinement alone is the system PSE-GCN.

Kept as published: the re-scoring attends across the faces of a batch, so its batch size and the order of faces are
settings; the position code is added to query and key only; refined features are read along the original lists;
density peaks link equally dense faces; a score that only one direction has is halved; column 0 of a list stands for
the face itself. Ours where the publication is undefined: equal distances keep the order of the list.
"""

from fcdeploy.systems import System, get_system
from fcdeploy.systems.nsr_fc.flow import assign, cluster, evidence, neighbors
from fcdeploy.systems.nsr_fc.spec import (
    NETWORKS,
    Recipe,
    problem,
    refusal,
    tolerance,
    tunable,
    workload,
)

SYSTEM = System(
    name="nsr-fc",
    title="NSR-FC",
    paper="Enhanced face clustering with neighbor structure refinement; github.com/jiacut/NSR-FC",
    recipe=Recipe,
    networks=NETWORKS,
    cluster=cluster,
    neighbors=neighbors,
    evidence=evidence,
    assign=assign,
    sorts_lists="always",
    options=("k", "hops", "tau", "reranked", "min_probability", "link"),
    tunable=tunable,
    inferences=get_system("pse-gcn").inferences,
    problem=problem,
    refusal=refusal,
    tolerance=tolerance,
    workload=workload,
)
