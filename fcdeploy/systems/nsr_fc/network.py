"""NSR-FC in PyTorch: the authors' networks, and the same functions split into what a deployment computes.

``Rescore``, ``Lce`` and ``Pce`` have the authors' parameter names; attention is written out in matrix products, so
that it is exported as written. The refinement is PSE-GCN's. The passes share the networks' weights; what makes them
equal:

- the re-scoring attends across a batch's faces at one position of their lists at a time: positions do not see each
  other before the head, and are computed a few at a time with the first one's output beside them;
- [y0, yj] W = y0 Wa + yj Wb, where W = [Wa; Wb]: the first product is per face;
- Gram matrices are products of the gathered features, made in the graph;
- of PCENet's last layer only the two rows that are read on are computed.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.systems import TorchNetwork
from fcdeploy.systems.folding import Net, columns, linear, split
from fcdeploy.systems.nsr_fc.spec import HEADS
from fcdeploy.systems.pse_gcn.network import NETWORKS as PSE_NETWORKS

THRESHOLD = 0.0  # of logit 1 less logit 0


class Attention(nn.Module):
    """Multi-head attention along the last axis but one (``nn.MultiheadAttention``)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (t, r, d), key and value (t, s, d) -> (t, r, d)."""
        width = self.out_proj.in_features
        scale = (width // HEADS) ** -0.5
        q, k, v = (
            F.linear(x, self.in_proj_weight[at : at + width], self.in_proj_bias[at : at + width])
            .reshape(x.shape[0], x.shape[1], HEADS, width // HEADS)
            .transpose(1, 2)  # (t, s, d) -> (t, heads, s, d / heads)
            for at, x in zip((0, width, 2 * width), (query, key, value), strict=True)
        )
        weights = torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1)  # (t, heads, r, s)
        mixed = (weights @ v).transpose(1, 2).reshape(query.shape)
        return self.out_proj(mixed)


class Layer(nn.Module):
    """One layer of an encoder, its norms in front or behind; dropout is nothing at inference."""

    def __init__(self, width: int, ff: int, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = Attention(width)
        self.linear1 = nn.Linear(width, ff)
        self.linear2 = nn.Linear(ff, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, code: Tensor | None = None, rows: tuple[int, ...] | None = None) -> Tensor:
        """x (t, s, d) -> (t, s, d), or only some rows of it, (t, r, d); code: added to query and key only."""
        value = self.norm1(x) if self.norm_first else x
        key = value if code is None else value + code
        query = key
        if rows is not None:
            x, query = (torch.stack([table[:, row] for row in rows], dim=1) for table in (x, key))
        x = x + self.self_attn(query, key, value)
        if self.norm_first:
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x)
        return self.norm2(x + self.feed_forward(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))


class Encoder(nn.Module):
    """Layers one behind the other; ``final``: a norm behind the last."""

    def __init__(self, width: int, ff: int, layers: int, *, norm_first: bool, final: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(width, ff, norm_first) for _ in range(layers)])
        self.norm = nn.LayerNorm(width) if final else None

    def forward(self, x: Tensor, code: Tensor | None = None, rows: tuple[int, ...] | None = None) -> Tensor:
        """See ``Layer``; rows: of the last layer's output."""
        for at, layer in enumerate(self.layers):
            x = layer(x, code, rows if at == len(self.layers) - 1 else None)
        return x if self.norm is None else self.norm(x)


class Rescore(nn.Module):
    """The re-scoring transformer as published (``TransformerBased``).

    Its attention takes the first axis for the sequence: it runs across the faces of a batch, at each position of
    their lists. The norms stand behind attention and feed-forward, or in front where the checkpoint has a final norm
    (``normalize_before``).
    """

    def __init__(self, dim: int, ff: int, layers: int, final: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.encoder = Encoder(dim, ff, layers, norm_first=final, final=final)
        self.clf = nn.Sequential(
            nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, 1)
        )

    def forward(self, features: Tensor, code: Tensor, across_neighbors: bool = False) -> Tensor:
        """Features of the neighbors of a batch of faces (b, k, d), code (k, d) -> logits (b, k).

        across_neighbors: attend across the k neighbors of each face instead of across the b faces.
        """
        if across_neighbors:
            y = self.encoder(features, code)
        else:
            y = self.encoder(features.transpose(0, 1), code[:, None, :]).transpose(0, 1)
        pairs = torch.cat([y[:, :1].expand_as(y), y], dim=-1)  # (b, k, 2d)
        return self.clf(pairs).squeeze(-1)


