"""GCN-V and GCN-E in PyTorch: the authors' networks, and the same functions split into what a deployment computes.

``GcnV`` and ``GcnE`` have the authors' parameter names and take a dense graph, as published. ``Confidence`` is all of
GCN-V behind the mean over a face's edges (see ``edges``). ``Encode``, ``Convolve`` and ``Score`` share GCN-E's weights
and together give its logits, with the means over connected candidates between them (see ``decode``): L-GCN's split,
without its normalisation. What makes them equal:

- both halves of conv1 before its relu are affine maps f of x_j - x_c: f(x_j - x_c) = f(x_j) - f(x_c) + f(0), and f(x_j)
  is computed once per face. The rows of A sum to one, so that a mean of such values has the last two terms once;
- [x, A x] W = x Wa + A (x Wb), where W = [Wa; Wb]: in conv3, whose output is narrower than its input, the product
  comes before the mean.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.systems import TorchNetwork
from fcdeploy.systems.folding import GraphConv, linear, near, own, split, whole


def classifier(width: int, classes: int) -> nn.Sequential:
    """Return the layers behind the convolutions of either network."""
    return nn.Sequential(nn.Linear(width, width), nn.PReLU(width), nn.Linear(width, classes))


class GcnV(nn.Module):
    """The published network of confidences (``gcn_v``)."""

    def __init__(self, feature_dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = GraphConv(feature_dim, hidden)
        self.classifier = classifier(hidden, 1)

    def forward(self, features: Tensor, adj: Tensor) -> tuple[Tensor, Tensor]:
        """All faces: features (n, d), adj (n, n) with rows that sum to 1 -> confidence (n,), hidden (n, h)."""
        hidden = self.conv1(features, adj)
        return self.classifier(hidden).squeeze(-1), hidden


class GcnE(nn.Module):
    """The published network of connectivity (``gcn_e``)."""

    def __init__(self, feature_dim: int, hidden: int) -> None:
        super().__init__()
        half = hidden // 2
        self.conv1 = GraphConv(feature_dim, hidden)
        self.conv2 = GraphConv(hidden, hidden)
        self.conv3 = GraphConv(hidden, half)
        self.conv4 = GraphConv(half, half)
        self.classifier = classifier(half, 2)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        """Candidates of one centre, centred: x (n, d), adj (n, n) with rows that sum to 1 -> logits (n, 2)."""
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x, adj)
        return self.classifier(x)


class Confidence(nn.Module):
    """GCN-V of faces beside the means over their edges; (m, d) each -> confidence (m,), hidden (m, h)."""

    def __init__(self, net: GcnV) -> None:
        super().__init__()
        self.own, self.near = linear(own(net.conv1)), linear(near(net.conv1))
        self.classifier = net.classifier

    def forward(self, features: Tensor, connected: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.own(features) + self.near(connected))
        return self.classifier(hidden).squeeze(-1), hidden


class Encode(nn.Module):
    """What a face brings to conv1 wherever it is a candidate, before centring; (m, d) -> two tables (m, h)."""

    def __init__(self, net: GcnE) -> None:
        super().__init__()
        self.own, self.near = linear(own(net.conv1)), linear(near(net.conv1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.own(features), self.near(features)


class Convolve(nn.Module):
    """conv2, and what its output brings to conv3; (m, 2 h) -> two tables (m, h / 2)."""

    def __init__(self, net: GcnE) -> None:
        super().__init__()
        self.conv2 = linear(whole(net.conv2))
        self.own, self.near = linear(own(net.conv3)), linear(near(net.conv3))

    def forward(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """A candidate's output of conv1 beside the mean of those connected, (m, 2 h)."""
        x = F.relu(self.conv2(first))
        return self.own(x), self.near(x)


class Score(nn.Module):
    """conv4 and the classifier; (m, h) -> logits (m, 2)."""

    def __init__(self, net: GcnE) -> None:
        super().__init__()
        self.conv4 = linear(whole(net.conv4))
        self.classifier = net.classifier

    def forward(self, third: Tensor) -> Tensor:
        """A candidate's output of conv3 beside the mean of those connected, (m, h)."""
        return self.classifier(F.relu(self.conv4(third)))


def vertex_from_state_dict(state: dict[str, Tensor]) -> GcnV:
    """Build the GCN-V that the authors' weights belong to; widths are read off them."""
    rows, hidden = state["conv1.weight"].shape
    net = GcnV(rows // 2, hidden)
    net.load_state_dict(state)
    return net.eval()


def edge_from_state_dict(state: dict[str, Tensor]) -> GcnE:
    """Build the GCN-E that the authors' weights belong to; widths are read off them."""
    rows, hidden = state["conv1.weight"].shape
    net = GcnE(rows // 2, hidden)
    net.load_state_dict(state)
    return net.eval()


def vertex_passes(net: GcnV, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the module behind GCN-V's pass, by name, in evaluation mode."""
    return split(net, {"confidence": Confidence}, dtype)


def edge_passes(net: GcnE, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the modules behind GCN-E's passes, by name, in evaluation mode."""
    return split(net, {"encode": Encode, "convolve": Convolve, "score": Score}, dtype)


def similarity_graph(ids: np.ndarray, sims: np.ndarray, th_sim: float = 0.0) -> np.ndarray:
    """Return S + I of lists (n, k), as published: (n, n) float64."""
    n = len(ids)
    weights = np.zeros((n, n))
    for i in range(n):
        for j, sim in zip(ids[i], sims[i], strict=True):
            weight = 1 - np.float64(np.float32(1) - np.float32(sim))
            if j != i and weight >= th_sim:
                weights[i, j] = weight
    return np.maximum(weights, weights.T) + np.eye(n)


def row_normalised(graph: np.ndarray) -> np.ndarray:
    """Divide each row by its sum."""
    return graph / graph.sum(axis=1, keepdims=True)


def plain_vertex(
    net: GcnV, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64 on faces from ``parity.vertex_batch``; nothing is decided."""
    net = copy.deepcopy(net).double().eval()
    adj = row_normalised(similarity_graph(batch["ids"], batch["sims"]))
    with torch.inference_mode():
        confidence, hidden = net(torch.from_numpy(batch["features"]).double(), torch.from_numpy(adj))
    return {"confidence": confidence.numpy(), "hidden": hidden.numpy()}, []


def plain_edge(net: GcnE, batch: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64 on centres from ``parity.edge_batch``; nothing is decided."""
    net = copy.deepcopy(net).double().eval()
    features = torch.from_numpy(batch["features"]).double()
    graph = similarity_graph(batch["ids"], batch["sims"])
    logits = []
    for centre, members in zip(batch["centres"].tolist(), batch["candidates"], strict=True):
        adj = torch.from_numpy(row_normalised(graph[np.ix_(members, members)]))
        with torch.inference_mode():
            logits.append(net(features[members] - features[centre], adj).numpy())
    return {"logits": np.stack(logits)}, []


# Whoever links to whom is decided outside of the passes, by confidences and by similarities of hidden features.
DECIDING = {"confidence": ("confidence", "hidden")}
NETWORKS = {
    "vertex": TorchNetwork(vertex_from_state_dict, vertex_passes, plain_vertex, deciding=DECIDING),
    "edge": TorchNetwork(edge_from_state_dict, edge_passes, plain_edge),
}
