"""L-GCN in PyTorch: the authors' network, and the same function split into what a deployment computes.

``LGcn`` has the authors' parameter names and takes padded sub-graphs, as published. ``Encode``, ``Convolve`` and
``Score`` share its weights and together give its logits, with the means over connected faces between them (see
``decode``). What makes them equal:

- features are centred and normalised by maps that are affine, and so are both halves of conv1 before its relu: with
  f the whole, f(x_j - x_c) = f(x_j) - f(x_c) + f(0), and f(x_j) is computed once per face. The rows of A sum to one, so
  that a mean of such values has the last two terms once; a row of zeros has none of them;
- [x, A x] W = x Wa + A (x Wb), where W = [Wa; Wb]: in conv3, whose output is narrower than its input, the product
  comes before the mean;
- logits are wanted of one-hop neighbors only, so that conv4 and the classifier see no others, and each layer before
  sees the faces within one connection more;
- a row of A has about ten entries: means are sums over these, and there is no padding at all.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.systems import TorchNetwork
from fcdeploy.systems.folding import GraphConv, chain, linear, near, norm, own, split, whole
from fcdeploy.systems.l_gcn.spec import WIDTHS


class LGcn(nn.Module):
    """The published network at inference (``gcn`` of the first release, ``lgcn`` of learn-to-cluster)."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.bn0 = nn.BatchNorm1d(feature_dim, affine=False)
        first, second, third, fourth = WIDTHS
        self.conv1 = GraphConv(feature_dim, first)
        self.conv2 = GraphConv(first, second)
        self.conv3 = GraphConv(second, third)
        self.conv4 = GraphConv(third, fourth)
        self.classifier = nn.Sequential(nn.Linear(fourth, fourth), nn.PReLU(fourth), nn.Linear(fourth, 2))

    def forward(self, features: Tensor, adj: Tensor, one_hop: Tensor) -> Tensor:
        """Centred features (b, n, d), adj (b, n, n) with rows that sum to 1 or 0, one_hop (b, h) -> (b, h, 2)."""
        b, n, d = features.shape
        x = self.bn0(features.reshape(b * n, d)).reshape(b, n, d)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x, adj)
        x = torch.gather(
            x, 1, one_hop.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        )  # (b, n, 256) -> (b, h, 256)
        return self.classifier(x.reshape(-1, x.shape[-1])).reshape(b, -1, 2)


class Encode(nn.Module):
    """What a face brings to conv1 of every sub-graph it is in, before centring; (m, d) -> two tables (m, 512)."""

    def __init__(self, net: LGcn) -> None:
        super().__init__()
        self.own = linear(chain(norm(net.bn0), own(net.conv1)))
        self.near = linear(chain(norm(net.bn0), near(net.conv1)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.own(features), self.near(features)


class Convolve(nn.Module):
    """conv2, and what its output brings to conv3; (m, 2 x 512) -> two tables (m, 256)."""

    def __init__(self, net: LGcn) -> None:
        super().__init__()
        self.conv2 = linear(whole(net.conv2))
        self.own, self.near = linear(own(net.conv3)), linear(near(net.conv3))

    def forward(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """A face's output of conv1 beside the mean of those connected, (m, 1024)."""
        x = F.relu(self.conv2(first))
        return self.own(x), self.near(x)


class Score(nn.Module):
    """conv4 and the classifier; (m, 2 x 256) -> logits (m, 2)."""

    def __init__(self, net: LGcn) -> None:
        super().__init__()
        self.conv4 = linear(whole(net.conv4))
        self.classifier = net.classifier

    def forward(self, third: Tensor) -> Tensor:
        """A one-hop neighbor's output of conv3 beside the mean of those connected, (m, 512)."""
        return self.classifier(F.relu(self.conv4(third)))


def passes_from_network(net: LGcn, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the modules behind the passes of the bundle, by name, in evaluation mode."""
    return split(net, {"encode": Encode, "convolve": Convolve, "score": Score}, dtype)


def network_from_state_dict(state: dict[str, Tensor]) -> LGcn:
    """Build the network that the authors' weights belong to; the width is read off them."""
    net = LGcn(state["conv1.weight"].shape[0] // 2)
    # Only the batch counter may be missing, which inference does not read.
    net.load_state_dict(state, strict=False)
    return net.eval()


def padded_subgraphs(
    features: np.ndarray,
    ids: np.ndarray,
    centres: np.ndarray,
    hops: tuple[int, int],
    active: int,
    rows: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the inputs of ``LGcn`` from features (n, d) and lists ids (n, k), the face itself first, as published.

    Sub-graphs are padded with zeros to ``rows``, or to the largest of them. Returns centred features (b, rows, d), adj
    (b, rows, rows), both of the features' dtype, and one_hop (b, hops[0]).
    """
    ids = ids[:, : hops[0] + 1]
    members = []
    for centre in centres:
        one_hop = ids[centre, 1:]
        others = np.unique(np.append(ids[one_hop, 1 : hops[1] + 1], centre))
        members.append(np.append(one_hop, np.setdiff1d(others, one_hop)))
    rows = max(rows, *map(len, members))
    x = np.zeros((len(centres), rows, features.shape[1]), dtype=features.dtype)
    adj = np.zeros((len(centres), rows, rows), dtype=features.dtype)
    for at, (centre, faces) in enumerate(zip(centres, members, strict=True)):
        x[at, : len(faces)] = features[faces] - features[centre]
        place = np.full(len(ids), -1)
        place[faces] = np.arange(len(faces))
        to = place[ids[faces, 1 : active + 1]]
        u, q = np.nonzero(to >= 0)
        adj[at, u, to[u, q]] = adj[at, to[u, q], u] = 1
        adj[at] /= np.maximum(adj[at].sum(axis=1, keepdims=True), 1)
    one_hop = np.broadcast_to(np.arange(hops[0]), (len(centres), hops[0])).copy()
    return torch.from_numpy(x), torch.from_numpy(adj), torch.from_numpy(one_hop)


def plain_outputs(
    net: LGcn, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64 on a batch from ``parity.random_batch``; nothing is decided."""
    net = copy.deepcopy(net).double().eval()
    one, two, active = batch["hops"].tolist()
    inputs = padded_subgraphs(
        batch["features"].astype(np.float64), batch["ids"], batch["centres"], (one, two), active
    )
    with torch.inference_mode():
        return {"logits": net(*inputs).numpy()}, []


NETWORKS = {"links": TorchNetwork(network_from_state_dict, passes_from_network, plain_outputs)}
