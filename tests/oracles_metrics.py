"""The measures by definition, pair by pair and face by face: too simple to be wrong, too slow to use."""

import itertools
import math
from collections import Counter
from fractions import Fraction


def pairs_together(labels):
    """Name every unordered pair of faces that share a label; -1 is shared with nobody."""
    faces = itertools.combinations(range(len(labels)), 2)
    return {(i, j) for i, j in faces if labels[i] == labels[j] != -1}


def f_score(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pairwise(pred, truth):
    claimed, true = pairs_together(pred), pairs_together(truth)
    precision = Fraction(len(claimed & true), len(claimed)) if claimed else 1
    recall = Fraction(len(claimed & true), len(true)) if true else 1
    return {"precision": precision, "recall": recall, "f": f_score(precision, recall)}


def cluster_of(face, labels):
    return {other for other in range(len(labels)) if other == face or labels[other] == labels[face] != -1}


def bcubed(pred, truth):
    n = len(pred)
    precision = recall = Fraction(0)
    for face in range(n):
        found, true = cluster_of(face, pred), cluster_of(face, truth)
        precision += Fraction(len(found & true), len(found)) / n
        recall += Fraction(len(found & true), len(true)) / n
    return {"precision": precision, "recall": recall, "f": f_score(precision, recall)}


def ari(pred, truth):
    """(index - expected) / (mean of the maxima - expected): Hubert and Arabie 1985, equation 5."""
    claimed, true = len(pairs_together(pred)), len(pairs_together(truth))
    both = len(pairs_together(pred) & pairs_together(truth))
    if claimed == true == both:
        return 1
    expected = Fraction(claimed * true, math.comb(len(pred), 2))
    return (both - expected) / (Fraction(claimed + true, 2) - expected)


def nmi(pred, truth):
    n = len(pred)
    groups = [[frozenset(cluster_of(face, labels)) for face in range(n)] for labels in (pred, truth)]

    def entropy(groups):
        return math.fsum(count / n * math.log(n / count) for count in Counter(groups).values())

    entropies = entropy(groups[0]) + entropy(groups[1])
    if not entropies:
        return 1.0
    return 2 * (entropies - entropy(list(zip(*groups, strict=True)))) / entropies
