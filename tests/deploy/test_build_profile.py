"""Build profiles: what they say of a pass, and what is refused."""

from pathlib import Path

import pytest

from fcdeploy.deploy.build_profile import built_in_names, built_in_text, load_profile
from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import InputError

ENGINES = Path(__file__).parents[2] / "engines"
TARGET = '[target]\nflavour = "tensorrt-rtx"\ncompute_capability = "8.6"\n'
NODES = PassSpec(
    "neighborhood",
    (TensorSpec("x", ("b", "n", 8)), TensorSpec("adj", ("b", "n", "n"))),
    (TensorSpec("y", ("b", 8)),),
)
ROWS = PassSpec("encode", (TensorSpec("x", ("m", 8)),), (TensorSpec("y", ("m", 8)),))
FACES = PassSpec("encode", (TensorSpec("x", ("b", 5, 8)),), (TensorSpec("y", ("b", 8)),))


@pytest.fixture
def profile(tmp_path):
    """Read a profile of these lines after its [target]."""

    def read(text, target=TARGET):
        (tmp_path / "mine.toml").write_text(f"{target}\n{text}")
        return load_profile(tmp_path / "mine.toml")

    return read


def test_the_profiles_beside_the_code_are_the_built_in_ones():
    assert (
        [path.stem for path in sorted(ENGINES.glob("*.toml"))]
        == built_in_names()
        == ["cpu", "h200", "rtx3090"]
    )
    for name in built_in_names():
        assert (ENGINES / f"{name}.toml").read_text() == built_in_text(name)
        assert load_profile(ENGINES / f"{name}.toml") == load_profile(name)


def test_the_profiles_are_for_the_gpus_they_are_named_after():
    found = {name: load_profile(name) for name in built_in_names()}
    assert (found["rtx3090"].flavour, found["rtx3090"].compute_capability) == ("tensorrt-rtx", "8.6")
    assert (found["h200"].flavour, found["h200"].compute_capability) == ("tensorrt", "9.0")
    assert found["cpu"].flavour == "onnxruntime"
    assert found["rtx3090"].workspace == 4 << 30


@pytest.mark.parametrize("name", ["rtx3090", "h200"])
def test_every_number_of_nodes_has_a_profile_and_only_one(name):
    """From 1 to 2,048 nodes, with one neighborhood and more; no two ranges of nodes overlap."""
    groups = load_profile(name).ranges("pse-gcn", NODES)
    reached = [n for group in groups for n in range(group["n"][0], group["n"][2] + 1)]
    assert reached == list(range(1, 2049))
    assert all(group["b"][0] == 1 < group["b"][2] for group in groups)


def test_groups_are_for_passes_that_have_all_of_their_axes(profile):
    read = profile("""
[axes]
m = [1, 2, 3]
b = [4, 5, 6]
[[groups]]
b = [1, 1, 2]
n = [1, 10, 20]
[[groups]]
b = [1, 1, 1]
n = [21, 30, 40]
""")
    assert read.ranges("pse-gcn", NODES) == [
        {"b": (1, 1, 2), "n": (1, 10, 20)},
        {"b": (1, 1, 1), "n": (21, 30, 40)},
    ]
    assert read.ranges("pse-gcn", ROWS) == [{"m": (1, 2, 3)}]
    assert read.ranges("sepfl", FACES) == [{"b": (4, 5, 6)}]


def test_a_table_of_a_pass_alone_describes_it(profile):
    read = profile("""
[axes]
m = [1, 2, 3]
other = [7, 8, 9]
[[groups]]
n = [1, 10, 20]
[systems.pse-gcn.encode]
m = [5, 5, 5]
[[systems.pse-gcn.neighborhood.groups]]
n = [2, 2, 2]
[[systems.pse-gcn.neighborhood.groups]]
n = [3, 3, 3]
""")
    assert read.ranges("pse-gcn", ROWS) == [{"m": (5, 5, 5)}]
    assert read.ranges("sepfl", ROWS) == [{"m": (1, 2, 3)}]
    assert read.ranges("pse-gcn", NODES) == [
        {"b": (7, 8, 9), "n": (2, 2, 2)},
        {"b": (7, 8, 9), "n": (3, 3, 3)},
    ]
    assert read.ranges("l-gcn", NODES) == [{"b": (7, 8, 9), "n": (1, 10, 20)}]


