"""GCN-D and GCN-S in PyTorch: parameter names are the authors' (learn-to-cluster ``dsgcn``).

``Dsgcn`` is the published network at inference, for whole graphs without padding. ``Faces`` and ``Graphs`` share its
weights and together give its outputs. What makes them equal:

- the first layer is linear before its relu: adj (X W) with X W once per face, not once per proposal that holds it;
- every node of a graph is connected to itself, so that a row of adj with the sum 0 is padding. Its products are 0, and
  0 cannot win a maximum over relu outputs, nor add to a sum; a mean is over the other rows. A network that only
  propagates has no relu: its maximum leaves padding out.
"""

import copy
import functools
import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fcdeploy.systems import TorchNetwork
from fcdeploy.systems.folding import linear, product, split
from fcdeploy.systems.gcn_d.spec import DETECT, PURITY, SEGMENT, Recipe, widths_from_shapes_of


class GraphConvolution(nn.Module):
    """X W, averaged over the neighbors in a graph."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))

    def forward(self, x: Tensor, adj: Tensor, sums: Tensor) -> Tensor:
        return adj @ (x @ self.weight) / sums


class Layer(nn.Module):
    """A graph convolution and a relu."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.gc = GraphConvolution(width_in, width_out)

    def forward(self, x: Tensor, adj: Tensor, sums: Tensor) -> Tensor:
        return torch.relu(self.gc(x, adj, sums))


class Dsgcn(nn.Module):
    """The published network (``dsgcn``, gcn_type 'gcn' or, without layers, 'sgc').

    reduce: 'max', 'mean' or 'sum' over the nodes of a graph; a network of two outputs classifies nodes and reduces
    nothing. depth: how often a network without layers propagates.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...], outputs: int = 1) -> None:
        super().__init__()
        widths = (dim, *hidden)
        self.layers = nn.ModuleList(Layer(a, b) for a, b in itertools.pairwise(widths))
        self.classifier = nn.Linear(widths[-1], outputs)
        self.reduce, self.depth = "max", 0

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        """Nodes (b, n, d), adj (b, n, n) -> scores (b, 1), or log-probabilities (b, 2, n) of two classes."""
        sums = adj.sum(dim=2, keepdim=True)
        for layer in self.layers:
            x = layer(x, adj, sums)
        for _ in range(self.depth):
            x = adj @ x / sums
        if self.classifier.out_features > 1:
            return torch.log_softmax(self.classifier(x).transpose(1, 2), dim=1)
        if self.reduce == "max":
            return self.classifier(x.amax(dim=1))
        return self.classifier(x.mean(dim=1) if self.reduce == "mean" else x.sum(dim=1))


class Faces(nn.Module):
    """The first layer's product of every face; (m, d) -> (m, h)."""

    def __init__(self, net: Dsgcn) -> None:
        super().__init__()
        self.product = linear(product(next(net.layers.parameters())))

    def forward(self, features: Tensor) -> Tensor:
        return self.product(features)


class Graphs(nn.Module):
    """Everything behind the first product, for graphs padded to one size; (b, n, h), (b, n, n) -> (b,) or (b, n)."""

    def __init__(self, net: Dsgcn) -> None:
        super().__init__()
        self.later = nn.ParameterList(layer.gc.weight for layer in net.layers[1:])
        self.classifier = net.classifier
        self.convolves, self.reduce, self.depth = len(net.layers) > 0, net.reduce, net.depth

    def forward(self, nodes: Tensor, adj: Tensor) -> Tensor:
        sums = adj.sum(dim=2, keepdim=True)  # (b, n, 1)
        real = sums > 0
        sums = torch.where(real, sums, torch.ones_like(sums))
        x = nodes
        if self.convolves:
            x = torch.relu(adj @ x / sums)
            for weight in self.later:
                x = torch.relu(adj @ (x @ weight) / sums)
        for _ in range(self.depth):
            x = adj @ x / sums
        if self.classifier.out_features > 1:
            return torch.softmax(self.classifier(x), dim=2)[:, :, 1] * real[:, :, 0]  # (b, n)
        if self.reduce == "max":
            if not self.convolves:
                x = torch.where(real, x, torch.full_like(x, torch.finfo(x.dtype).min))
            x = x.amax(dim=1)
        elif self.reduce == "mean":
            x = x.sum(dim=1) / real.to(x.dtype).sum(dim=1)
        else:
            x = x.sum(dim=1)
        return self.classifier(x)[:, 0]


def passes_from_network(name: str, net: Dsgcn, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the modules behind the passes of a network of the bundle, by name, in evaluation mode."""
    first = {f"{name}_faces": Faces} if len(net.layers) else {}
    return split(net, {**first, name: Graphs}, dtype)


def network_from_state_dict(state: dict[str, Tensor]) -> Dsgcn:
    """Build the network that the authors' weights belong to, whatever its widths and number of outputs."""
    outputs = state["classifier.weight"].shape[0]
    widths = widths_from_shapes_of(outputs, {name: tuple(tensor.shape) for name, tensor in state.items()})
    assert widths is not None  # they were recognised
    net = Dsgcn(widths["dim"], widths["hidden"], outputs)
    net.load_state_dict(state)
    return net.eval()


def settle(net: Dsgcn, recipe: Recipe) -> None:
    """Tell a network what its state_dict does not."""
    net.reduce = recipe.network.reduce
    net.depth = 0 if len(net.layers) else recipe.network.depth


def plain_outputs(
    net: Dsgcn, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Evaluate the published form in float64, one graph of a batch from ``parity.random_batch`` at a time.

    Returns the outputs by name, padding 0, and the probabilities that decide whether a node is a member.
    """
    net = copy.deepcopy(net).double().eval()
    features, adj = (torch.from_numpy(batch[name]).double() for name in ("features", "adj"))
    outputs = []
    with torch.inference_mode():
        for x, connections in zip(features, adj, strict=True):
            n = int((connections.sum(dim=1) > 0).sum())
            output = net(x[None, :n], connections[None, :n, :n])
            if output.ndim == 3:
                outputs.append(torch.nn.functional.pad(output[0, 1].exp(), (0, len(x) - n)))
            else:
                outputs.append(output[0, 0])
    values = torch.stack(outputs).numpy()
    return ({"probability": values}, [values]) if values.ndim == 2 else ({"score": values}, [])


NETWORKS = {
    name: TorchNetwork(
        network_from_state_dict, functools.partial(passes_from_network, name), plain_outputs, settle=settle
    )
    for name in (DETECT, PURITY, SEGMENT)
}
