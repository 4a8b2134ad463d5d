"""Plain values as dataclasses: what fits is converted, what does not is named by file, key and value."""

import reprlib
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest

from fcdeploy.data.typed import described, misfit, typed, types_of
from fcdeploy.errors import InputError

Share = Annotated[float, msgspec.Meta(ge=0, le=1, description="a share, 0 to 1")]


@dataclass(frozen=True)
class Part:
    name: str = field(default="x", kw_only=True)
    k: int
    parts: tuple["Part", ...] = ()


@dataclass(frozen=True)
class Whole:
    relative: ClassVar[bool] = True

    tau: float = 0.5
    hops: tuple[int, int] = (80, 10)
    flag: bool | int = False
    share: Share = 0.5
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def test_tables_become_dataclasses_with_their_defaults() -> None:
    table = {
        "tau": 1,
        "hops": [3, 2],
        "flag": True,
        "part": {"k": 1},
        "parts": [{"k": 2, "parts": [{"k": 3, "name": "y"}]}],
        "sizes": {"m": [1, 2], "b": []},
    }
    whole = typed(Whole, table, "x.toml")
    assert whole == Whole(
        1.0,
        (3, 2),
        True,
        part=Part(1),
        parts=(Part(2, parts=(Part(3, name="y"),)),),
        sizes={"m": (1, 2), "b": ()},
    )
    assert (type(whole.tau), type(whole.flag)) == (float, bool)
    assert typed(Whole, {}, "x.toml") == Whole()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"tau": "x"}, "tau should be a number, found 'x'"),
        ({"tau": True}, "tau should be a number, found True"),
        ({"tau": 10**400}, "tau should be a number, found 1000"),
        ({"tau": 1 << 40_000}, "tau should be a number, found a number of thousands of digits"),
        ({"kind": 1 << 40_000}, "kind should be one of a, b, found a number of thousands of digits"),
        ({"hops": [1, 2, 3]}, "hops should be a list of 2 values, found [1, 2, 3]"),
        ({"hops": [1, 2.0]}, "hops[1] should be a whole number, found 2.0"),
        ({"hops": 3}, "hops should be a list of 2 values, found 3"),
        ({"flag": "yes"}, "flag should be true, false or a whole number, found 'yes'"),
        ({"share": 1.5}, "share should be a share, 0 to 1, found 1.5"),
        ({"kind": "c"}, "kind should be one of a, b, found 'c'"),
        ({"maybe": "1"}, "maybe should be a whole number or null, found '1'"),
        ({"part": {}}, "part.k should be a whole number, and is missing"),
        ({"part": {"k": 1, "name": 2}}, "part.name should be a string, found 2"),
        ({"part": 3}, "part should be a table or null, found 3"),
        ({"parts": {"k": 3}}, "parts should be a list, found {'k': 3}"),
        ({"parts": [{"k": 1}, {"k": 1, "parts": [{"k": ""}]}]}, "parts[1].parts[0].k should be a whole number"),
        ({"sizes": {"b": [1], "m": [1, None]}}, "sizes.m[1] should be a whole number, found None"),
        ({"tua": 1}, "unknown key 'tua'; known here: tau, hops, flag, share, kind, maybe, part, parts, sizes"),
        ({"part": {"k": 1, "kk": 1}}, "unknown key 'part.kk'; known here: name, k, parts"),
        ({"parts": [{"k": 1}, {"l": 1}]}, "unknown key 'parts[1].l'"),
        ({"relative": False}, "unknown key 'relative'"),
        ([1], "the whole should be a table, found [1]"),
    ],
    ids=lambda value: reprlib.repr(value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_named_with_file_key_value_and_what_should_be(table: Any, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        typed(Whole, table, "x.toml")
    assert str(refused.value).startswith(f"x.toml: {sentence}")
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 300


def test_other_keys_are_left_out_where_a_table_is_open_ended() -> None:
    table = {"tau": 0.25, "later": 1, "parts": [{"k": 1, "later": 2}]}
    assert typed(Whole, table, "x", open_ended=True) == Whole(tau=0.25, parts=(Part(1),))
    with pytest.raises(InputError, match=r"^x: tau should be a number, found 'y'\.$"):
        typed(Whole, {"later": 1, "tau": "y"}, "x", open_ended=True)


def test_a_key_says_where_a_value_stood() -> None:
    with pytest.raises(InputError, match=r"^settings: links\.tau should be a number, found 'x'\.$"):
        typed(float, "x", "--set", "links.tau")
    assert misfit(dict[str, int], {"a": 1, "b": "2"}, "at") == "at.b should be a whole number, found '2'"
    assert misfit(int, 3, "at") is None


def test_nesting_deeper_than_the_stack_is_a_sentence() -> None:
    deep: dict[str, Any] = {"k": 1}
    for _ in range(100_000):
        deep = {"k": 1, "parts": [deep]}
    assert misfit(Whole, {"parts": [deep]}) == "the whole is nested too deeply"
    while deep:  # taken apart by hand: so is its end
        deep = deep["parts"][0] if "parts" in deep else {}


def test_types_are_said_in_words() -> None:
    assert {name: described(kind) for name, kind in types_of(Whole).items()} == {
        "tau": "a number",
        "hops": "a list of 2 values",
        "flag": "true, false or a whole number",
        "share": "a share, 0 to 1",
        "kind": "one of a, b",
        "maybe": "a whole number or null",
        "part": "a table or null",
        "parts": "a list",
        "sizes": "a table",
    }
