"""The CUDA kernels, run on the CPU, against the numba ones."""

import ctypes
import json
import re
import shutil
import subprocess
import sys

import cuda_on_cpu
import numpy as np
import pytest

from fcdeploy.graph import aggregation, aggregation_cuda, cuda
from fcdeploy.graph.aggregation_cuda import DeviceSums, slots_for
from fcdeploy.graph.cuda import DeviceArrays
from fcdeploy.graph.marks import new_scratch
from fcdeploy.graph.neighborhoods import largest_neighborhood

N, K, WIDTH = 90, 12, 70  # a width that is no multiple of a warp or a block


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cuda_on_cpu.compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def cupy(library, monkeypatch):
    fake = cuda_on_cpu.Cupy(library)
    monkeypatch.setattr(aggregation_cuda, "import_cupy", lambda: fake)
    monkeypatch.setattr(cuda, "_modules", {})
    return fake


@pytest.fixture(scope="module")
def lists():
    """Lists over few faces, so that faces stand in both hops, often; similarities of 0 and below among them."""
    rng = np.random.default_rng(0)

    def rows(near):
        """Faces near by number first, then others; none twice in a row."""
        first = (np.arange(N)[:, None] + near) % N
        rest = [rng.permutation(np.setdiff1d(np.arange(N), row))[: K - len(near)] for row in first]
        return np.hstack([first, rest]).astype(np.int32)

    sims = rng.uniform(-0.2, 1, (N, K)).astype(np.float32)
    sims[::3, 2] = 0
    return rows([4, 1, 2, 3, 5]), rows([0, 2, -1, 7]), sims


def table(seed, width=WIDTH, half=False):
    rows = np.random.default_rng(seed).standard_normal((N, width)).astype(np.float32)
    return rows.astype(np.float16).view(np.uint16) if half else rows


def directions(half=False):
    """Unit rows around a few centres: some pairs above 0.5, most below, none near it."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((9, WIDTH))[rng.integers(0, 9, N)] + 0.4 * rng.standard_normal((N, WIDTH))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    sims = rows.astype(np.float32) @ rows.astype(np.float32).T
    assert np.abs(sims - 0.5).min() > 1e-4
    assert 0.05 < (sims > 0.5).mean() < 0.5
    return rows.view(np.uint16) if half else rows.astype(np.float32)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("hops", "active"), [((12, 5), 6), ((5, 0), 12), ((1, 3), 1)])
def test_sums_over_connected_members_are_those_of_the_cpu(cupy, lists, hops, active, times, half):
    ranked, ids, sims = lists
    faces = np.random.default_rng(1).permutation(N)[:40].astype(np.int32)
    arguments = (ranked, ids, sims, faces, hops, active, times, table(2, half=half), new_scratch(N))
    found = DeviceSums().sum_connected(*arguments)
    expected = aggregation.sum_connected(*arguments)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert cupy.launches == [(f"sum_connected_{'float16' if half else 'float32'}", 40, 128)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("hops", [(12, 5), (5, 0), (1, 3)])
def test_sums_over_similar_members_are_those_of_the_cpu(cupy, lists, hops, half):
    faces = np.arange(0, N, 2, dtype=np.int32)
    arguments = (lists[0], faces, hops, directions(half), table(3, 41, half), new_scratch(N))
    found = DeviceSums().sum_similar(*arguments)
    np.testing.assert_allclose(found, aggregation.sum_similar(*arguments), rtol=0, atol=2e-6)
    assert cupy.launches == [(f"sum_similar_{'float16' if half else 'float32'}", 45, 128)]


def test_every_float16_is_read_as_the_number_it_is(cupy):
    """Each face alone in its neighborhood, its weight 1 / (1 + 1e-5): all 65,536 patterns of bits in one table."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1024)
    alone = np.arange(64, dtype=np.int32)[:, None]
    sims = np.zeros((64, 1), np.float32)
    arguments = (alone, alone, sims, alone[:, 0], (1, 0), 1, 1, bits, new_scratch(64))
    found = DeviceSums().sum_connected(*arguments)
    with np.errstate(invalid="ignore"):
        expected = bits.view(np.float16).astype(np.float32) * (np.float32(1) / np.float32(1 + 1e-5))
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-6, atol=0)
    assert np.array_equal(found[~finite & ~np.isnan(expected)], expected[~finite & ~np.isnan(expected)])