def test_an_axis_that_is_named_nowhere_needs_a_range(profile):
    read = profile("[axes]\nm = [1, 2, 3]")
    with pytest.raises(InputError, match="no range for axis 'b' of pass neighborhood; add b ="):
        read.ranges("pse-gcn", NODES)
    assert profile("[axes]\nother = [1, 2, 3]").ranges("x", ROWS) == [{"m": (1, 2, 3)}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[axis]\nm = [1, 2, 3]", "unknown key 'axis'; known here: target, axes, groups, systems"),
        ("[axes]\nm = [1, 2]", "axes.m should be"),
        ("[axes]\nm = [2, 1, 3]", "axes.m should be"),
        ("[axes]\nm = [0, 1, 3]", "axes.m should be"),
        ("[axes]\nm = [1, 2.5, 3]", "axes.m should be"),
        ("[axes]\nm = [true, 2, 3]", "axes.m should be"),
        ("[axes]\nm = 4096", "axes.m should be"),
        ("groups = 3", "target.groups"),
        ("[groups]\nn = [1, 2, 3]", "groups should be an array of tables"),
        ("[[groups]]\nn = [3, 2, 1]", r"groups\[0\].n should be"),
        ("[[groups]]", r"groups\[0\] should name axes"),
        ("[systems.gcn-x.encode]\nm = [1, 2, 3]", "systems.gcn-x is not a known system; known: pse-gcn"),
        ("[systems.pse-gcn]\nm = [1, 2, 3]", "systems.pse-gcn.m should be a table"),
        ("[systems.pse-gcn.encode]\nm = [1, 2]", "systems.pse-gcn.encode.m should be"),
        ("[axes", "is not valid TOML"),
    ],
)
def test_what_a_profile_cannot_say_is_refused_by_key(profile, text, says):
    with pytest.raises(InputError, match=says) as refused:
        profile(text)
    assert "mine.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "target should be a table"),
        ("[target]", "target.flavour should be one of tensorrt-rtx, tensorrt, onnxruntime"),
        ('[target]\nflavour = "openvino"', "target.flavour should be one of"),
        ('[target]\nflavour = "tensorrt"', "target.compute_capability should be a compute capability"),
        ('[target]\nflavour = "tensorrt"\ncompute_capability = 8.6', 'as in "8.6", found 8.6'),
        ('[target]\nflavour = "tensorrt"\ncompute_capability = "sm86"', "found 'sm86'"),
        (TARGET + 'workspace = "lots"', "target.workspace should be a size"),
        (TARGET + "precision = 'fp16'", "unknown key 'target.precision'"),
        ('[target]\nflavour = "onnxruntime"\nworkspace = 1', "for onnxruntime there is nothing to set"),
    ],
)
def test_a_target_that_is_none_is_refused(profile, target, says):
    with pytest.raises(InputError, match=says):
        profile("", target)


def test_a_profile_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="no such build profile, and no built-in one"):
        load_profile("rtx9999")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not a text file"):
        load_profile(tmp_path / "bad.toml")


def test_a_profile_is_called_what_gets_it_again(tmp_path, profile):
    """A copy of a built-in one has its name, another file its own."""
    (tmp_path / "rtx3090.toml").write_text(built_in_text("rtx3090"))
    assert load_profile(tmp_path / "rtx3090.toml").name == "rtx3090"
    (tmp_path / "rtx3090.toml").write_text(TARGET)
    assert load_profile(tmp_path / "rtx3090.toml").name == "rtx3090.toml"
    assert profile("").name == "mine.toml"
