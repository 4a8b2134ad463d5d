"""Running plans, with stand-ins for TensorRT and CuPy that do everything as late as they may."""

import fake_gpu
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcdeploy.engine.batching import Rows
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.engine.tensorrt import PlanTarget, TensorRtEngine
from fcdeploy.engine.tensors import PassSpec, Place, TensorSpec, divisible_axis
from fcdeploy.errors import FcdeployError, InputError, MissingDependencyError

onnx = pytest.importorskip("onnx")

TARGET = PlanTarget("tensorrt", fake_gpu.VERSION, "8.6", "Fake GPU", "mine.toml")
REMAKE = "rebuild it with `fcdeploy build a.onnx -o a.plan --profile mine.toml`"
PROFILES = [
    {"b": (1, 4, 8), "n": (1, 2, 4)},
    {"b": (1, 2, 3), "n": (5, 6, 9)},
]


def spec_of(rows: str = "b") -> PassSpec:
    return PassSpec(
        "neighborhood",
        (
            TensorSpec("x", (rows, "n", 3)),
            TensorSpec("adj", (rows, "n", "n")),
            TensorSpec("shift", (rows, 3)),
        ),
        (TensorSpec("y", (rows, "n", 3)), TensorSpec("sums", (rows, 3))),
    )


def write_graph(path, rows="b"):
    """y = adj x, sums = sum of y over n + shift."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    spec = spec_of(rows)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["adj", "x"], ["y"]),
            helper.make_node("ReduceSum", ["y", "axes"], ["s"], keepdims=0),
            helper.make_node("Add", ["s", "shift"], ["sums"]),
        ],
        "g",
        [helper.make_tensor_value_info(t.name, kind, list(t.axes)) for t in spec.inputs],
        [helper.make_tensor_value_info(t.name, kind, list(t.axes)) for t in spec.outputs],
        [onnx.numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())


def feeds_of(b, n, seed=0):
    """Whole numbers, whose sums are exact whatever their order."""
    rng = np.random.default_rng([seed, b, n])
    shapes = {"x": (b, n, 3), "adj": (b, n, n), "shift": (b, 3)}
    return {name: rng.integers(-9, 9, shape).astype(np.float32) for name, shape in shapes.items()}


def answer(feeds):
    y = feeds["adj"] @ feeds["x"]
    return {"y": y, "sums": y.sum(axis=1) + feeds["shift"]}


def same(found, feeds):
    expected = answer(feeds)
    return found.keys() == expected.keys() and all(np.array_equal(found[k], expected[k]) for k in expected)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "g.onnx"
    write_graph(path)
    return path


@pytest.fixture
def trt(monkeypatch):
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def open_engine(trt, graph, tmp_path):
    def run(profiles=PROFILES, spec=None, **options):
        fake_gpu.write_fake_plan(graph, tmp_path / "g.plan", PROFILES)
        return TensorRtEngine(
            tmp_path / "g.plan", spec or spec_of(), TARGET, profiles, remake=REMAKE, **options
        )

    return run


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=8))
def test_batches_of_any_size_give_the_graphs_answers_in_order(open_engine, trt, sizes):
    """Sizes within the ranges, beyond them in b, and empty ones, one after the other over the same buffers."""
    trt.calls.clear()
    with open_engine() as engine:
        batches = [(at, feeds_of(*size, seed=at)) for at, size in enumerate(sizes)]
        found = list(engine.run_each(iter(batches)))
    assert [key for key, _ in found] == list(range(len(sizes)))
    assert all(same(outputs, feeds) for (_, outputs), (_, feeds) in zip(found, batches, strict=True))
    for profile, lengths in trt.calls:
        assert all(PROFILES[profile][a][0] <= n <= PROFILES[profile][a][2] for a, n in lengths.items())
    assert not trt.memory.live


def test_a_batch_within_the_ranges_is_one_computation_and_others_are_cut_evenly(open_engine, trt):
    with open_engine() as engine:
        for size in ((8, 4), (9, 4), (3, 9), (7, 5)):
            feeds = feeds_of(*size)
            assert same(engine.run(feeds), feeds)
    assert [(profile, lengths["b"]) for profile, lengths in trt.calls] == [
        (0, 8),
        *[(0, 4), (0, 5)],
        (1, 3),
        *[(1, 2), (1, 2), (1, 3)],
    ]


def test_the_next_batch_is_on_its_way_while_one_is_computed(open_engine, trt):
    """The third batch is asked for before the first is handed out, and only then."""
    asked = []

    def batches():
        for at in range(4):
            asked.append(at)
            yield at, feeds_of(2, 2, at)

    with open_engine() as engine:
        results = engine._run_each(batches())
        assert next(results)[0] == 0
        assert asked == [0, 1, 2]
        assert [key for key, _ in results] == [1, 2, 3]


def test_results_are_the_callers_own(open_engine):
    with open_engine() as engine:
        first = feeds_of(2, 2, 1)
        kept = engine.run(first)
        for seed in range(4):
            engine.run(feeds_of(2, 2, seed))
        kept["y"] += 1
        assert np.array_equal(kept["y"], answer(first)["y"] + 1)


def test_an_abandoned_iteration_leaves_an_engine_that_works(open_engine):
    """The next batches are larger: their buffers take the place of some that are still on their way."""
    with open_engine() as engine:
        results = engine.run_each((at, feeds_of(2, 2, at)) for at in range(5))
        next(results)
        results.close()
        batches = [(size, feeds_of(*size)) for size in ((8, 4), (7, 4))]
        for (_, outputs), (_, feeds) in zip(engine.run_each(batches), batches, strict=True):
            assert same(outputs, feeds)


def test_closing_waits_for_what_the_device_is_doing(open_engine):
    with open_engine() as engine:
        results = engine.run_each((at, feeds_of(2, 2, at)) for at in range(5))
        next(results)
        streams = (engine._copies, engine._compute)
        assert any(stream.queue for stream in streams)
    assert not any(stream.queue for stream in streams)


def test_of_profiles_that_overlap_the_one_that_takes_a_batch_whole_is_used(trt, graph, tmp_path):
    """b = 6 is too long for the first and fits the second; b = 40 goes to the longest, the third, in two parts."""
    nodes = {"n": (1, 2, 4)}
    profiles = [{"b": (1, 2, most), **nodes} for most in (5, 10, 20)]
    fake_gpu.write_fake_plan(graph, tmp_path / "g.plan", profiles)
    with TensorRtEngine(tmp_path / "g.plan", spec_of(), TARGET, profiles, remake=REMAKE) as engine:
        for b in (5, 6, 40):
            feeds = feeds_of(b, 2)
            assert same(engine.run(feeds), feeds)
    assert [(profile, lengths["b"]) for profile, lengths in trt.calls] == [(0, 5), (1, 6), (2, 20), (2, 20)]


def test_arrays_that_are_not_contiguous_are_taken_as_they_are_meant(open_engine):
    feeds = feeds_of(4, 3)
    feeds["adj"] = np.asfortranarray(feeds["adj"])
    feeds["x"] = feeds_of(8, 3)["x"][::2]
    with open_engine() as engine:
        assert same(engine.run(feeds), feeds)


def test_what_the_spec_does_not_say_is_refused(open_engine):
    with open_engine() as engine:
        for change in ({"x": np.zeros((2, 2, 4), np.float32)}, {"shift": np.zeros((3, 3), np.float32)}):
            with pytest.raises(FcdeployError, match="expected"):
                engine.run({**feeds_of(2, 2), **change})


def test_a_size_that_no_profile_reaches_is_refused_with_the_ranges(open_engine):
    with open_engine() as engine, pytest.raises(FcdeployError) as refused:
        engine.run(feeds_of(2, 10))
    assert "a batch of b = 2, n = 10 is outside what the plan was built for (" in str(refused.value)
    assert "b 1 to 8, n 1 to 4 or b 1 to 3, n 5 to 9" in str(refused.value)


def test_faces_that_meet_in_the_graph_are_never_taken_apart(trt, tmp_path):
    """The same graph with its first axis called otherwise: nothing is known of it, so it goes whole or not at all."""
    assert divisible_axis(spec_of("b")) == "b"
    assert divisible_axis(spec_of("s")) is None
    assert divisible_axis(PassSpec("p", (TensorSpec("x", ("b", "b")),), (TensorSpec("y", ("b",)),))) is None
    assert divisible_axis(PassSpec("p", (TensorSpec("x", ("b", 3)),), (TensorSpec("y", (3, "b")),))) is None
    shared = PassSpec(
        "p", (TensorSpec("x", ("b", "n", 3)), TensorSpec("w", ("n", 3))), (TensorSpec("y", ("b", 3)),)
    )
    assert divisible_axis(shared) == "b"
    write_graph(tmp_path / "g.onnx", "s")
    profiles = [{"s": (1, 4, 8), "n": (1, 2, 4)}]
    fake_gpu.write_fake_plan(tmp_path / "g.onnx", tmp_path / "g.plan", profiles)
    with TensorRtEngine(tmp_path / "g.plan", spec_of("s"), TARGET, profiles, remake=REMAKE) as engine:
        feeds = feeds_of(8, 2)
        assert same(engine.run(feeds), feeds)
        with pytest.raises(FcdeployError, match=r"s = 9, n = 2 is outside what the plan was built for"):
            engine.run(feeds_of(9, 2))
    assert len(trt.calls) == 1


def test_an_input_without_the_divided_axis_goes_whole_with_every_part(trt, tmp_path):
    """y = x + w for x (b, n, 3) and one w (n, 3)."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    spec = PassSpec(
        "p", (TensorSpec("x", ("b", "n", 3)), TensorSpec("w", ("n", 3))), (TensorSpec("y", ("b", "n", 3)),)
    )
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(t.name, kind, list(t.axes)) for t in spec.inputs],
        [helper.make_tensor_value_info(t.name, kind, list(t.axes)) for t in spec.outputs],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    profiles = [{"b": (1, 2, 3), "n": (1, 2, 4)}]
    fake_gpu.write_fake_plan(tmp_path / "g.onnx", tmp_path / "g.plan", profiles)
    with TensorRtEngine(tmp_path / "g.plan", spec, TARGET, profiles, remake=REMAKE) as engine:
        feeds = {"x": feeds_of(7, 2)["x"], "w": feeds_of(2, 2)["shift"]}
        assert np.array_equal(engine.run(feeds)["y"], feeds["x"] + feeds["w"])
    assert [lengths["b"] for _, lengths in trt.calls] == [2, 2, 3]


