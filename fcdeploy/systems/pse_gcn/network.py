"""PSE-GCN in PyTorch: the authors' network, and the same function split into what a deployment computes.

``PseGcn`` has the authors' parameter names and computes every node of a padded neighborhood, as published.
``Encode`` and ``Refine`` share its weights and together give its centre row: ``Encode`` does, once per face, all that
happens before a face meets its neighborhood; ``Refine`` does the rest for one centre. What makes them equal:

- the padding is masked out, so a neighborhood needs no more rows than it has faces;
- [x, A x] W = x Wa + A (x Wb), where W = [Wa; Wb]: both products are per face;
- a BatchNorm with running statistics is an affine map and folds into the Linear behind it, and a Linear behind a
  Linear folds, too (done in float64, rounded once);
- only the centre's row of the second block's similarity, convolution and output is kept.

Layer-wise inference is another function of the same weights: every face goes through each block once, in its own
neighborhood, so what a neighbor brings to the second block was computed with that neighbor as the centre. Its
dense parts are ``Near1`` to ``Block2``, over rows; between them come the sparse sums of ``graph/aggregation.py``.
Where all faces share one neighborhood it equals the published network, which is how its graphs are checked.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.systems import TorchNetwork
from fcdeploy.systems.folding import GraphConv, affine, chain, columns, linear, near, norm, own, split

SUM_EPS = 1e-5  # in rownorm; counts
THRESHOLD = 0.5  # of the re-drawn graph


def row_normalise(adj: Tensor) -> Tensor:
    """Divide each row by its sum plus 1e-5."""
    return adj / (adj.sum(dim=-1, keepdim=True) + SUM_EPS)


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to 2-norm 1."""
    return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True))


class Redraw(nn.Module):
    """The re-drawn graph: similarities of at least 0.5 stay, and rows are normalised."""

    def forward(self, sims: Tensor) -> Tensor:
        return row_normalise(torch.where(sims >= THRESHOLD, sims, torch.zeros_like(sims)))


