"""Clusters from scored links: components under a rising threshold, none larger than a cap.

Also called pseudo-label propagation (Zhan et al., ECCV 2018). Round 0 takes the connected components of all links;
those of at most ``max_size`` faces are final. In every later round the threshold th rises to th + (1 - th) step, and
the components of the faces that are left, over links of th and more, are judged in the same way.

The published code (Zhongdao/gcn_clustering ``graph_propagation``, learn-to-cluster ``graph_clustering_dynamic_th``)
grows each component breadth-first and stops as soon as it has more faces than the cap, leaving what it has seen to
the next round. That decides the same as the whole component: a component within the cap is never stopped. In one
beyond it the first search is stopped by size; every search that starts later in the same component either grows beyond
the cap itself or reaches a face that was left before, which stops it, too, because a search that nothing stops sees the
whole component. So all its faces are left, and only they are.

No round is run here. A component of a round lies inside one of the round before, so that each face has a last size
above the cap and a first one within it, and one pass over the links, those that stay longest first, finds both.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.components import find_root, join_two, new_forest
from fcdeploy.graph.kernels import njit, prange

NO_CLUSTER = -1
POOLINGS = ("mean", "running-mean", "max", "last")


@dataclass(frozen=True)
class Cuts:
    """What the cap did: the components that were too large and had no part that was.

    component: (n,) int32, in which of them a face was, NO_CLUSTER for none; undivided: so many of them, the first ones,
    were never divided; united: whether these became one component all together. unasked: faces in components within
    the cap that the links of the first round made, with a link below the score that was asked for.
    """

    component: np.ndarray
    undivided: int
    united: bool
    unasked: int

    def divided(self) -> list[np.ndarray]:
        """Return the faces (s,) of each component that was divided."""
        order = np.argsort(self.component, kind="stable")
        numbers = np.arange(self.undivided, self.component.max(initial=-1) + 2)
        ends = np.searchsorted(self.component[order], numbers)
        return [order[begin:end] for begin, end in itertools.pairwise(ends)]

    def left(self) -> tuple[int, int]:
        """Return how many components were never divided, and how many faces they have."""
        faces = np.count_nonzero((self.component >= 0) & (self.component < self.undivided))
        return self.undivided, int(faces)


def pool_links(
    a: np.ndarray, b: np.ndarray, scores: np.ndarray, pooling: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give every pair of linked faces one score, whichever way and however often it is linked.

    a, b: (m,) int32, the ends of the links; scores: (m,) float. Scores s of a pair are taken in the order in which
    they come: "mean" of them all (learn-to-cluster's 'avg'), "running-mean" s = (s + new) / 2 (the first release's),
    "max", or "last". Two scores have the same mean either way. Returns the pairs' smaller ends and larger ends (p,)
    int32, in this order, and scores (p,) float64. Raises ValueError for another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling '{pooling}' is none of {', '.join(POOLINGS)}")
    starts = _count_by_smaller_end(a, b)
    others, grouped = _group_by_smaller_end(a, b, scores, starts)
    counts = _pool_groups(starts, others, grouped, POOLINGS.index(pooling))
    return _pack_groups(starts, others, grouped, counts)


def propagate(
    n: int,
    a: np.ndarray,
    b: np.ndarray,
    scores: np.ndarray,
    *,
    max_size: int,
    step: float,
    max_rounds: int = 0,
    threshold: float | None = None,
) -> np.ndarray:
    """Cut the components of scored links until none has more than ``max_size`` faces.

    a, b: (m,) int32 below n, the ends of the links, each pair once (see ``pool_links``); scores: (m,) float, at most
    1. threshold: th of round 0, in which it does not count yet; the lowest score if it is left out (the published
    code takes the lowest before pooling). step: above 0, at most 1. max_rounds: rounds behind round 0, 0 for no
    limit. What is still too large behind the last one becomes one component all together, as in learn-to-cluster;
    without a limit, components that are too large when the threshold has stopped rising stay as they are (the
    first release would not end).

    Returns labels (n,) int64, clusters numbered by first appearance, NO_CLUSTER for faces in no link (a link of a
    face to itself counts). The order of the links does not matter. Raises ValueError for a cap, a step or a number
    of rounds that makes no sense.
    """
    return propagate_and_tell(
        n, a, b, scores, max_size=max_size, step=step, max_rounds=max_rounds, threshold=threshold
    )[0]


def propagate_and_tell(
    n: int,
    a: np.ndarray,
    b: np.ndarray,
    scores: np.ndarray,
    *,
    max_size: int,
    step: float,
    max_rounds: int = 0,
    threshold: float | None = None,
    wanted: float = 0.0,
) -> tuple[np.ndarray, Cuts]:
    """Do as ``propagate``, and return with the labels what the cap did.

    wanted: the score that a link needs to count as one that was asked for.
    """
    if max_size < 1 or not 0 < step <= 1 or max_rounds < 0:
        raise ValueError(
            f"max_size {max_size}, step {step}, max_rounds {max_rounds}: sizes start at 1, steps lie "
            "above 0 and not above 1, rounds are not negative"
        )
    if not len(a):
        nowhere = np.full(n, NO_CLUSTER, dtype=np.int64)
        return nowhere, Cuts(nowhere.astype(np.int32), 0, False, 0)
    lowest, highest = float(scores.min()), float(scores.max())
    thresholds, ended = _rising_thresholds(
        lowest if threshold is None else threshold, highest, step, max_rounds
    )
    order = np.empty(len(scores), dtype=np.int32 if len(scores) <= np.iinfo(np.int32).max else np.int64)
    ends = _order_by_last_round(scores, thresholds, order)
    whole, final = new_forest(n), new_forest(n)
    component = np.full(n, NO_CLUSTER, dtype=np.int32)
    undivided = _join_within(a, b, order, ends, max_size, ended, whole, final, component)
    unasked = _count_unasked(a, b, scores, whole, max_size, wanted)
    labels = _labels_of_linked(final, _linked(n, a, b))
    return labels, Cuts(component, int(undivided), bool(ended), int(unasked))


@njit(cache=True, nogil=True)
def _rising_thresholds(start: float, highest: float, step: float, max_rounds: int) -> tuple[np.ndarray, bool]:
    """Return the thresholds of rounds 1, 2, ..., and whether it was ``max_rounds`` that ended them.

    They end otherwise when no score reaches them (nothing too large can be left), or when they rise no longer.
    """
    rising = [start]
    while len(rising) == 1 or rising[-1] <= highest:
        if max_rounds and len(rising) > max_rounds:
            return np.array(rising[1:]), True
        th = rising[-1] + (1 - rising[-1]) * step
        if th == rising[-1]:
            # Every further round is like this one. A limit on them would still be met.
            return np.array(rising[1:]), max_rounds > 0
        rising.append(th)
    return np.array(rising[1:]), False


@njit(cache=True, nogil=True)
def _order_by_last_round(scores: np.ndarray, thresholds: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sort links by the last round that they take part in, latest first: a counting sort.

    Fills order (m,). Returns where the links of each round end in it, (rounds + 1,), the last round first.
    """
    rounds = len(thresholds)
    last = np.empty(len(scores), dtype=np.int32)
    ends = np.zeros(rounds + 1, dtype=np.int64)
    for t in range(len(scores)):
        last[t] = np.searchsorted(thresholds, scores[t], side="right")
        ends[rounds - last[t]] += 1
    ends = np.cumsum(ends)
    free = ends.copy()
    for t in range(len(last) - 1, -1, -1):
        group = rounds - last[t]
        free[group] -= 1
        order[free[group]] = t
    return ends


