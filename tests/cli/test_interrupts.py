"""Ctrl-C is one line and exit code 130, whatever it meets and whatever is made of it."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from importlib import _bootstrap  # type: ignore[attr-defined]
from pathlib import Path

import pytest

from fcdeploy.cli.interrupts import interruptible, resumable
from fcdeploy.errors import MissingDependencyError

FRAGILE_WORK = """
def work(press, done):
    press()
    done.append("pressed")
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    done.append("finished")
"""


@pytest.fixture(autouse=True)
def signals_as_in_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def work_of(module: str) -> Callable[..., None]:
    names = {"__name__": module, "time": time}
    exec(FRAGILE_WORK, names)
    return names["work"]  # type: ignore[return-value]


def interrupts_and_sleeps(act: Callable[[], object]) -> bool:
    """Tell whether an act's interrupt arrived, at the latest while sleeping behind it."""
    try:
        with interruptible():
            act()
            time.sleep(5)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize(
    "module", ["numba", "numba.core.codegen", "llvmlite.binding.ffi", "weakref", "_weakrefset", "abc"]
)
def test_an_interrupt_waits_until_fragile_code_has_returned(module: str) -> None:
    done: list[str] = []
    assert interrupts_and_sleeps(lambda: work_of(module)(press, done))
    assert done == ["pressed", "finished"]


def test_an_interrupt_of_a_destructor_is_not_lost() -> None:
    done: list[str] = []

    class Dying:
        def __del__(self) -> None:
            press()
            done.append("died")

    assert interrupts_and_sleeps(Dying)
    assert done == ["died"]


def test_an_interrupt_of_a_callback_of_the_import_system_is_not_lost() -> None:
    """Python calls ``cb`` when the lock of a module dies, behind its import."""
    done: list[str] = []
    lock = _bootstrap._get_module_lock("fcdeploy.no_such_module")
    dying = _bootstrap._module_locks["fcdeploy.no_such_module"].__callback__.__code__
    names = {"__name__": "importlib._bootstrap", "press": press, "done": done}
    exec(compile("def cb():\n press()\n done.append('died')", dying.co_filename, "exec"), names)
    assert (dying.co_filename, dying.co_name) == (names["cb"].__code__.co_filename, "cb")  # type: ignore[attr-defined]
    assert lock
    assert interrupts_and_sleeps(names["cb"])  # type: ignore[arg-type]
    assert done == ["died"]


@pytest.mark.parametrize("module", ["numbad", "fcdeploy.numba", "__main__"])
def test_elsewhere_an_interrupt_comes_at_once(module: str) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        work_of(module)(press, done)
    assert done == []


def test_signals_are_handled_as_before_afterwards_and_where_they_were_ignored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        with contextlib.suppress(KeyboardInterrupt):
            work_of("numba")(press, [])
            time.sleep(5)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interruptible():
            press()
    finally:
        signal.signal(signal.SIGINT, before[0])
    inside: list[object] = []

    def elsewhere() -> None:
        with interruptible():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == [signal.default_int_handler]


def as_numba_does(error: BaseException) -> None:
    """A Ctrl-C while compiled code calls back into Python comes out as a SystemError, caused by the interrupt."""
    raise SystemError("returned a result with an exception set") from error


def as_an_import_does(error: BaseException) -> None:
    """pybind11 makes an ImportError of whatever is raised while a library is imported, and we a sentence of that."""
    try:
        raise ImportError("initialization failed") from error
    except ImportError as missing:
        raise MissingDependencyError("ONNX Runtime is not installed.") from missing


@pytest.mark.parametrize("disguise", [as_numba_does, as_an_import_does])
@pytest.mark.parametrize("advice", [None, "go on"])
def test_an_interrupt_is_one_whatever_it_arrives_as(
    disguise: Callable[[BaseException], None],
    advice: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fcdeploy import cli

    def interrupted(**named: object) -> None:
        with contextlib.nullcontext() if advice is None else resumable(advice):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                disguise(error)

    monkeypatch.setattr(cli, "cli", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == ("Interrupted; go on.\n" if advice else "Interrupted.\n")


def test_what_is_kept_is_spoken_of_once_it_is_there(tmp_path: Path) -> None:
    for kept, said in ((tmp_path / "none", ""), (tmp_path, "go on")):
        with pytest.raises(KeyboardInterrupt) as interrupt, resumable("go on", kept):
            raise KeyboardInterrupt
        assert str(interrupt.value) == said


def test_what_is_not_installed_is_no_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fcdeploy import cli

    monkeypatch.setattr(cli, "cli", lambda **named: as_an_import_does(ImportError("no module")))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Error: ONNX Runtime is not installed.\n"
