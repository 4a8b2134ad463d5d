"""What the pictures of measured figures leave out, and how a recording is broken into lines."""

import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs/pictures"), str(ROOT / "benchmarks")]

from curves_of_quality import front  # noqa: E402
from plots import megabytes, seconds_across  # noqa: E402
from terminal import folded  # noqa: E402

shares = st.floats(0, 1, allow_nan=False)
points = st.lists(st.tuples(shares, shares), min_size=1, max_size=30)


@given(points)
def test_a_curve_keeps_exactly_the_points_that_no_other_beats_in_both_measures(found) -> None:
    def beaten(point) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in found)

    assert front(found) == sorted({point for point in found if not beaten(point)})


def test_budgets_are_powers_of_1024_and_shown_in_millions() -> None:
    assert megabytes("1G") == 1073.741824
    assert megabytes("300M") == 314.5728


@given(st.floats(1, 7200))
def test_an_axis_of_time_has_two_to_eight_ticks_from_zero_on(end) -> None:
    ticks = seconds_across(end)
    assert ticks[0][0] == 0
    assert 2 <= len(ticks) <= 8
    assert ticks[-1][0] <= end
    assert len({label for _, label in ticks}) == len(ticks)


@given(st.lists(st.from_regex(r"[a-z/.=-]{1,30}", fullmatch=True), min_size=1, max_size=20))
def test_a_broken_command_line_is_the_same_command(words) -> None:
    text = "$ " + " ".join(words)
    lines = folded(text, 40)
    assert all(len(line) <= 40 for line in lines)
    assert "\n".join(lines).replace(" \\\n", " ").split() == text.split()
    assert all(line.endswith(" \\") for line in lines[:-1])