class PseGcn(nn.Module):
    """The published network at inference (``triple_model``; Li et al., EAAI 127, 2024, section 3)."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        d, h = feature_dim, 2 * feature_dim
        self.feature_dim = d
        self.bn0 = nn.BatchNorm1d(d)
        self.bn1 = nn.BatchNorm1d(h)  # in every checkpoint, in no forward pass
        self.conv1 = GraphConv(h, h)
        self.conv2 = GraphConv(h, h)
        self.local_conv1 = GraphConv(h, h)
        self.local_conv2 = GraphConv(h, h)
        self.trans1 = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, h))
        self.trans2 = nn.Sequential(nn.Linear(h, h), nn.GELU(), nn.Linear(h, h))
        self.trans_x = nn.Linear(d, h)
        self.Up_dim = nn.Linear(d, h)
        self.classifier1 = nn.Sequential(nn.BatchNorm1d(h), nn.Linear(h, h), nn.GELU(), nn.Linear(h, h))
        self.classifier2 = nn.Sequential(nn.BatchNorm1d(h), nn.Linear(h, h), nn.GELU(), nn.Linear(h, h))
        self.classifier_out = nn.Linear(3 * h, h)
        self.local_classifier1 = nn.Sequential(nn.BatchNorm1d(h), nn.Linear(h, h))
        self.local_classifier2 = nn.Sequential(nn.BatchNorm1d(h), nn.Linear(h, h))
        self.redraw1, self.redraw2 = Redraw(), Redraw()

    def forward(self, features: Tensor, adj: Tensor, mask: Tensor) -> Tensor:
        """Refine all nodes: features (b, n, d), adj (b, n, n), mask (b, n, n) of 0 and 1 -> (b, n, 2d) unit rows."""
        b, n, d = features.shape
        x0 = self.bn0(features.reshape(b * n, d)).reshape(b, n, d)
        skip = self.Up_dim(x0)
        t1 = self.trans1(x0)
        local1 = row_normalise(adj)
        h1 = unit(rowwise(self.local_classifier1, self.local_conv1(t1, local1)))
        drawn1 = self.redraw1(h1 @ h1.transpose(1, 2) * mask)
        x1 = rowwise(self.classifier1, self.conv1(self.trans_x(x0), drawn1)) + skip
        local2 = row_normalise(local1)  # normalised twice, as published
        h2 = unit(rowwise(self.local_classifier2, self.local_conv2(self.trans2(x1), local2)))
        drawn2 = self.redraw2(h2 @ h2.transpose(1, 2) * mask)
        x2 = rowwise(self.classifier2, self.conv2(x1, drawn2)) + x1
        return unit(self.classifier_out(torch.cat([x2, x1, t1], dim=-1)))


def rowwise(layers: nn.Module, x: Tensor) -> Tensor:
    """Apply layers made for (rows, width) to (b, n, width)."""
    return layers(x.reshape(-1, x.shape[-1])).reshape(x.shape[0], x.shape[1], -1)


class Encode(nn.Module):
    """What a face brings to every neighborhood it is in; (m, d) -> six tables (m, 2d)."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        h = 2 * net.feature_dim
        trans1_in, trans1_out = chain(norm(net.bn0), affine(net.trans1[0])), affine(net.trans1[2])
        trans_x = chain(norm(net.bn0), affine(net.trans_x))
        out_t1 = columns(net.classifier_out, 2 * h, 3 * h, bias=True)
        self.trans1 = linear(trans1_in)
        self.local = linear(chain(trans1_out, own(net.local_conv1)))
        self.local_near = linear(chain(trans1_out, near(net.local_conv1)))
        self.drawn = linear(chain(trans_x, own(net.conv1)))
        self.drawn_near = linear(chain(trans_x, near(net.conv1)))
        self.skip = linear(chain(norm(net.bn0), affine(net.Up_dim)))
        self.out = linear(chain(trans1_out, out_t1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """features (m, d) unit rows -> local, local_near, drawn, drawn_near, skip, out: each (m, 2d)."""
        hidden = F.gelu(self.trans1(features))
        return (
            self.local(hidden),
            self.local_near(hidden),
            self.drawn(features),
            self.drawn_near(features),
            self.skip(features),
            self.out(hidden),
        )


class Refine(nn.Module):
    """The centre's refined feature from its neighborhood; the centre is node 0."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        h = 2 * net.feature_dim
        trans2_out = affine(net.trans2[2])
        self.similar1 = linear(chain(norm(net.local_classifier1[0]), affine(net.local_classifier1[1])))
        self.block1_in = linear(chain(norm(net.classifier1[0]), affine(net.classifier1[1])))
        self.block1_out = linear(affine(net.classifier1[3]))
        self.trans2 = linear(affine(net.trans2[0]))
        self.local2 = linear(chain(trans2_out, own(net.local_conv2)))
        self.local2_near = linear(chain(trans2_out, near(net.local_conv2)))
        self.similar2 = linear(chain(norm(net.local_classifier2[0]), affine(net.local_classifier2[1])))
        self.drawn2 = linear(own(net.conv2))
        self.drawn2_near = linear(near(net.conv2))
        self.block2_in = linear(chain(norm(net.classifier2[0]), affine(net.classifier2[1])))
        self.block2_out = linear(affine(net.classifier2[3]))
        self.out_x2 = linear(columns(net.classifier_out, 0, h))
        self.out_x1 = linear(columns(net.classifier_out, h, 2 * h))
        self.redraw = Redraw()

    def forward(
        self,
        local: Tensor,
        local_near: Tensor,
        drawn: Tensor,
        drawn_near: Tensor,
        skip: Tensor,
        out: Tensor,
        adj: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Tables of the nodes (b, n, 2d), out of the centres (b, 2d), adj (b, n, n), mask (b, n) -> (b, 2d)."""
        real = mask.unsqueeze(-1)  # (b, n) -> (b, n, 1)
        local1 = row_normalise(adj)
        # A similarity with a padded row becomes 0, below the threshold.
        h1 = unit(self.similar1(F.relu(local + local1 @ local_near))) * real
        drawn1 = self.redraw(h1 @ h1.transpose(1, 2))
        x1 = self.block1_out(F.gelu(self.block1_in(F.relu(drawn + drawn1 @ drawn_near)))) + skip
        local2 = row_normalise(local1)
        hidden = F.gelu(self.trans2(x1))
        h2 = unit(self.similar2(F.relu(self.local2(hidden) + local2 @ self.local2_near(hidden)))) * real
        # From here on the centre's row only.
        drawn2 = self.redraw(h2[:, :1] @ h2.transpose(1, 2))  # (b, 1, n)
        near = (drawn2 @ x1).squeeze(1)  # (b, 2d)
        centre = x1[:, 0]
        mixed = F.relu(self.drawn2(centre) + self.drawn2_near(near))
        x2 = self.block2_out(F.gelu(self.block2_in(mixed))) + centre
        return unit(self.out_x2(x2) + self.out_x1(centre) + out)


class Near1(nn.Module):
    """What a face brings to the first fixed graph of others; (m, d) -> (m, 2d)."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        self.trans1 = linear(chain(norm(net.bn0), affine(net.trans1[0])))
        self.near = linear(chain(affine(net.trans1[2]), near(net.local_conv1)))

    def forward(self, features: Tensor) -> Tensor:
        return self.near(F.gelu(self.trans1(features)))


class Similar1(nn.Module):
    """From the fixed graph to the first re-drawn one: directions h1, and what is brought there; (m, 2d) each."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        self.trans1 = linear(chain(norm(net.bn0), affine(net.trans1[0])))
        self.own = linear(chain(affine(net.trans1[2]), own(net.local_conv1)))
        self.similar = linear(chain(norm(net.local_classifier1[0]), affine(net.local_classifier1[1])))
        self.near = linear(chain(norm(net.bn0), affine(net.trans_x), near(net.conv1)))

    def forward(self, features: Tensor, connected: Tensor) -> tuple[Tensor, Tensor]:
        """features (m, d), connected (m, 2d): sums of near1 -> h1, near_drawn1."""
        own = self.own(F.gelu(self.trans1(features)))
        return unit(self.similar(F.relu(own + connected))), self.near(features)


class Block1(nn.Module):
    """The first block's output x1, and what a face brings to the second fixed graph; (m, 2d) each."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        self.own = linear(chain(norm(net.bn0), affine(net.trans_x), own(net.conv1)))
        self.skip = linear(chain(norm(net.bn0), affine(net.Up_dim)))
        self.inner = linear(chain(norm(net.classifier1[0]), affine(net.classifier1[1])))
        self.outer = linear(affine(net.classifier1[3]))
        self.trans2 = linear(affine(net.trans2[0]))
        self.near = linear(chain(affine(net.trans2[2]), near(net.local_conv2)))

    def forward(self, features: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """features (m, d), drawn (m, 2d): sums of near_drawn1 -> x1, near2."""
        x1 = self.outer(F.gelu(self.inner(F.relu(self.own(features) + drawn)))) + self.skip(features)
        return x1, self.near(F.gelu(self.trans2(x1)))


class Similar2(nn.Module):
    """From the second fixed graph to the second re-drawn one: directions h2 (m, 2d)."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        self.trans2 = linear(affine(net.trans2[0]))
        self.own = linear(chain(affine(net.trans2[2]), own(net.local_conv2)))
        self.similar = linear(chain(norm(net.local_classifier2[0]), affine(net.local_classifier2[1])))

    def forward(self, x1: Tensor, connected: Tensor) -> Tensor:
        """x1 (m, 2d), connected (m, 2d): sums of near2 -> h2."""
        return unit(self.similar(F.relu(self.own(F.gelu(self.trans2(x1))) + connected)))


class Block2(nn.Module):
    """The second block and the output; (m, 2d) unit rows."""

    def __init__(self, net: PseGcn) -> None:
        super().__init__()
        h = 2 * net.feature_dim
        self.own = linear(own(net.conv2))
        self.near = linear(near(net.conv2))
        self.inner = linear(chain(norm(net.classifier2[0]), affine(net.classifier2[1])))
        self.outer = linear(affine(net.classifier2[3]))
        self.trans1 = linear(chain(norm(net.bn0), affine(net.trans1[0])))
        self.out_x2 = linear(columns(net.classifier_out, 0, h))
        self.out_x1 = linear(columns(net.classifier_out, h, 2 * h))
        self.out_t1 = linear(
            chain(affine(net.trans1[2]), columns(net.classifier_out, 2 * h, 3 * h, bias=True))
        )

    def forward(self, features: Tensor, x1: Tensor, drawn: Tensor) -> Tensor:
        """features (m, d), x1 (m, 2d), drawn (m, 2d): sums of x1 -> refined."""
        x2 = self.outer(F.gelu(self.inner(F.relu(self.own(x1) + self.near(drawn))))) + x1
        return unit(self.out_x2(x2) + self.out_x1(x1) + self.out_t1(F.gelu(self.trans1(features))))


def passes_from_network(net: PseGcn, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the modules behind the passes of the bundle, by name, in evaluation mode."""
    makers = {
        "encode": Encode,
        "neighborhood": Refine,
        "near1": Near1,
        "similar1": Similar1,
        "block1": Block1,
        "similar2": Similar2,
        "block2": Block2,
    }
    return split(net, makers, dtype)


def network_from_state_dict(state: dict[str, Tensor]) -> PseGcn:
    """Build the network that the authors' weights belong to; the width is read off them."""
    net = PseGcn(state["Up_dim.weight"].shape[1])
    # Only the batch counters may be missing, which inference does not read.
    net.load_state_dict(state, strict=False)
    return net.eval()


def plain_outputs(
    net: PseGcn, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64 on a batch from ``parity.random_batch``.

    Returns the outputs by name and the similarities that are compared with 0.5, block by block, in the form in
    which the exported graph compares them.
    """
    net = copy.deepcopy(net).double().eval()
    seen: list[Tensor] = []
    for redraw in (net.redraw1, net.redraw2):
        redraw.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        features, adj, mask = (torch.from_numpy(batch[name]).double() for name in ("features", "adj", "mask"))
        refined = net(features, adj, mask[:, :, None] * mask[:, None, :])
    first, second = seen
    return {"refined": refined[:, 0].numpy()}, [first.numpy(), second[:, :1].numpy()]


# Layer-wise, the re-drawn graphs are drawn between the passes, from h1 and h2.
DECIDING = {
    "near1": ("near1",),
    "similar1": ("h1", "near_drawn1"),
    "block1": ("x1", "near2"),
    "similar2": ("h2",),
}
NETWORKS = {
    "refine": TorchNetwork(
        network_from_state_dict, passes_from_network, plain_outputs, THRESHOLD, deciding=DECIDING
    )
}
