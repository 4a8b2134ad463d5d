"""L-GCN's sub-graphs and network by definition, in sets and loops, without padding."""

import numpy as np


def neighbors(lists, i, k1):
    """nbr(i): the first k1 + 1 entries of a list without the face itself, or without the first if it is not there."""
    row = [int(j) for j in lists[i][: k1 + 1]]
    row.remove(i if i in row else row[0])
    return row


def subgraph(lists, centre, hops, active):
    """Return the one-hop neighbors, all faces (a set), and the connected pairs of them (a set of frozensets)."""
    one_hop = neighbors(lists, centre, hops[0])
    faces = {centre, *one_hop}
    for h in one_hop:
        faces |= set(neighbors(lists, h, hops[0])[: hops[1]])
    pairs = {frozenset((i, j)) for i in faces for j in neighbors(lists, i, hops[0])[:active] if j in faces}
    return one_hop, faces, pairs


def adjacency(faces, pairs):
    """Rows over ``faces``, a list: connected faces share 1; nothing where there are none."""
    adj = np.array([[float(frozenset((i, j)) in pairs and i != j) for j in faces] for i in faces])
    sums = adj.sum(axis=1, keepdims=True)
    return np.divide(adj, sums, out=np.zeros_like(adj), where=sums > 0)


def logits(state, features, lists, centre, hops, active):
    """Logits (hops[0], 2) of the links from ``centre``, in the order of its list, in float64.

    state: the authors' state_dict as arrays; features: (n, d) as the network takes them.
    """
    p = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}
    one_hop, faces, pairs = subgraph(lists, centre, hops, active)
    faces = sorted(faces)
    adj = adjacency(faces, pairs)
    x = np.asarray(features, dtype=np.float64)[faces] - np.asarray(features, dtype=np.float64)[centre]
    x = (x - p["bn0.running_mean"]) / np.sqrt(p["bn0.running_var"] + 1e-5)
    for layer in ("conv1", "conv2", "conv3", "conv4"):
        x = np.maximum(np.hstack([x, adj @ x]) @ p[f"{layer}.weight"] + p[f"{layer}.bias"], 0)
    x = x[[faces.index(h) for h in one_hop]] @ p["classifier.0.weight"].T + p["classifier.0.bias"]
    x = np.where(x > 0, x, x * p["classifier.1.weight"])
    return x @ p["classifier.2.weight"].T + p["classifier.2.bias"]