def test_device_memory_is_bounded_and_batches_are_cut_to_fit(open_engine, trt, tmp_path):
    feeds = feeds_of(8, 4)
    with open_engine() as engine:
        engine.run(feeds)
    unbounded = trt.memory.peak
    size = (tmp_path / "g.plan").stat().st_size
    each = 4 * (4 * 3 + 4 * 4 + 3 + 4 * 3 + 3)  # bytes of one b at n = 4, inputs and outputs
    trt.calls.clear()
    trt.memory.peak = 0
    with open_engine(vram=size + trt.workspace + 2 * 3 * each) as engine:
        assert same(engine.run(feeds), feeds)
    assert [lengths["b"] for _, lengths in trt.calls] == [2, 3, 3]
    assert trt.memory.peak <= trt.workspace + 2 * 3 * each < unbounded + 2 * each
    with (
        open_engine(vram=size + trt.workspace) as engine,
        pytest.raises(FcdeployError, match=r"needs at least .* MB of device memory, and (--)?vram allows"),
    ):
        engine.run(feeds)


def test_a_full_device_is_one_sentence(open_engine, trt):
    trt.memory.limit = 100
    with open_engine() as engine, pytest.raises(FcdeployError, match="GPU memory is full; give a smaller"):
        engine.run(feeds_of(8, 4))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("set_optimization_profile_async", r"could not use profile 0 \(told to fail\)"),
        ("set_input_shape", "could not shape x"),
        ("set_tensor_address", "could not bind x"),
        ("get_tensor_shape", "could not find the shape of y"),
        ("execute_async_v3", "could not start the computation"),
        ("the computation", "CUDA failed"),
    ],
)
def test_every_call_that_fails_stops_the_run(open_engine, trt, call, says):
    with open_engine() as engine:
        trt.fail.add(call)
        with pytest.raises(FcdeployError, match=says) as stopped:
            engine.run(feeds_of(2, 2))
        assert "(pass neighborhood): " in str(stopped.value)
        trt.fail.clear()


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "create_execution_context"])
def test_a_plan_that_does_not_open_is_one_sentence(open_engine, trt, call):
    trt.fail.add(call)
    with pytest.raises(FcdeployError, match=r"cannot load this plan|could not create an execution context"):
        open_engine()


