"""Blocks are written one after the other, each while the next one is computed."""

import threading

import pytest

from fcdeploy.run.blocks import Behind

SECONDS = 30  # until a test gives up waiting


def test_calls_come_in_order_and_the_last_is_waited_for() -> None:
    done: list[int] = []
    with Behind(done.append) as behind:
        for number in range(100):
            behind(number)
    assert done == list(range(100))


def test_the_caller_goes_on_while_a_call_is_under_way() -> None:
    """A call that waits for what its caller does next would wait for ever if it were not behind."""
    goes_on = threading.Event()
    waited: list[bool] = []
    with Behind(lambda: waited.append(goes_on.wait(SECONDS))) as behind:
        behind()
        assert waited == []
        goes_on.set()
    assert waited == [True]


def test_alone_a_call_is_done_here_and_now() -> None:
    threads: list[threading.Thread] = []
    with Behind(lambda: threads.append(threading.current_thread()), alone=True) as behind:
        behind()
        assert threads == [threading.current_thread()]


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_call_raises_reaches_the_caller_and_no_later_call_is_made(alone: bool) -> None:
    made: list[int] = []

    def fail(number: int) -> None:
        made.append(number)
        raise OSError("no space left")

    def count() -> None:
        with Behind(fail, alone=alone) as behind:
            for number in range(5):
                behind(number)

    with pytest.raises(OSError, match="no space"):
        count()
    assert made == [0]


def test_what_the_last_call_raises_is_raised_at_the_end() -> None:
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), Behind(fail) as behind:
        behind()


def test_an_error_of_the_caller_is_not_covered_by_one_of_the_call() -> None:
    def fail() -> None:
        raise OSError("no space left")

    def call_and_fail() -> None:
        with Behind(fail) as behind:
            behind()
            raise ValueError("of a block")

    with pytest.raises(ValueError, match="of a block"):
        call_and_fail()
