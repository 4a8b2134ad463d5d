"""What is measured, of bundles that are made up."""

import numpy as np
import pytest

from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.tensors import PassSpec, TensorSpec, Timing
from fcdeploy.runtime import bench
from fcdeploy.runtime.bench import BenchOptions, Measurement, Report, compare, lengths_for, random_feeds

ROWS = PassSpec("rows", (TensorSpec("x", ("m", 512)),), (TensorSpec("y", ("m", 4)),))
GROUPS = PassSpec(
    "groups",
    (
        TensorSpec("x", ("b", "n", 512)),
        TensorSpec("adj", ("b", "n", "n")),
        TensorSpec("at", ("b", "n"), "int32"),
    ),
    (TensorSpec("y", ("b", 8)),),
)


def bundle_of(**profiles):
    passes = {spec.name: {"profiles": profiles.get(spec.name)} for spec in (ROWS, GROUPS)}
    return Bundle("small.plan", {"passes": passes})


def test_lengths_are_those_given_or_make_tensors_of_two_million_numbers():
    """2^21 / (128 * 512) = 32 neighborhoods; 2^21 / 512 = 4096 rows."""
    assert lengths_for(bundle_of(), GROUPS, BenchOptions()) == {"b": 32, "n": 128}
    assert lengths_for(bundle_of(), ROWS, BenchOptions()) == {"m": 4096}
    assert lengths_for(bundle_of(), GROUPS, BenchOptions(batch=3, nodes=7)) == {"b": 3, "n": 7}
    assert lengths_for(bundle_of(), GROUPS, BenchOptions(nodes=4096)) == {"b": 1, "n": 4096}


def test_lengths_that_nobody_gave_stay_within_a_plans_profiles():
    profiles = [{"b": [1, 4, 8], "n": [1, 16, 32]}, {"b": [1, 2, 4], "n": [33, 48, 64]}]
    bundle = bundle_of(groups=profiles, rows=[{"m": [1, 64, 100]}])
    assert lengths_for(bundle, GROUPS, BenchOptions()) == {"b": 8, "n": 64}
    assert lengths_for(bundle, ROWS, BenchOptions()) == {"m": 100}
    assert lengths_for(bundle, ROWS, BenchOptions(batch=101)) == {"m": 101}


def test_random_inputs_have_the_axes_and_types_of_the_pass_and_are_the_same_every_time():
    feeds = random_feeds(GROUPS, {"b": 2, "n": 3})
    assert {name: (array.shape, array.dtype) for name, array in feeds.items()} == {
        "x": ((2, 3, 512), np.float32),
        "adj": ((2, 3, 3), np.float32),
        "at": ((2, 3), np.int32),
    }
    assert not feeds["at"].any()
    assert 0 < feeds["x"].min() < feeds["x"].max() < 1
    assert np.array_equal(feeds["x"], random_feeds(GROUPS, {"b": 2, "n": 3})["x"])


def test_warm_up_does_not_count_and_calls_go_on_until_the_time_is_over():
    made = []

    def once():
        made.append(len(made))
        return Timing(0.0, 0.0, float(len(made)))

    assert [t.compute for t in bench._repeat(once, (2, 5), 0, 3)] == [4, 5]
    assert len(list(bench._repeat(once, (2, 5), 3600, 1))) == 5


def report_of(bundle, **seconds):
    rows = [
        Measurement(what, {"m": 10}, (took, took, 3 * took), Timing(0.25 * took, 0.25 * took, 0.5 * took), 10)
        for what, took in seconds.items()
    ]
    return Report(bundle, "sepfl", "fp32", "onnx", "cpu", "CPUExecutionProvider", 2, tuple(rows))


def test_bundles_are_compared_row_by_row_with_the_first():
    """near takes 2 and 1 seconds: the second is twice as fast; pair only the second has."""
    reports = [report_of("a", near=2.0), report_of("b", pair=3.0, near=1.0)]
    lined = [(report.bundle, row.what, ratio) for report, row, ratio in compare(reports)]
    assert lined == [("a", "near", 1.0), ("b", "near", 2.0), ("b", "pair", None)]


def test_a_row_in_json_by_hand():
    """Calls of 2, 2 and 6 s over 10 faces: median 2 s, 5 faces a second; 90 % lies at 2 + 0.8 * 4."""
    (row,) = report_of("a", near=2.0).as_dict()["rows"]
    assert row["latency_ms"] == {"p50": 2000, "p90": pytest.approx(5200), "p99": pytest.approx(5920)}
    assert row["parts_ms"] == {"host": 500, "copies": 500, "compute": 1000}
    assert (row["per_second"], row["calls"], row["size"]) == (5, 3, {"m": 10})


def test_an_engine_that_overlaps_copies_is_split_by_copying_alone(monkeypatch):
    """2 ms of a call are staging, 3 ms copies; what is left of its time is computing."""
    monkeypatch.setattr(bench, "_copies_alone", lambda *args: lambda: (0.002, 0.003))

    class Engine:
        spec = ROWS

        def run(self, feeds):
            import time

            time.sleep(0.02)
            return {"y": np.zeros((1, 4), np.float32)}

    timing = bench._timed_run(Engine(), {})()
    assert (timing.host, timing.copies) == (0.002, 0.003)
    assert 0.014 < timing.compute < 2


def test_calls_on_arrays_that_lie_on_the_device_are_noted_too():
    import time

    class Engine:
        spec = ROWS
        provider = "none"

        def run_there(self, inputs, outputs):
            time.sleep(0.01)
            seen.append((inputs, outputs))

    calls, seen = [], []
    bench._WatchedEngine(Engine(), calls).run_there({"x": 1}, {"y": 2})
    assert seen == [({"x": 1}, {"y": 2})]
    assert [0.01 <= call.compute < 2 for call in calls] == [True]


def test_waiting_for_batches_is_not_the_engines_time():
    """Batches come after 20 ms each, results after 10 ms each; only the latter are the engine's."""
    import time

    class Engine:
        spec = ROWS
        provider = "none"

        def run_each(self, batches):
            for key, feeds in batches:
                time.sleep(0.01)
                yield key, feeds

    def batches():
        for key in range(3):
            time.sleep(0.02)
            yield key, {}

    calls = []
    watched = bench._WatchedEngine(Engine(), calls)
    started = time.perf_counter()
    assert [key for key, _ in watched.run_each(batches())] == [0, 1, 2]
    elapsed = time.perf_counter() - started
    assert 0.03 <= sum(call.compute for call in calls) <= elapsed - 0.06