def test_a_plan_of_other_tensors_or_profiles_than_the_manifest_says(open_engine):
    spec = spec_of()
    other = PassSpec("neighborhood", spec.inputs, (*spec.outputs[:1], TensorSpec("sums", ("b", 4))))
    for options in ({"spec": other}, {"profiles": PROFILES[:1]}):
        with pytest.raises(
            InputError, match="are not those of the manifest; rebuild it with `fcdeploy build"
        ):
            open_engine(**options)


def test_without_cupy_the_sentence_says_how_to_get_it(open_engine, monkeypatch):
    import sys

    from fcdeploy.engine import tensorrt as module
    from fcdeploy.graph import cuda

    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(module, "import_cupy", cuda.import_cupy)
    with pytest.raises(
        MissingDependencyError, match=r"CuPy.*install it with `pip install 'fcdeploy\[gpu\]'`"
    ):
        open_engine()


def rows_feeds(b, n, seed=0):
    """Feeds whose x comes from a table of 50 rows, and the same with x spelled out."""
    rng = np.random.default_rng([seed, b, n])
    table = TABLES[seed % 2]
    nodes = rng.integers(-1, 50, (b, n)).astype(np.int32)
    feeds = feeds_of(b, n, seed)
    plain = np.where(nodes[:, :, None] < 0, 0, table[nodes])
    return {**feeds, "x": Rows(table, nodes)}, {**feeds, "x": plain}