@njit(cache=True, nogil=True)
def _join_within(
    a: np.ndarray,
    b: np.ndarray,
    order: np.ndarray,
    ends: np.ndarray,
    max_size: int,
    unite_rest: bool,
    whole: np.ndarray,
    final: np.ndarray,
    component: np.ndarray,
) -> int:
    """Join in ``final`` what is linked inside a component that is within the cap in the link's last round.

    ``whole`` becomes the components of round after round, from the last to round 0. A face is final in its earliest
    round of a component within the cap: all links of that component join it, and no link that ends earlier does.
    unite_rest: what is too large in the last round becomes one component; otherwise it stays as it is.

    Numbers in ``component`` (n,) the too large components without a too large part, those of the last round first.
    Returns how many are of the last round.
    """
    sizes = np.ones(len(whole), dtype=np.int32)
    holds = np.zeros(
        len(whole), dtype=np.bool_
    )  # of a root: its component holds a too large one of a round before
    number = np.full(len(whole), NO_CLUSTER, dtype=np.int32)
    count, undivided = 0, 0
    begin = 0
    for group in range(len(ends)):
        for t in order[begin : ends[group]]:
            x, y = find_root(whole, a[t]), find_root(whole, b[t])
            if x == y:
                continue
            if x > y:
                x, y = y, x
            whole[y] = x
            sizes[x] += sizes[y]
            holds[x] |= holds[y]
        rest = -1
        before = count
        for t in order[begin : ends[group]]:
            root = find_root(whole, a[t])
            if sizes[root] > max_size and not holds[root]:
                holds[root] = True
                number[root] = count
                count += 1
            if sizes[root] <= max_size:
                join_two(final, a[t], b[t])
            elif group == 0:  # too large in the last round
                join_two(final, a[t], b[t])
                if unite_rest:
                    if rest >= 0:
                        join_two(final, a[t], rest)
                    rest = a[t]
        if count > before:
            for face in range(len(whole)):
                root = find_root(whole, face)
                if number[root] >= before:
                    component[face] = number[root]
        if group == 0:
            undivided = count
        begin = ends[group]
    return undivided


