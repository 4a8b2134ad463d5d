"""GCN-D by definition: sets of faces, every pair of proposals, one graph at a time."""

import numpy as np


def similar_pairs(ids, sims, k, threshold):
    """{(i, j): similarity}, i < j, one in the other's first k at the threshold or more; the smaller id's list first."""
    pairs = {}
    for face in range(len(ids)):
        for other, sim in zip(ids[face, :k].tolist(), sims[face, :k].tolist(), strict=True):
            if other >= 0 and other != face and sim >= threshold:
                pairs.setdefault((min(face, other), max(face, other)), sim)
    return pairs


def adjacency(members, k, ids, sims, weighted):
    """The graph among members (a list), rows divided by their sums, float64; and the sums."""
    place = {face: at for at, face in enumerate(members)}
    adj = np.eye(len(members))
    seen = set()
    for face in members:
        for other, sim in zip(ids[face, :k].tolist(), sims[face, :k].tolist(), strict=True):
            pair = (min(face, other), max(face, other))
            if other in place and other != face and pair not in seen:
                seen.add(pair)
                weight = sim if weighted else 1.0
                adj[place[face], place[other]] = adj[place[other], place[face]] = weight
    sums = adj.sum(axis=1)
    return adj / sums[:, None], sums


def suppress(proposals, max_iou):
    """Indices of the proposals (sets, best first) that stay, comparing every pair."""
    kept = []
    for at, faces in enumerate(proposals):
        if all(len(faces & proposals[k]) / len(faces | proposals[k]) <= max_iou for k in kept):
            kept.append(at)
    return kept


def owner_of_faces(n, proposals):
    """For each face the first of the proposals (sets, best first) that holds it, -1 without one."""
    return [next((at for at, faces in enumerate(proposals) if face in faces), -1) for face in range(n)]


def score(state, x, adj, reduce="max"):
    """The network's score of one graph, float64: x (n, d) and adj (n, n); of every node's two classes if it has two."""
    state = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}
    x, adj = np.asarray(x, np.float64), np.asarray(adj, np.float64)
    n = len(x)
    degree = [sum(adj[i, j] for j in range(n)) for i in range(n)]
    layer = 0
    while f"layers.{layer}.gc.weight" in state:
        product = x @ state[f"layers.{layer}.gc.weight"]
        x = np.stack([sum(adj[i, j] * product[j] for j in range(n)) / degree[i] for i in range(n)])
        x = np.maximum(x, 0)
        layer += 1
    weight, bias = state["classifier.weight"], state["classifier.bias"]
    if len(bias) == 2:
        logits = x @ weight.T + bias
        return np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    pooled = {"max": np.max, "mean": np.mean, "sum": np.sum}[reduce](x, axis=0)
    return float((weight @ pooled + bias)[0])


def propagated_score(state, x, adj, times, reduce="max"):
    """The score of a network that only averages features over the graph."""
    state = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}
    x, adj = np.asarray(x, np.float64), np.asarray(adj, np.float64)
    for _ in range(times):
        x = np.stack([sum(adj[i, j] * x[j] for j in range(len(x))) / adj[i].sum() for i in range(len(x))])
    pooled = {"max": np.max, "mean": np.mean, "sum": np.sum}[reduce](x, axis=0)
    return float((state["classifier.weight"] @ pooled + state["classifier.bias"])[0])


def without_outliers(proposals, scores, probabilities, th_outlier, keep_outlier):
    """Ranked sets after segmentation: members above the threshold, then, if kept, the others in the same order."""
    order = sorted(range(len(scores)), key=lambda p: -scores[p])
    inside, outside = [], []
    for p in order:
        sure = {face for face, prob in zip(proposals[p], probabilities[p], strict=True) if prob > th_outlier}
        inside.append(sure)
        outside.append(set(proposals[p]) - sure)
    return [faces for faces in inside + (outside if keep_outlier else []) if faces]
