"""kNN on a GPU: with a stand-in for faiss-gpu that searches on the CPU and keeps book, and with the real one."""

from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph import faiss_library, knn
from fcdeploy.graph.knn import GPU_MOST, KnnSearch
from fcdeploy.graph.partition import make_cells

FREE = 1 << 20


def unit_rows(n, d, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class FakeFaiss:
    """faiss with one GPU, whose indexes are CPU indexes that count what they are asked."""

    def __init__(self, gpus=1):
        self.get_num_gpus = lambda: gpus
        self.temporary, self.searched = [], 0

    def __getattr__(self, name):
        return getattr(faiss, name)

    def StandardGpuResources(self):
        return SimpleNamespace(setTempMemory=self.temporary.append)

    def GpuClonerOptions(self):
        return SimpleNamespace()

    def GpuIndexFlatIP(self, resources, d):
        return self._counting(faiss.IndexFlatIP(d))

    def index_cpu_to_gpu(self, resources, device, index, options):
        assert options.use_cuvs is False
        assert device == 0
        return self._counting(faiss.clone_index(index))

    def _counting(self, index):
        def search(queries, k):
            self.searched += len(queries)
            return index.search(queries, k)

        return SimpleNamespace(search=search, add=index.add)


@pytest.fixture
def with_gpu(monkeypatch):
    """Make faiss's stand-in the one that is imported, with FREE bytes of device memory."""

    def install(gpus=1):
        fake = FakeFaiss(gpus)
        monkeypatch.setattr(knn, "import_faiss", lambda: fake)
        runtime = SimpleNamespace(memGetInfo=lambda: (FREE, 2 * FREE))
        cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
        monkeypatch.setattr(faiss_library, "import_cupy", lambda: cupy)
        return fake

    return install


def lists_of(vectors, cells=None, **options):
    return KnnSearch(vectors, cells, **options).search(np.arange(len(vectors), dtype=np.int32), 10)


@pytest.mark.parametrize("ivf", [False, True])
def test_lists_found_on_a_gpu_are_those_of_the_cpu(with_gpu, ivf):
    vectors = unit_rows(600, 16)
    cells = make_cells(vectors, 8) if ivf else None
    expected = lists_of(vectors, cells)
    fake = with_gpu()
    found = lists_of(vectors, cells, gpu=True)
    assert fake.searched == 600
    assert all(map(np.array_equal, found, expected))


def test_vectors_are_given_in_parts_and_temporary_memory_is_bounded(with_gpu, monkeypatch):
    monkeypatch.setattr(faiss_library, "UPLOAD_ROWS", 37)
    vectors = unit_rows(100, 8)
    expected = lists_of(vectors)
    fake = with_gpu()
    assert all(map(np.array_equal, lists_of(vectors, gpu=True, vram=80_000), expected))
    assert fake.temporary == [10_000]


@pytest.mark.parametrize(
    "options",
    [
        {"gpu": False},
        {"gpu": True, "vram": 2 * 600 * 16 * 4 - 1},  # an index may take half of it
    ],
)
def test_what_does_not_fit_or_is_not_asked_for_is_found_on_the_cpu(with_gpu, options):
    vectors = unit_rows(600, 16)
    expected = lists_of(vectors)
    fake = with_gpu()
    assert all(map(np.array_equal, lists_of(vectors, **options), expected))
    assert fake.searched == 0


def test_the_memory_that_is_free_decides_without_vram(with_gpu):
    fake = with_gpu()
    lists_of(unit_rows(FREE // 128, 16), gpu=True)  # 64 bytes each
    assert fake.searched == FREE // 128
    lists_of(unit_rows(FREE // 128 + 1, 16), gpu=True)
    assert fake.searched == FREE // 128


def test_without_cupy_nobody_knows_what_is_free_and_lists_are_found_on_the_cpu(with_gpu, monkeypatch):
    def missing():
        raise MissingDependencyError("CuPy")

    vectors = unit_rows(50, 8)
    expected = lists_of(vectors)
    fake = with_gpu()
    monkeypatch.setattr(faiss_library, "import_cupy", missing)
    assert all(map(np.array_equal, lists_of(vectors, gpu=True), expected))
    assert fake.searched == 0
    assert all(map(np.array_equal, lists_of(vectors, gpu=True, vram=80_000), expected))
    assert fake.searched == 50


def test_without_a_gpu_or_with_faiss_cpu_nothing_is_tried(with_gpu):
    vectors = unit_rows(50, 8)
    expected = lists_of(vectors)
    assert all(map(np.array_equal, lists_of(vectors, gpu=True), expected))
    fake = with_gpu(gpus=0)
    assert all(map(np.array_equal, lists_of(vectors, gpu=True), expected))
    assert fake.searched == 0


def test_more_neighbors_than_a_gpu_selects_are_found_on_the_cpu(with_gpu):
    vectors = unit_rows(GPU_MOST + 100, 4)
    fake = with_gpu()
    faces = np.arange(5, dtype=np.int32)
    search = KnnSearch(vectors, gpu=True)
    search.search(faces, GPU_MOST)
    assert fake.searched == 0
    search.search(faces, GPU_MOST - knn.SPARE)
    assert fake.searched == 5


@pytest.mark.gpu
@pytest.mark.parametrize("ivf", [False, True])
def test_lists_of_a_real_gpu_are_those_of_the_cpu(ivf):
    if not faiss.get_num_gpus():
        pytest.skip("this faiss has no GPU")
    vectors = unit_rows(20_000, 64)
    cells = make_cells(vectors, 64) if ivf else None
    found, expected = lists_of(vectors, cells, gpu=True), lists_of(vectors, cells)
    assert (found[0] == expected[0]).mean() > 0.9999
