"""Folded layers compute what the layers they were made of do, and the pieces of a layer add up to it."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fcdeploy.systems.folding import (  # noqa: E402
    GraphConv,
    affine,
    chain,
    columns,
    linear,
    near,
    norm,
    own,
    product,
    split,
    whole,
)


@pytest.fixture(autouse=True)
def drawn_alike():
    torch.manual_seed(7)


def batch_norm(width: int, *, learned: bool = True) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(width, affine=learned).double().eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    if learned:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def rows(width: int) -> "torch.Tensor":
    return torch.randn(9, width, dtype=torch.float64)


def assert_equal(found: "torch.Tensor", expected: "torch.Tensor") -> None:
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("learned", [True, False])
def test_norms_fold_into_the_linear_before_and_behind_them(learned):
    before, layer, behind = batch_norm(5, learned=learned), nn.Linear(5, 3).double(), batch_norm(3)
    x = rows(5)
    assert_equal(linear(chain(norm(before), affine(layer)))(x), layer(before(x)))
    assert_equal(linear(chain(affine(layer), norm(behind)))(x), behind(layer(x)))
    assert_equal(linear(chain(norm(before), affine(layer), norm(behind)))(x), behind(layer(before(x))))


def test_linears_behind_each_other_are_one():
    first, second, x = nn.Linear(4, 6).double(), nn.Linear(6, 2).double(), rows(4)
    assert_equal(linear(chain(affine(first), affine(second)))(x), second(first(x)))


def test_the_columns_of_a_linear_add_up_to_it_whichever_takes_the_bias():
    layer, x = nn.Linear(7, 4).double(), rows(7)
    for bias_first in (True, False):
        begin = linear(columns(layer, 0, 3, bias=bias_first))
        end = linear(columns(layer, 3, 7, bias=not bias_first))
        assert_equal(begin(x[:, :3]) + end(x[:, 3:]), layer(x))
        assert (begin.bias is None, end.bias is None) == (not bias_first, bias_first)


def test_the_halves_of_a_graph_convolution_add_up_to_it():
    conv, x = GraphConv(4, 3).double(), rows(4)
    nn.init.normal_(conv.bias)
    adj = torch.rand(9, 9, dtype=torch.float64)
    expected = conv(x, adj)
    assert_equal(torch.relu(linear(own(conv))(x) + adj @ linear(near(conv))(x)), expected)
    assert_equal(torch.relu(linear(whole(conv))(torch.cat([x, adj @ x], dim=1))), expected)


def test_a_product_has_no_bias():
    weight, x = torch.randn(4, 3, dtype=torch.float64), rows(4)
    layer = linear(product(weight))
    assert layer.bias is None
    assert_equal(layer(x), x @ weight)


def test_folding_is_in_float64_whatever_the_layers_are_and_rounds_once():
    before, layer = batch_norm(5).float(), nn.Linear(5, 3)
    folded = linear(chain(norm(before), affine(layer)))
    exact = linear(chain(norm(before.double()), affine(layer.double())))
    assert folded.weight.dtype == torch.float64
    assert torch.equal(folded.weight, exact.weight)
    assert torch.equal(folded.bias, exact.bias)


def test_passes_are_made_of_a_copy():
    net = nn.Sequential(nn.Linear(3, 3)).train()
    passes = split(net, {"a": lambda copied: copied[0], "b": nn.Identity}, torch.float16)
    assert [*passes] == ["a", "b"]
    assert passes["a"].weight.dtype == torch.float16
    assert not passes["a"].training
    assert net.training
    assert net[0].weight.dtype == torch.float32
