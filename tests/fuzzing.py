"""Damage to files: how many tries a test makes, and what a try is."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.errors import InputError


def tries(few: int, many: int) -> Any:
    """Give a test the argument ``count``: few tries as a rule, many in the fault suite."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.faults)])


@st.composite
def damaged(draw: st.DrawFn, content: bytes, head: int = 200) -> bytes:
    """A file with a few bytes changed, most often near its start or end, and perhaps cut short or with more behind."""
    data = bytearray(content)
    places = st.one_of(
        st.integers(0, min(head, len(data)) - 1),
        st.integers(max(0, len(data) - head), len(data) - 1),
        st.integers(0, len(data) - 1),
    )
    values = st.one_of(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)), st.integers(0, 255))
    for place, value in draw(st.lists(st.tuples(places, values), min_size=1, max_size=8)):
        data[place] = value
    how = draw(st.integers(0, 9))
    if how == 0:
        return bytes(data[: draw(st.integers(0, len(data)))])
    if how == 1:
        return bytes(data) + draw(st.binary(max_size=64))
    return bytes(data)


def check_each(count: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check ``count`` examples, the same ones each time."""

    @settings(max_examples=count, derandomize=True, deadline=None, database=None)
    @given(strategy)
    def each(case: Any) -> None:
        check(case)

    each()


def refused_or_read(read: Callable[[], Any]) -> bool:
    """Tell whether a reader gave something; a refusal is one sentence of at most some lines of a terminal."""
    try:
        read()
    except InputError as error:
        sentence = str(error)
        assert sentence.endswith("."), sentence
        assert len(sentence) < 2000, sentence
        return False
    return True