TABLES = [np.random.default_rng(at).integers(-9, 9, (50, 3)).astype(np.float32) for at in range(2)]


@pytest.mark.parametrize(
    ("memory", "uploads"),
    [(1 << 30, True), (2 * TABLES[0].nbytes, True), (2 * TABLES[0].nbytes - 2, False)],
)
def test_rows_of_tables_are_gathered_on_the_device_where_the_table_fits(
    open_engine, trt, monkeypatch, memory, uploads
):
    """Two tables in turn: both stay there, or each takes the other's place, or none fits and the host gathers."""
    from fcdeploy.engine import tensorrt as module
    from fcdeploy.engine.cuda import Gpu

    monkeypatch.setattr(module, "find_gpu", lambda who, advice: Gpu("Fake GPU", "8.6", memory))
    pairs = [rows_feeds(b, n, at) for at, (b, n) in enumerate([(3, 2), (8, 4), (1, 9), (20, 3), (2, 2)])]
    with open_engine() as engine:
        found = list(engine.run_each((at, feeds) for at, (feeds, _) in enumerate(pairs)))
    for (_, outputs), (_, plain) in zip(found, pairs, strict=True):
        assert same(outputs, plain)
    assert trt.memory.gathered == (sum(plain["x"][:, :, 0].size for _, plain in pairs) if uploads else 0)
    assert not trt.memory.live