def test_no_faces_and_one_face(cupy, lists):
    arguments = (new_scratch(N),)
    for count in (0, 1):
        faces = np.arange(count, dtype=np.int32)
        found = DeviceSums().sum_similar(lists[0], faces, (12, 5), directions(), table(3), *arguments)
        expected = aggregation.sum_similar(lists[0], faces, (12, 5), directions(), table(3), *arguments)
        assert found.shape == (count, WIDTH)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_what_does_not_fit_on_the_device_is_summed_on_the_cpu(cupy, lists):
    rows = table(2)
    budget = 2 * (lists[0].nbytes + directions().nbytes + rows.nbytes)
    arguments = (lists[0], np.arange(9, dtype=np.int32), (12, 5), directions(), rows, new_scratch(N))
    expected = aggregation.sum_similar(*arguments)
    assert np.array_equal(DeviceSums(vram=budget - 2).sum_similar(*arguments), expected)
    assert cupy.launches == []
    DeviceSums(vram=budget).sum_similar(*arguments)
    assert len(cupy.launches) == 1


def test_sums_are_on_the_gpu_only_where_there_is_one_and_cupy_to_use_it(cupy, lists, monkeypatch):
    """What they hold there is freed behind them: the next stage may need the room."""
    with aggregation_cuda.sums_on(gpu=False) as sums:
        assert sums is aggregation
    with aggregation_cuda.sums_on(gpu=True) as sums:
        assert isinstance(sums, DeviceSums)
        faces = np.arange(9, dtype=np.int32)
        sums.sum_similar(lists[0], faces, (12, 5), directions(), table(2), new_scratch(N))
        assert sums._arrays.nbytes > 0
    assert sums._arrays.nbytes == 0
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(aggregation_cuda, "import_cupy", cuda.import_cupy)
    with aggregation_cuda.sums_on(gpu=True) as sums:
        assert sums is aggregation


def test_a_layerwise_run_on_the_gpu_gives_the_clusters_of_the_cpu(cupy, golden, pse_bundle, monkeypatch):
    """The whole flow with the kernels' source run on the CPU, and an engine that is said to be on a GPU."""
    import fcdeploy
    from fcdeploy.run.run import Run

    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:60]
    options = {"engine": pse_bundle.path, "k": 12, "hops": (8, 2), "inference": "layerwise"}
    expected = fcdeploy.cluster(faces, **options, tau=0.8)
    assert cupy.launches == []
    monkeypatch.setattr(Run, "on_gpu", True)
    assert np.array_equal(fcdeploy.cluster(faces, **options, tau=0.8), expected)
    assert [name for name, *_ in cupy.launches] == [
        *("sum_connected_float32", "sum_similar_float32", "sum_connected_float32", "sum_similar_float32")
    ]
    assert 1 < expected.max() < 58


@pytest.fixture
def everywhere(cupy, monkeypatch):
    """Let every module find the stand-in."""
    from fcdeploy.graph import cell_search_cuda, products_cuda, rerank_cuda
    from fcdeploy.systems.pse_gcn import layers_cuda

    for module in (cuda, cell_search_cuda, rerank_cuda, layers_cuda):
        monkeypatch.setattr(module, "import_cupy", lambda: cupy)
    monkeypatch.setattr(products_cuda, "import_cublas", lambda: cupy.cublas)
    return cupy


