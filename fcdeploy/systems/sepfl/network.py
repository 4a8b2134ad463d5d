"""SEPFL in PyTorch: the authors' network, and the same function split into what a deployment computes.

``Sepfl`` has the authors' parameter names and takes both faces of a link with all their neighbors, as published.
``Near``, ``Encode`` and ``Pair`` share its weights and together give its logits. What makes them equal:

- a face's own branch does not see the other face: it is computed once per face, not once per link;
- the channel mixer starts with [x, xk] W = x Wa + xk Wb, where W = [Wa; Wb]: both products are per face, and
  ``Near`` gives the second;
- a BatchNorm with running statistics is an affine map and folds into a Linear before or behind it; what the token
  mixer adds to all features of a neighbor, into the bias of the attention layer (in float64, rounded once);
- mixing along the neighbors is a product from the left, so that nothing is transposed.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.systems import TorchNetwork
from fcdeploy.systems.folding import affine, chain, columns, linear, norm, product, split

THRESHOLD = 0.0  # of logit 1 less logit 0


class Sepfl(nn.Module):
    """The published network at inference (``pairwise_classify``)."""

    def __init__(self, feature_dim: int, k: int) -> None:
        super().__init__()
        d, h = feature_dim, 2 * feature_dim
        self.feature_dim, self.k = d, k
        self.channel_bn, self.token_bn, self.attention_bn = (nn.BatchNorm1d(h) for _ in range(3))
        self.channel_mix = nn.Sequential(nn.Linear(h, 2 * h), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * h, h))
        self.token_mix = nn.Sequential(nn.Linear(k, 2 * k), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * k, k))
        self.attention_layer = nn.Sequential(nn.Linear(h, d), nn.GELU(), nn.Dropout(0.2), nn.Linear(d, 1))
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(2 * h),
            nn.Linear(2 * h, h),
            nn.BatchNorm1d(h),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(h, d),
            nn.BatchNorm1d(d),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(d, 2),
        )

    def forward(self, face: Tensor, neighbors: Tensor, denser: Tensor, denser_neighbors: Tensor) -> Tensor:
        """Faces of a link (m, d) and the neighbors of each (m, k, d) -> logits (m, 2)."""
        return self.classifier(
            torch.cat([self.branch(face, neighbors), self.branch(denser, denser_neighbors)], dim=-1)
        )

    def branch(self, x: Tensor, xk: Tensor, first: Tensor | None = None) -> Tensor:
        """x (b, d), xk (b, k, d) -> (b, 2d); first: (b, k, 4d), what the first layer gives, where it is known."""
        z = torch.cat([x.unsqueeze(1).expand_as(xk), xk], dim=-1)  # (b, k, 2d)
        first = self.channel_mix[0](z) if first is None else first
        mixed = self.channel_mix[1:](first)
        z = z + self.channel_bn(mixed.flatten(0, 1)).view_as(mixed)
        zt = z.transpose(1, 2)  # (b, k, 2d) -> (b, 2d, k)
        zt = zt + self.token_bn(self.token_mix(zt))
        w = self.attention_layer(self.attention_bn(zt).transpose(1, 2))  # (b, k, 1)
        return torch.cat([x, (w * xk).sum(dim=1)], dim=-1)


class Near(nn.Module):
    """What a face brings to the channel mixer of every face that it is a neighbor of; (m, d) -> (m, 4d)."""

    def __init__(self, net: Sepfl) -> None:
        super().__init__()
        d = net.feature_dim
        self.near = linear(columns(net.channel_mix[0], d, 2 * d))

    def forward(self, features: Tensor) -> Tensor:
        return self.near(features)


class Encode(nn.Module):
    """A face with what it attends to among its neighbors; published as the branch of either face."""

    def __init__(self, net: Sepfl) -> None:
        super().__init__()
        self.own = linear(columns(net.channel_mix[0], 0, net.feature_dim, bias=True))
        self.channels = linear(chain(affine(net.channel_mix[3]), norm(net.channel_bn)))
        into, into_bias = affine(net.token_mix[0])
        out, out_bias = affine(net.token_mix[3])
        self.tokens_in = nn.Parameter(into.T.contiguous())  # (2k, k)
        self.tokens_in_bias = nn.Parameter(into_bias[:, None].contiguous())
        self.tokens_out = nn.Parameter(out.T.contiguous())  # (k, 2k)
        scale, shift = norm(net.token_bn)
        self.tokens_scale = nn.Parameter(scale)
        attention = chain(norm(net.attention_bn), affine(net.attention_layer[0]))
        self.attention = linear(product(attention[0]))
        # What is added to neighbor p's features behind the token mixer: scale * out_bias[p] + shift.
        self.attention_bias = nn.Parameter(
            (out_bias[:, None] * scale + shift) @ attention[0] + attention[1]  # (k, d)
        )
        self.weights = linear(affine(net.attention_layer[3]))

    def forward(self, features: Tensor, neighbors: Tensor, near: Tensor) -> Tensor:
        """features (b, d), neighbors (b, k, d), near (b, k, 4d) of the neighbors -> (b, 2d)."""
        mixed = self.channels(F.gelu(self.own(features).unsqueeze(1) + near))  # (b, k, 2d)
        z = torch.cat([features.unsqueeze(1).expand_as(neighbors), neighbors], dim=-1) + mixed
        mixed = self.tokens_out @ F.gelu(self.tokens_in @ z + self.tokens_in_bias)  # (b, k, 2d)
        z = z + self.tokens_scale * mixed
        w = self.weights(F.gelu(self.attention(z) + self.attention_bias))  # (b, k, 1)
        return torch.cat([features, (w * neighbors).sum(dim=1)], dim=-1)


class Pair(nn.Module):
    """Are the two faces of a link the same person? Logits (m, 2) of no and yes."""

    def __init__(self, net: Sepfl) -> None:
        super().__init__()
        norm0, linear1, norm2, _, _, linear5, norm6, _, _, linear9 = net.classifier
        self.first = linear(chain(norm(norm0), affine(linear1), norm(norm2)))
        self.second = linear(chain(affine(linear5), norm(norm6)))
        self.third = linear(affine(linear9))

    def forward(self, face: Tensor, denser: Tensor) -> Tensor:
        """Encoded faces (m, 2d) and their denser neighbors (m, 2d) -> (m, 2)."""
        return self.third(F.gelu(self.second(F.gelu(self.first(torch.cat([face, denser], dim=-1))))))


def passes_from_network(net: Sepfl, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the modules behind the passes of the bundle, by name, in evaluation mode."""
    makers = {"near": Near, "encode": Encode, "pair": Pair}
    return split(net, makers, dtype)


def network_from_state_dict(state: dict[str, Tensor]) -> Sepfl:
    """Build the network that the authors' weights belong to; d and k are read off them."""
    net = Sepfl(state["classifier.0.weight"].shape[0] // 4, state["token_mix.0.weight"].shape[1])
    # Only the batch counters may be missing, which inference does not read.
    net.load_state_dict(state, strict=False)
    return net.eval()


def plain_outputs(
    net: Sepfl, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64 on a batch from ``parity.random_batch``.

    Returns the outputs by name and by how much logit 1 is above logit 0, which decides whether a link is accepted.
    """
    net = copy.deepcopy(net).double().eval()
    with torch.inference_mode():
        features, neighbors = (torch.from_numpy(batch[name]).double() for name in ("features", "neighbors"))
        logits = net(features[0], neighbors[0], features[1], neighbors[1]).numpy()
    return {"logits": logits}, [logits[:, 1] - logits[:, 0]]


NETWORKS = {"pairwise": TorchNetwork(network_from_state_dict, passes_from_network, plain_outputs, THRESHOLD)}
