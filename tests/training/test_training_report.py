"""What a training says where no bar can be drawn: how long it will take, soon and then less and less often."""

import re

import pytest

from fcdeploy.training import report as module
from fcdeploy.training.report import Report


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to move on."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_says_how_long_it_will_take_after_twenty_seconds_and_then_at_doubling_times(clock, capsys):
    """Steps of 10 s each, 100 of them from the 20th on: said after 30, 70, 150, 310 and 630 s."""
    report = Report(quiet=False)
    with report.steps(120, 20):
        for _ in range(100):
            clock[0] += 10
            report.advance(0.5)
        report.checked(120, 120, 0.5, {}, {}, True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 23 of 120, loss 0.5000, about 16 min left"
    steps = [int(re.match(r"step (\d+) of 120", line)[1]) for line in lines]
    assert steps == [23, 27, 35, 51, 83, 120]
    assert "left" not in lines[-1]


@pytest.mark.parametrize(("seconds", "says"), [(1, "99 s"), (60, "99 min"), (3600, "99 h")])
def test_what_is_left_is_told_in_units_that_read_well(seconds, says, clock, capsys):
    report = Report(quiet=False)
    with report.steps(100, 0):
        clock[0] += seconds
        report.advance(0.5)
        report.checked(1, 100, 0.5, {}, {}, False)
    assert f"about {says} left" in capsys.readouterr().err.splitlines()[-1]


def test_a_quiet_training_says_nothing(clock, capsys):
    report = Report(quiet=True)
    with report.steps(100, 0):
        clock[0] += 100
        report.advance(0.5)
        report.checked(1, 100, 0.5, {}, {}, False)
    assert capsys.readouterr() == ("", "")