def test_a_layerwise_run_that_stays_on_the_gpu_gives_the_clusters_of_the_cpu(
    everywhere, golden, pse_bundle, monkeypatch, tmp_path
):
    """Search, re-ranking, sums and passes over arrays on the device, in blocks of 16 faces; only lists come back."""
    import fcdeploy
    from fcdeploy.graph import cuda
    from fcdeploy.run.run import Run
    from fcdeploy.systems.pse_gcn import layers, layers_cuda

    monkeypatch.setattr(layers, "ENGINE_ROWS", 16)
    monkeypatch.setattr(layers_cuda, "ENGINE_ROWS", 16)
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:60]
    options = {"engine": pse_bundle.path, "k": 12, "hops": (8, 2), "inference": "layerwise", "tau": 0.8}
    expected = fcdeploy.cluster(faces, **options)
    assert everywhere.launches == []
    monkeypatch.setattr(Run, "on_gpu", True)
    before = cuda.copied.back
    assert np.array_equal(fcdeploy.cluster(faces, **options, run_dir=tmp_path / "run"), expected)
    names = [name for name, *_ in everywhere.launches]
    assert {"keep_floats", "order_candidates", "mark_mutual", "rank_candidates"} < set(names)
    assert names.count("sum_connected_float32") == names.count("sum_similar_float32") == 2 * 4
    assert names.count("count_not_finite") == 6
    assert "gather_rows" in names  # of the features, which stay there from the search on
    # Lists of 12 twice, re-ranked ones and their overlaps, refined features; cells, sizes of sets, and six flags.
    assert cuda.copied.back - before == 60 * 12 * 8 * 2 + 60 * 12 * 12 + 60 * 64 * 4 + 60 * 4 + 60 * 4 + 6 * 4
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["copied"]["from_device"] == cuda.copied.back - before
    assert sum(stage["from_device"] for stage in summary["stages"].values()) == cuda.copied.back - before
    assert summary["stages"]["refine"]["from_device"] == 60 * 64 * 4 + 6 * 4
    launched = len(names)
    monkeypatch.setattr(layers_cuda, "device_budget", lambda cupy, vram, resident: 0)
    assert np.array_equal(fcdeploy.cluster(faces, **options, run_dir=tmp_path / "other"), expected)
    again = [name for name, *_ in everywhere.launches[launched:]]
    assert again.count("sum_connected_float32") == 8
    assert "count_not_finite" not in again
    # Tables that lie on the host between the layers give the same, to the bit.
    lists = [np.load(tmp_path / run / "refined_knn/sims.npy") for run in ("run", "other")]
    assert np.array_equal(*lists)


def test_refined_features_stay_on_the_gpu_for_the_search_among_them(
    everywhere, golden, pse_bundle, monkeypatch
):
    """They go over once, to the host, where there is room for them; else twice. Clusters are the same."""
    import fcdeploy
    from fcdeploy.graph.cuda import DeviceArrays
    from fcdeploy.run.run import Run
    from fcdeploy.systems.pse_gcn import layers_cuda

    monkeypatch.setattr(layers_cuda, "ENGINE_ROWS", 16)
    monkeypatch.setattr(Run, "on_gpu", True)
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:60]
    options = {"engine": pse_bundle.path, "k": 12, "hops": (8, 2), "inference": "layerwise", "tau": 0.8}
    copied, labels = [], []
    for fits in (DeviceArrays.fits, lambda self, size: size < 60 * 64 * 4):
        monkeypatch.setattr(DeviceArrays, "fits", fits)
        before = cuda.copied.there
        labels.append(fcdeploy.cluster(faces, **options))
        copied.append(cuda.copied.there - before)
    assert np.array_equal(*labels)
    # Instead of the features, the face of each row.
    assert copied[1] - copied[0] == 60 * 64 * 4 - 60 * 4