def test_tables_count_as_device_memory_in_use(open_engine, trt, tmp_path):
    """Half of --vram may be tables, and batches are cut to what is left beside them."""
    feeds, plain = rows_feeds(8, 4)
    open_engine().close()
    size = (tmp_path / "g.plan").stat().st_size
    each = 4 * (4 * 3 + 4 * 4 + 3 + 4 * 3 + 3)
    table = TABLES[0].nbytes
    trt.memory.peak = 0
    with open_engine(vram=size + trt.workspace + table + 2 * 3 * each) as engine:
        assert same(engine.run(feeds), plain)
    assert [lengths["b"] for _, lengths in trt.calls] == [2, 3, 3]
    nodes = 2 * 3 * 4 * 4  # of both slots
    assert trt.memory.peak <= trt.workspace + table + 2 * 3 * each + nodes


def test_onnx_runtime_gathers_rows_itself(graph):
    feeds, plain = rows_feeds(5, 3)
    with OnnxRuntimeEngine(graph, spec_of()) as engine:
        assert same(engine.run(feeds), plain)
        assert same(next(iter(engine.run_each([(0, feeds)])))[1], plain)
        with pytest.raises(FcdeployError, match="expected x"):
            engine.run({**feeds, "x": Rows(np.zeros((9, 4), np.float32), feeds["x"].nodes)})


def test_onnx_runtime_runs_batches_one_after_the_other_too(graph):
    with OnnxRuntimeEngine(graph, spec_of()) as engine:
        batches = [(at, feeds_of(at + 1, 2)) for at in range(3)]
        found = list(engine.run_each(batches))
    assert [key for key, _ in found] == [0, 1, 2]
    assert all(same(outputs, feeds) for (_, outputs), (_, feeds) in zip(found, batches, strict=True))


def places_on(memory, arrays):
    """Copies of arrays in the stand-in's memory: what holds them, and their places."""
    held = {name: fake_gpu.Pointer(memory, array.nbytes) for name, array in arrays.items()}
    for name, array in arrays.items():
        fake_gpu.ctypes.memmove(held[name].ptr, array.ctypes.data, array.nbytes)
    return held, {name: Place(held[name].ptr, array.shape) for name, array in arrays.items()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(b=st.integers(1, 40), n=st.integers(1, 9))
def test_arrays_that_lie_on_the_device_are_computed_there(open_engine, trt, b, n):
    """In parts where the plan's ranges end, and without a copy."""
    feeds = feeds_of(b, n)
    expected = answer(feeds)
    with open_engine() as engine:
        held, inputs = places_on(trt.memory, feeds)
        got, outputs = places_on(trt.memory, {name: np.zeros_like(array) for name, array in expected.items()})
        engine.run_there(inputs, outputs)
        for name, array in expected.items():
            held_bytes = (fake_gpu.ctypes.c_char * array.nbytes).from_address(got[name].ptr)
            assert np.array_equal(np.frombuffer(held_bytes, np.float32).reshape(array.shape), array)
        assert same(engine.run(feeds), feeds)  # the engine's own buffers again
    assert len(held) == 3


def test_places_of_other_shapes_than_the_plan_takes_are_refused(open_engine, trt):
    feeds = feeds_of(2, 3)
    with open_engine() as engine:
        held, inputs = places_on(trt.memory, feeds)
        got, outputs = places_on(trt.memory, answer(feeds))
        wrong = {**outputs, "sums": outputs["sums"].rows(0, 1)}
        for given_outputs, found in (
            (wrong, r"found \(1, 3\)"),
            ({"y": outputs["y"]}, "expected the inputs"),
        ):
            with pytest.raises(FcdeployError, match=found):
                engine.run_there(inputs, given_outputs)
        trt.fail.add("the computation")
        with pytest.raises(FcdeployError, match="CUDA failed"):
            engine.run_there(inputs, outputs)
    assert (len(held), len(got)) == (3, 2)


def test_onnx_runtime_computes_arrays_where_they_lie(graph):
    feeds = feeds_of(7, 4)
    outputs = {name: np.full_like(array, np.nan) for name, array in answer(feeds).items()}
    with OnnxRuntimeEngine(graph, spec_of()) as engine:
        engine.run_there(
            *(
                {name: Place(array.ctypes.data, array.shape) for name, array in side.items()}
                for side in (feeds, outputs)
            )
        )
    assert same(outputs, feeds)