class Lce(nn.Module):
    """LCENet as published: which neighbors of a face are the same person?"""

    def __init__(self, dim: int, k: int, ff: int, layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.encoder = Encoder(dim + k, ff, layers, norm_first=True)
        self.classifier = nn.Sequential(nn.Linear(2 * (dim + k), dim), nn.PReLU(), nn.Linear(dim, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Features of each face's neighbors, itself first, (b, k, d) -> logits (b, k, 2)."""
        y = self.encoder(with_gram(features))
        return self.classifier(torch.cat([y[:, :1].expand_as(y), y], dim=-1))


class Pce(nn.Module):
    """PCENet as published: are the two faces of a link the same person?"""

    def __init__(self, dim: int, k: int, ff: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.k = dim, k
        self.encoder = Encoder(dim + 2 * k, ff, layers, norm_first=True)
        self.adjust_dim = nn.Sequential(nn.Linear(dim + 2 * k, dim), nn.PReLU(), nn.Linear(dim, dim))
        self.classifier = nn.Sequential(
            nn.Linear(4 * dim, hidden),
            nn.PReLU(),
            nn.Linear(hidden, hidden),
            nn.PReLU(),
            nn.Linear(hidden, 2),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of both faces' neighbors, one list behind the other, (b, 2k, d) -> logits (b, 2)."""
        y = self.encoder(with_gram(features))
        return self.head(features, torch.stack([y[:, 0], y[:, self.k]], dim=1))

    def head(self, features: Tensor, y: Tensor) -> Tensor:
        """features (b, 2k, d), y (b, 2, d + 2k) of the two faces -> (b, 2)."""
        y = self.adjust_dim(y)
        return self.classifier(torch.cat([features[:, 0], y[:, 0], features[:, self.k], y[:, 1]], dim=-1))


def with_gram(features: Tensor) -> Tensor:
    """Join rows with their products with all rows: (b, s, d) -> (b, s, d + s)."""
    return torch.cat([features, features @ features.transpose(1, 2)], dim=-1)


class Split(nn.Module):
    """A Linear on [a, b], as two: (W a + bias) and (W b)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        width = layer.in_features // 2
        self.own = linear(columns(layer, 0, width, bias=True))
        self.other = linear(columns(layer, width, 2 * width))


class RescoreFirst(nn.Module):
    """What a face brings to the scores of all its neighbors: the first position of a batch."""

    def __init__(self, net: Rescore) -> None:
        super().__init__()
        self.net, self.pair = net, Split(net.clf[0])
        # sin 0 and cos 0: the code of position 0.
        self.register_buffer("code_of_0", torch.arange(net.dim).remainder(2).to(net.clf[0].weight.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the first neighbors of the whole batch (s, d) -> (s, d)."""
        return self.pair.own(self.net.encoder(features.unsqueeze(0), self.code_of_0).squeeze(0))


class RescoreAt(nn.Module):
    """Scores of a batch's neighbors at some positions of their lists."""

    def __init__(self, net: Rescore) -> None:
        super().__init__()
        self.net, self.pair = net, Split(net.clf[0])

    def forward(self, features: Tensor, code: Tensor, first: Tensor) -> Tensor:
        """features (p, s, d), code (p, d), first (s, d) -> logits (p, s)."""
        y = self.net.encoder(features, code.unsqueeze(1))
        return self.net.clf[1:](first + self.pair.other(y)).squeeze(-1)


class RescoreNeighbors(nn.Module):
    """Scores of each face's neighbors, which attend to each other: no other face matters."""

    def __init__(self, net: Rescore) -> None:
        super().__init__()
        self.net, self.pair = net, Split(net.clf[0])

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """features (b, k, d), code (k, d) -> logits (b, k)."""
        y = self.net.encoder(features, code)
        return self.net.clf[1:](self.pair.own(y[:, :1]) + self.pair.other(y)).squeeze(-1)


class Connect(nn.Module):
    """LCENet with the centre's half of the head once per face."""

    def __init__(self, net: Lce) -> None:
        super().__init__()
        self.net, self.pair = net, Split(net.classifier[0])

    def forward(self, features: Tensor) -> Tensor:
        """features (b, k, d) -> logits (b, k, 2)."""
        y = self.net.encoder(with_gram(features))
        return self.net.classifier[1:](self.pair.own(y[:, :1]) + self.pair.other(y))


class Confirm(nn.Module):
    """PCENet with its last layer for the two faces of the link only."""

    def __init__(self, net: Pce) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor) -> Tensor:
        """features (b, 2k, d) -> logits (b, 2)."""
        y = self.net.encoder(with_gram(features), rows=(0, self.net.k))
        return self.net.head(features, y)


def rescore_from_state_dict(state: dict[str, Tensor]) -> Rescore:
    """Build the re-scoring network that the authors' weights belong to; its widths are read off them."""
    ff, dim = state["encoder.layers.0.linear1.weight"].shape
    return _loaded(Rescore(dim, ff, _layers(state), "encoder.norm.weight" in state), state)


def lce_from_state_dict(state: dict[str, Tensor]) -> Lce:
    """Build the LCENet that the authors' weights belong to; d and k are read off them."""
    ff, width = state["encoder.layers.0.linear1.weight"].shape
    dim = state["classifier.0.weight"].shape[0]
    return _loaded(Lce(dim, width - dim, ff, _layers(state)), state)


def pce_from_state_dict(state: dict[str, Tensor]) -> Pce:
    """Build the PCENet that the authors' weights belong to; d and k are read off them."""
    ff, width = state["encoder.layers.0.linear1.weight"].shape
    dim, hidden = state["adjust_dim.0.weight"].shape[0], state["classifier.0.weight"].shape[0]
    return _loaded(Pce(dim, (width - dim) // 2, ff, _layers(state), hidden), state)


def _layers(state: dict[str, Tensor]) -> int:
    return sum(name.startswith("encoder.layers.") and name.endswith(".norm1.weight") for name in state)


def _loaded(net: Net, state: dict[str, Tensor]) -> Net:
    net.load_state_dict(state)
    return net.eval()


def rescore_passes(net: Rescore, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the modules behind the re-scoring's passes, by name: the batch-wise form, and the neighbor-wise one."""
    makers = {"rescore_first": RescoreFirst, "rescore": RescoreAt, "rescore_neighbors": RescoreNeighbors}
    return split(net, makers, dtype)


def lce_passes(net: Lce, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the module behind LCENet's pass, by name."""
    return split(net, {"connect": Connect}, dtype)


def pce_passes(net: Pce, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the module behind PCENet's pass, by name."""
    return split(net, {"confirm": Confirm}, dtype)


def plain_rescore(
    net: Rescore, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64 on a batch from ``parity``: both ways to attend; it decides nothing."""
    net = copy.deepcopy(net).double().eval()
    features, code = (torch.from_numpy(batch[name]).double() for name in ("features", "code"))
    with torch.inference_mode():
        return {
            "logits": net(features, code).numpy(),
            "logits_neighbors": net(features, code, across_neighbors=True).numpy(),
        }, []


def plain_pairs(
    net: Lce | Pce, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64: logits, and by how much logit 1 is above logit 0, which decides."""
    net = copy.deepcopy(net).double().eval()
    with torch.inference_mode():
        logits = net(torch.from_numpy(batch["features"]).double()).numpy()
    return {"logits": logits}, [logits[..., 1] - logits[..., 0]]


NETWORKS = {
    "refine": PSE_NETWORKS["refine"],
    "rescore": TorchNetwork(rescore_from_state_dict, rescore_passes, plain_rescore),
    "lce": TorchNetwork(lce_from_state_dict, lce_passes, plain_pairs, THRESHOLD),
    "pce": TorchNetwork(pce_from_state_dict, pce_passes, plain_pairs, THRESHOLD),
}