def test_an_update_on_the_gpu_computes_the_faces_that_are_new(
    everywhere, golden, pse_bundle, monkeypatch, tmp_path
):
    """Their places lie anywhere, not one behind the other; all tables are computed, and lists are those of one run."""
    import fcdeploy
    from fcdeploy.run.run import Run
    from fcdeploy.systems.pse_gcn import layers_cuda

    monkeypatch.setattr(layers_cuda, "ENGINE_ROWS", 8)
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:60]
    options = {"engine": pse_bundle.path, "k": 12, "hops": (8, 2), "inference": "layerwise", "tau": 0.8}
    lists = []
    for gpu in (False, True):
        monkeypatch.setattr(Run, "on_gpu", gpu)
        run = tmp_path / f"run-{gpu}"
        fcdeploy.cluster(faces[:45], **options, run_dir=run)
        before = len(everywhere.launches)
        fcdeploy.update(run, add=faces[45:])
        assert ("count_not_finite" in [name for name, *_ in everywhere.launches[before:]]) == gpu
        lists.append(np.load(run / "refined_knn/ids.npy"))
    assert np.array_equal(*lists)


def test_copies_made_on_the_device_are_kept_like_others(library):
    fake = cuda_on_cpu.Cupy(library)
    first, second = (np.full((100, 4), at, np.float32) for at in range(2))
    held = DeviceArrays(fake, first.nbytes)
    copy = cuda.upload(fake, first)
    held.adopt(first, copy)
    allocated = fake.allocated
    assert held.get(first.view()) == [copy]
    assert fake.allocated == allocated
    held.adopt(second, cuda.upload(fake, second))  # in the place of the first
    assert held.nbytes == first.nbytes
    large = np.zeros((101, 4), np.float32)
    held.adopt(large, cuda.upload(fake, large))  # for which there never is room
    assert held.nbytes == first.nbytes
    assert np.array_equal(held.get(second)[0].get(), second)
    del second
    held.adopt(first, copy)
    assert len(held._held) == 1


def test_sums_leave_room_for_what_stays_on_the_device(cupy, lists):
    rows = table(2)
    resident = DeviceArrays(cupy, rows.nbytes)
    resident.get(rows)
    budget = 2 * (lists[0].nbytes + directions().nbytes + rows.nbytes)
    arguments = (lists[0], np.arange(9, dtype=np.int32), (12, 5), directions(), table(2), new_scratch(N))
    DeviceSums(budget + rows.nbytes - 2, resident).sum_similar(*arguments)
    assert cupy.launches == []
    DeviceSums(budget + rows.nbytes, resident).sum_similar(*arguments)
    assert len(cupy.launches) == 1


def test_tables_that_are_not_finite_are_told_by_face(everywhere, golden, pse_bundle, monkeypatch):
    import fcdeploy
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
    from fcdeploy.errors import FcdeployError
    from fcdeploy.run.run import Run

    def run_there(self, inputs, outputs, run=OnnxRuntimeEngine.run_there):
        run(self, inputs, outputs)
        if "near2" in outputs:
            place = outputs["near2"]
            numbers = (ctypes.c_float * (place.shape[0] * place.shape[1])).from_address(place.address)
            numbers[5 * place.shape[1] + 3] = float("nan")

    monkeypatch.setattr(OnnxRuntimeEngine, "run_there", run_there)
    monkeypatch.setattr(Run, "on_gpu", True)
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:60]
    options = {"engine": pse_bundle.path, "k": 12, "hops": (8, 2), "inference": "layerwise"}
    with pytest.raises(FcdeployError, match=r"a value that is not finite for 1 of 60 faces \(rows 5 of"):
        fcdeploy.cluster(faces, **options)


def test_published_neighborhoods_fit_into_shared_memory_and_huge_ones_do_not():
    assert slots_for((80, 10)) == 1024 > largest_neighborhood((80, 10))
    assert slots_for((150, 10)) == 2048
    assert slots_for((200, 10)) == 0