@njit(cache=True, nogil=True)
def _count_unasked(
    a: np.ndarray, b: np.ndarray, scores: np.ndarray, whole: np.ndarray, max_size: int, wanted: float
) -> int:
    """Count the faces of components ``whole`` within the cap that hold a link below ``wanted``."""
    sizes = np.zeros(len(whole), dtype=np.int32)
    for face in range(len(whole)):
        sizes[find_root(whole, face)] += 1
    below = np.zeros(len(whole), dtype=np.bool_)
    for t in range(len(a)):
        if scores[t] < wanted and a[t] != b[t]:
            below[find_root(whole, a[t])] = True
    count = 0
    for root in range(len(whole)):
        if below[root] and sizes[root] <= max_size:
            count += sizes[root]
    return count


@njit(cache=True, nogil=True)
def _linked(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    linked = np.zeros(n, dtype=np.bool_)
    for t in range(len(a)):
        linked[a[t]] = True
        linked[b[t]] = True
    return linked


@njit(cache=True, nogil=True)
def _labels_of_linked(forest: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """Number the components of linked faces by their first face; NO_CLUSTER for the others."""
    labels = np.full(len(forest), NO_CLUSTER, dtype=np.int64)
    count = 0
    for face in range(len(forest)):
        if not linked[face]:
            continue
        root = find_root(forest, face)  # the component's first face
        if root == face:
            labels[face] = count
            count += 1
        else:
            labels[face] = labels[root]
    return labels


@njit(cache=True, nogil=True)
def _count_by_smaller_end(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return where the links of each smaller end begin when they are grouped by it, one entry more than ends."""
    n = 0
    for t in range(len(a)):
        n = max(n, min(a[t], b[t]) + 1)
    starts = np.zeros(n + 1, dtype=np.int64)
    for t in range(len(a)):
        starts[min(a[t], b[t]) + 1] += 1
    return np.cumsum(starts)


@njit(cache=True, nogil=True)
def _group_by_smaller_end(
    a: np.ndarray, b: np.ndarray, scores: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return larger ends (m,) int32 and scores (m,) float64 by smaller end, otherwise in the links' order."""
    free = starts[:-1].copy()
    others = np.empty(len(a), dtype=np.int32)
    grouped = np.empty(len(a), dtype=np.float64)
    for t in range(len(a)):
        x, y = min(a[t], b[t]), max(a[t], b[t])
        others[free[x]] = y
        grouped[free[x]] = scores[t]
        free[x] += 1
    return others, grouped


@njit(cache=True, nogil=True, parallel=True)
def _pool_groups(starts: np.ndarray, others: np.ndarray, grouped: np.ndarray, pooling: int) -> np.ndarray:
    """Sort each group by larger end and pool the scores of equal ones, in place, at the group's beginning.

    Returns how many pairs each group holds, (len(starts) - 1,) int32.
    """
    groups = len(starts) - 1
    counts = np.empty(groups, dtype=np.int32)
    for group in prange(groups):
        theirs = others[starts[group] : starts[group + 1]]
        order = np.argsort(theirs, kind="mergesort")  # stable: the scores of a pair stay in their order
        theirs[:] = theirs[order]
        scores = grouped[starts[group] : starts[group + 1]][order]
        count = 0
        t = 0
        while t < len(theirs):
            other = theirs[t]
            score, seen = scores[t], 1
            t += 1
            while t < len(theirs) and theirs[t] == other:
                new = scores[t]
                if pooling == 0:
                    score = (seen * score + new) / (seen + 1)
                elif pooling == 1:
                    score = 0.5 * (score + new)
                elif pooling == 2:
                    score = max(score, new)
                else:
                    score = new
                seen += 1
                t += 1
            theirs[count] = other
            grouped[starts[group] + count] = score
            count += 1
        counts[group] = count
    return counts


@njit(cache=True, nogil=True, parallel=True)
def _pack_groups(
    starts: np.ndarray, others: np.ndarray, grouped: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of all groups without the gaps between them: smaller ends, larger ends, scores."""
    ends = np.cumsum(counts.astype(np.int64))
    pairs = ends[-1] if len(ends) else 0
    a, b = np.empty(pairs, dtype=np.int32), np.empty(pairs, dtype=np.int32)
    scores = np.empty(pairs, dtype=grouped.dtype)
    for group in prange(len(counts)):
        count, begin, to = counts[group], starts[group], ends[group] - counts[group]
        for t in range(count):
            a[to + t] = group
            b[to + t] = others[begin + t]
            scores[to + t] = grouped[begin + t]
    return a, b, scores
