"""From scores, and perhaps members' probabilities, to clusters."""

import numpy as np

from fcdeploy.clustering.groups import join_groups
from fcdeploy.clustering.overlap import (
    UNCOVERED,
    cohesion_of,
    first_cohesive_holders,
    first_holders,
    lengths_of,
    rank_proposals,
    select_members,
    suppress,
)
from fcdeploy.data.labels import renumber
from fcdeploy.systems.gcn_d.inputs import Proposals
from fcdeploy.systems.gcn_d.spec import ANY_COHESION, Recipe


def labels_from_scores(
    n: int,
    proposals: Proposals,
    scores: np.ndarray,
    probability: np.ndarray | None,
    settings: Recipe,
    uncovered: str,
    vectors: np.ndarray | None = None,
) -> np.ndarray:
    """Give every face to the best proposal that holds it; (n,) int64, numbered by first appearance.

    scores: (p,) float32; probability: (t,) float32, how sure each node of a proposal is to belong to it, None when
    nobody asked. Members of th_outlier and less are removed before proposals are compared; if they are kept, those of a
    proposal are a cluster of their own, behind all others. uncovered: faces in no proposal become clusters of
    one ('singleton') or -1 ('drop'). vectors: (n, d) float32 features, which only a ``min_cohesion`` above -1 needs: a
    proposal whose faces are less alike is left out before any comparison, and one gets no faces where those that better
    ones have left of it are.
    """
    order = rank_proposals(scores, settings.overlap.min_score)
    offsets, nodes = proposals.offsets, proposals.nodes
    if probability is not None:
        inside = probability.astype(np.float64) > settings.segment.th_outlier
        ranked = [select_members(offsets, nodes, order, inside)]
        if settings.segment.keep_outlier:
            ranked.append(select_members(offsets, nodes, order, ~inside))
        offsets, nodes = join_groups(ranked)
        order = np.flatnonzero(np.diff(offsets) > 0)
    least = settings.overlap.min_cohesion
    if least > ANY_COHESION:
        assert vectors is not None
        lengths = lengths_of(vectors)
        order = order[cohesion_of(offsets, nodes, order, vectors, lengths) >= least]
    kept = order[suppress(n, offsets, nodes, order, settings.overlap.max_iou)]
    if least > ANY_COHESION and vectors is not None:
        holder = first_cohesive_holders(n, offsets, nodes, kept, vectors, lengths, least)
    else:
        holder = first_holders(n, offsets, nodes, kept)
    if uncovered == "singleton":
        alone = np.flatnonzero(holder == UNCOVERED)
        holder[alone] = len(offsets) + np.arange(len(alone))
    return renumber(holder)
