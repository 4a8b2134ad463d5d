"""NSR-FC's densities, distances and links by definition: dense matrices and loops."""

import math

import numpy as np


def shares(dists, sigma):
    """exp(-d / sigma) of each row over its sum plus 1e-5."""
    weights = [[math.exp(-float(d) / sigma) for d in row] for row in dists]
    return [[weight / (sum(row) + 1e-5) for weight in row] for row in weights]


def density(ids, dists, sigma, k):
    """What each face is given by the first k entries of all lists."""
    received = np.zeros(len(ids))
    for row, given in zip(ids, shares([row[:k] for row in dists], sigma), strict=True):
        for face, share in zip(row, given, strict=False):
            received[face] += share
    return received


def transitions(ids, dists, sigma):
    """1 - sum over the faces in both lists of sqrt(P_im P_jm), for each face i and its neighbors j."""
    n = len(ids)
    dense = np.zeros((n, n))
    for i, row in enumerate(shares(dists, sigma)):
        dense[i, ids[i]] = row
    alike = np.sqrt(dense) @ np.sqrt(dense).T
    return np.array([[1 - alike[i, j] for j in ids[i]] for i in range(n)])


def peaks(ids, dists, density, most):
    """Each face's nearest others that are at least as dense: [(face, distance), ...], at most ``most``."""
    found = []
    for i in range(len(ids)):
        order = sorted(range(len(ids[i])), key=lambda p, i=i: (dists[i][p], p))
        ones = [(int(ids[i][p]), dists[i][p]) for p in order if ids[i][p] != i]
        found.append([(j, d) for j, d in ones if density[j] >= density[i]][:most])
    return found


def pair_links(ids, sims, scores, weights):
    """Density, candidates {face: neighbor}, certain links and their threshold, over an n x n matrix of scores."""
    n, k = ids.shape
    dense = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        dense[i, ids[i]] = scores[i]
    mean = (dense + dense.T).astype(np.float64) / 2
    strength = np.array(
        [[mean[i, j] * float(s) for j, s in zip(ids[i], sims[i], strict=True)] for i in range(n)]
    )
    density = strength[:, 1:].sum(axis=1)
    best = [sorted(map(float, row[1:]))[k - 1 - len(weights) :] for row in sims]
    mean_of = [sum(w * s for w, s in zip(weights, row, strict=True)) / sum(weights) for row in best]
    threshold = sum(mean_of) / n
    candidates, certain = {}, set()
    for i in range(n):
        denser = [p for p in range(1, k) if density[ids[i, p]] > density[ids[i, 0]]]
        positive = [p for p in denser if strength[i, p] > 0]
        top = max(positive, key=lambda p, i=i: (strength[i, p], -p), default=None)
        if top is not None:
            candidates[i] = int(ids[i, top])
        certain |= {
            (min(i, int(ids[i, p])), max(i, int(ids[i, p])))
            for p in denser
            if p != top and strength[i, p] >= threshold
        }
    return density, candidates, certain, threshold
