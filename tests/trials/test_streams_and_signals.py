"""Commands whose standard streams are closed, full or gone, and that are told to stop, more than once.

Reported at pallets/click#2416 and python/cpython#81548 (streams that are None), docker-library/python#575 (SIGTERM in
containers) and huggingface/accelerate#1137 (what an impatient second Ctrl-C leaves behind).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcdeploy.engine.bundle import Bundle

FCDEPLOY = f"'{sys.executable}' -m fcdeploy"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize(
    "closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full"]
)
def test_a_run_without_streams_writes_its_labels(
    pse_bundle: Bundle, golden: Path, tmp_path: Path, closed: str
) -> None:
    """And nothing else goes into them: a file that is opened first would have the number of a stream."""
    run = f"{FCDEPLOY} cluster '{golden / 'dev/data/features.bin'}' --engine '{pse_bundle.path}' -o o.meta --k 20"
    full = closed.startswith(">/dev/full")  # where there is no room for the summary either
    done = shell(f"{run} {'--quiet' if full else ''} {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.isdecimal() for line in (tmp_path / "o.meta").read_text().splitlines())
    assert len((tmp_path / "o.meta").read_text().splitlines()) == 1283


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("recipe >/dev/full", 1, "Error: standard output: No space left on device.\n"),
        ("recipe >&-", 0, ""),
        ("recipe 2>&-", 0, ""),
        ("nosuch 2>&-", 2, ""),
        ("nosuch 2>/dev/full", 2, ""),
        ("cluster none.bin --engine none.onnx <&- 2>/dev/full >&-", 2, ""),
    ],
)
def test_a_stream_that_takes_nothing_changes_no_exit_code_but_that_of_results(
    line: str, code: int, said: str, tmp_path: Path
) -> None:
    done = shell(f"{FCDEPLOY} {line}", tmp_path)
    assert (done.returncode, done.stderr) == (code, said)


def test_files_of_ours_never_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "from fcdeploy.cli.streams import mend_streams; mend_streams(); "
        "print(open('data', 'w').fileno(), file=open('n', 'w'))"
    )
    for closed in ("2>&-", "<&-", ">&-", "<&- >&- 2>&-"):
        assert shell(f"'{sys.executable}' -c \"{code}\" {closed}", tmp_path).returncode == 0
        assert int((tmp_path / "n").read_text()) > 2


SLOW = """
import sys, tempfile, time
from fcdeploy import cli
from fcdeploy.data.atomic import atomic_file

def work(**named):
    with tempfile.TemporaryDirectory(dir=".") as folder, atomic_file("out.bin") as file:
        open(folder + "/scratch", "w").close()
        file.write(b"half")
        print("ready", flush=True)
        try:
            time.sleep(60)
        finally:
            for _ in range(50):
                time.sleep(0.01)  # as a large folder takes that is deleted

cli.cli = work
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "Interrupted.\n"),
        (signal.SIGTERM, 143, "Stopped by SIGTERM.\n"),
        (signal.SIGHUP, 129, "Stopped by SIGHUP.\n"),
    ],
)
def test_however_often_a_command_is_told_to_stop_it_leaves_nothing_behind(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(400):
        if process.poll() is not None:
            break
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, said)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As SIGHUP is by nohup."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW.replace(
        "sleep(60)", "sleep(0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "out.bin").read_bytes() == b"half"


@pytest.mark.parametrize(("platform", "name"), [("win32", "Windows"), ("darwin", "macOS")])
def test_other_systems_get_a_sentence(platform: str, name: str) -> None:
    """Without the modules that they do not have."""
    code = (
        "import sys; sys.platform = sys.argv[1]; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "import fcdeploy\n"
        "try: fcdeploy.cluster\n"
        "except fcdeploy.errors.FcdeployError as error: print(error)\n"
        "sys.argv[1:] = ['recipe']\n"
        "from fcdeploy.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, platform], capture_output=True, text=True, check=False)
    assert f"runs on Linux, and this is {name}" in done.stdout
    assert done.stderr.startswith("Error: fcdeploy runs on Linux")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
