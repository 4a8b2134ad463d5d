"""VE-GCN by definition, in dense arrays and loops, in float64."""

import numpy as np


def similarity_graph(ids, sims, k, th_sim):
    """S + I of the first k entries of lists: the larger of two weights where either face lists the other."""
    n = len(ids)
    graph = np.eye(n)
    for i in range(n):
        for j, sim in zip(ids[i, :k].tolist(), sims[i, :k].tolist(), strict=True):
            weight = 1 - float(np.float32(1) - np.float32(sim))
            if j != i and weight >= th_sim:
                graph[i, j] = max(graph[i, j], weight)
                graph[j, i] = max(graph[j, i], weight)
    return graph


def row_normalised(graph):
    return graph / graph.sum(axis=1, keepdims=True)


def convolution(state, name, x, adj):
    return np.maximum(np.hstack([x, adj @ x]) @ state[f"{name}.weight"] + state[f"{name}.bias"], 0)


def classifier(state, x):
    x = x @ state["classifier.0.weight"].T + state["classifier.0.bias"]
    x = np.where(x > 0, x, x * state["classifier.1.weight"])
    return x @ state["classifier.2.weight"].T + state["classifier.2.bias"]


def confidence(state, features, graph):
    """GCN-V on all faces: confidence (n,) and hidden features (n, h)."""
    hidden = convolution(state, "conv1", features, row_normalised(graph))
    return classifier(state, hidden)[:, 0], hidden


def higher(row, confidence, i):
    """The entries of a list that are of strictly higher confidence than face i, in its order."""
    return [j for j in row.tolist() if confidence[j] > confidence[i]]


def logits(state, features, graph, centre, members):
    """GCN-E's logits (c, 2) of the candidates ``members`` of a centre."""
    x = features[members] - features[centre]
    adj = row_normalised(graph[np.ix_(members, members)])
    for name in ("conv1", "conv2", "conv3", "conv4"):
        x = convolution(state, name, x, adj)
    return classifier(state, x)


def peaks(ids, confidence, ignored, scored):
    """Whom each face links to, -1 where nobody: the nearest of higher confidence, or the best of several.

    scored(i, members): logits of the candidates of a face that is not ignored.
    """
    found = np.full(len(ids), -1)
    for i in range(len(ids)):
        members = higher(ids[i], confidence, i)
        if members:
            found[i] = members[0]
        if len(members) > 1 and i not in ignored:
            z = scored(i, members)
            found[i] = members[int(np.argmax(z[:, 1] - z[:, 0]))]
    return found
