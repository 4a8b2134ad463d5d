"""Layers of published networks folded together: affine maps in float64, rounded once into a Linear of a pass."""

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Net = TypeVar("Net", bound=nn.Module)
# An affine map x W + b: weight (in, out), or (in,) for its diagonal matrix, and bias (out,), in float64.
Affine = tuple[Tensor, Tensor]


class GraphConv(nn.Module):
    """relu([x, A x] W + b), [ , ] along features."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return F.relu(torch.cat([x, adj @ x], dim=-1) @ self.weight + self.bias)


def affine(layer: nn.Linear) -> Affine:
    """Return what a Linear computes."""
    return layer.weight.detach().double().T, layer.bias.detach().double()


def product(weight: Tensor) -> Affine:
    """Return the product with a weight (in, out) alone."""
    weight = weight.detach().double()
    return weight, torch.zeros(weight.shape[1], dtype=torch.float64)


def norm(layer: nn.BatchNorm1d) -> Affine:
    """Return what a BatchNorm with running statistics computes; its weight is a diagonal."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, deviation = layer.running_mean.double(), torch.sqrt(layer.running_var.double() + layer.eps)
    if not layer.affine:
        return 1 / deviation, -mean * (1 / deviation)
    scale = layer.weight.detach().double() / deviation
    return scale, layer.bias.detach().double() - mean * scale


def chain(first: Affine, *others: Affine) -> Affine:
    """Return one affine map for several, one behind the other."""
    weight, bias = first
    for other, shift in others:
        if weight.ndim == 1:
            weight, bias = weight[:, None] * other, bias @ other + shift
        elif other.ndim == 1:
            weight, bias = weight * other, bias * other + shift
        else:
            weight, bias = weight @ other, bias @ other + shift
    return weight, bias


def columns(layer: nn.Linear, start: int, stop: int, *, bias: bool = False) -> Affine:
    """Return a Linear's action on its inputs start..stop-1; one of its parts takes the bias, too."""
    weight, shift = affine(layer)
    return weight[start:stop], shift if bias else torch.zeros_like(shift)


def whole(conv: GraphConv) -> Affine:
    """Return what a graph convolution does to nodes beside their means over neighbors."""
    return conv.weight.detach().double(), conv.bias.detach().double()


def own(conv: GraphConv) -> Affine:
    """Return the half of a graph convolution that acts on the node itself, with the bias."""
    weight, bias = whole(conv)
    return weight[: len(weight) // 2], bias


def near(conv: GraphConv) -> Affine:
    """Return the half of a graph convolution that acts on the mean over neighbors."""
    return product(conv.weight[len(conv.weight) // 2 :])


def linear(folded: Affine) -> nn.Linear:
    """Return an affine map as a layer in float64, without a bias where that is zero."""
    weight, bias = folded
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=bool(bias.any()), dtype=torch.float64)
    layer.weight.data.copy_(weight.T)
    if layer.bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def split(
    net: Net, makers: Mapping[str, Callable[[Net], nn.Module]], dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Return the modules behind a network's passes, by name, in evaluation mode; the network stays as it is."""
    net = copy.deepcopy(net).eval()
    return {name: maker(net).to(dtype).eval() for name, maker in makers.items()}