def test_copies_stay_while_they_are_wanted_and_there_is_room(library):
    fake = cuda_on_cpu.Cupy(library)
    first, second, third = (np.full((100, 4), at, np.float32) for at in range(3))
    held = DeviceArrays(fake, 2 * first.nbytes)
    one, two = held.get(first, second)
    assert held.get(second.view(), first.view()) == [
        two,
        one,
    ]  # the same memory, whatever object it is seen by
    assert fake.allocated == 2 * first.nbytes
    assert np.array_equal(held.get(third)[0].get(), third)  # the place of the one used longest ago, second
    assert held.get(first) == [one]
    assert fake.allocated == 3 * first.nbytes
    assert held.get(first, second, third) is None
    del first
    held.get(third)
    assert len(held._held) == 1


def test_large_arrays_go_over_in_parts(library, monkeypatch):
    monkeypatch.setattr(cuda, "UPLOAD_ROWS", 7)
    rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)[:, ::2]
    assert np.array_equal(DeviceArrays(cuda_on_cpu.Cupy(library), 1 << 20).get(rows)[0].get(), rows)


@pytest.mark.parametrize("source", cuda_on_cpu.SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("architecture", ["sm_86", "sm_90"])  # RTX 3090; H100 and H200
def test_nvidias_compiler_takes_the_source_and_keeps_all_in_registers(tmp_path, source, architecture):
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc")
    command = [
        compiler,
        f"-arch={architecture}",
        "-cubin",
        "-Xptxas=-v",
        "-o",
        tmp_path / "kernels.cubin",
        source,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == source.read_text().count('extern "C" __global__')
    assert set(spills) == {("0", "0")}
    assert "warning" not in done.stderr


def test_rows_are_gathered_and_zero_where_there_is_no_node(cupy):
    from fcdeploy.graph.cuda import kernel

    rows = table(1)
    nodes = np.random.default_rng(2).integers(-1, N, 300).astype(np.int32)
    source, where, out = (
        cupy.empty(a.shape, a.dtype) for a in (rows, nodes, np.empty((300, WIDTH), np.float32))
    )
    source.set(rows)
    where.set(nodes)
    arguments = (source, where, out, np.int64(300), np.int32(WIDTH))
    kernel(cupy, "gather_rows")((7,), (64,), arguments, shared_mem=8)
    assert np.array_equal(out.get(), np.where(nodes[:, None] < 0, 0, rows[nodes]))


@pytest.mark.gpu
def test_on_a_gpu_the_sums_are_those_of_the_cpu(lists):
    """The same as above, on a real device."""
    pytest.importorskip("cupy")
    ranked, ids, sims = lists
    faces = np.arange(N, dtype=np.int32)
    sums = DeviceSums()
    for half in (False, True):
        arguments = (ranked, ids, sims, faces, (12, 5), 6, 2, table(2, half=half), new_scratch(N))
        np.testing.assert_allclose(
            sums.sum_connected(*arguments), aggregation.sum_connected(*arguments), rtol=0, atol=1e-5
        )
        arguments = (ranked, faces, (12, 5), directions(half), table(3, half=half), new_scratch(N))
        np.testing.assert_allclose(
            sums.sum_similar(*arguments), aggregation.sum_similar(*arguments), rtol=0, atol=1e-5
        )
    sums.close()


@pytest.mark.gpu
def test_on_a_gpu_rows_are_gathered_and_zero_where_there_is_no_node():
    from fcdeploy.graph.cuda import kernel

    cupy = pytest.importorskip("cupy")
    rows = table(1)
    nodes = np.random.default_rng(2).integers(-1, N, 300).astype(np.int32)
    (source,) = DeviceArrays(cupy, 1 << 20).get(rows)
    where, out = cupy.asarray(nodes), cupy.empty((300, WIDTH), np.float32)
    arguments = (source, np.uint64(where.data.ptr), np.uint64(out.data.ptr), np.int64(300), np.int32(WIDTH))
    kernel(cupy, "gather_rows")((7,), (128,), arguments)
    assert np.array_equal(out.get(), np.where(nodes[:, None] < 0, 0, rows[nodes]))
