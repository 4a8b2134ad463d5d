"""kNN lists of unit vectors by faiss.

A list starts with the face itself; the others follow by similarity, equal ones by id. faiss finds candidates, a few
more than are asked for; their similarities are then computed again, one pair at a time and always in the same order
of additions (``inner_products``), so that the result depends neither on how faiss cut the work into blocks and threads
nor on the processor. The exception
is a face with more than k + 8 equally similar neighbors, thousands of copies of one row for example: which of these
become candidates is faiss's choice.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.atomic import no_space_left, open_own
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.faiss_library import InvertedLists, copied_to_gpu, import_faiss
from fcdeploy.graph.inner_products import inner_product
from fcdeploy.graph.kernels import njit, prange

EXACT_LIMIT = 50_000  # faces up to which --knn auto compares all pairs
PROBES = 16  # cells that an IVF search looks into
SPARE = 8  # candidates beyond k, so that rounding inside faiss rarely decides who is k-th
ADD_ROWS = 65536
LOW_BITS = 2**31 - 1
GPU_MOST = 2048  # candidates that faiss selects on a GPU


@dataclass(frozen=True)
class KnnGraph:
    """The k nearest neighbors of n faces: ids (n, k) int32, sims (n, k) float32 cosine similarities."""

    ids: np.ndarray
    sims: np.ndarray

    @property
    def k(self) -> int:
        return int(self.ids.shape[1])


class KnnSearch:
    """Finds neighbors among ``vectors`` (n, d) float32, C-contiguous unit rows (a memory map will do).

    cells: with a partition the search is IVF, which looks only into the ``probes`` cells nearest to a query; without
    one it compares all pairs. lists_file: keeps the index's copy of
    the vectors in this file instead of memory. gpu: whether candidates are found on the GPU, where faiss has one and
    the vectors fit; vram: device memory budget in bytes (0: what is free).
    """

    def __init__(
        self,
        vectors: np.ndarray,
        cells: Cells | None = None,
        *,
        lists_file: Path | None = None,
        gpu: bool = False,
        vram: int = 0,
        probes: int = PROBES,
    ) -> None:
        self.faiss = import_faiss()
        self.vectors = vectors
        self.probes = probes
        self.index = self._build_ivf(cells, lists_file) if cells is not None else None
        self.gpu_index = copied_to_gpu(self.faiss, vectors, self.index, vram) if gpu else None

    def search(self, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (m, k) int32 and sims (m, k) float32 of ``faces`` (m,); k is at most n.

        IVF searches are quicker when the faces of a call are of one cell or few.
        """
        wide = min(len(self.vectors), k + SPARE)
        found = self.candidates(np.ascontiguousarray(self.vectors[faces]), wide)
        return order_candidates(self.vectors, found, faces, k)

    def candidates(self, queries: np.ndarray, wide: int) -> np.ndarray:
        """Return the ids (m, wide) int64 of the rows most similar to ``queries`` (m, d) float32, in any order."""
        index = self.gpu_index if self.gpu_index is not None and wide <= GPU_MOST else self.index
        if index is None:
            return self._search_exact(queries, wide)
        found = index.search(queries, wide)[1]
        short = np.flatnonzero((found < 0).any(axis=1))
        if len(short):  # the probed cells held fewer faces than were asked for
            found[short] = self._search_exact(queries[short], wide)
        return found

    def _search_exact(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.faiss.knn(queries, self.vectors, k, metric=self.faiss.METRIC_INNER_PRODUCT)[1]

    def _build_ivf(self, cells: Cells, lists_file: Path | None) -> InvertedLists:
        faiss = self.faiss
        d = self.vectors.shape[1]
        quantizer = faiss.IndexFlatIP(d)
        quantizer.add(cells.centroids)
        # Searching is bound by memory: halves are found twice as quickly, and which candidates they give hardly
        # differs (recall is the same to four digits), since similarities are computed again from the vectors.
        half = faiss.ScalarQuantizer.QT_fp16
        index: InvertedLists = faiss.IndexIVFScalarQuantizer(
            quantizer, d, cells.count, half, faiss.METRIC_INNER_PRODUCT, False
        )
        index.train(cells.centroids)  # sets a flag: neither the quantizer nor halves learn anything
        index.nprobe = min(self.probes, cells.count)
        if lists_file is not None:
            self._keep_lists(index, cells, lists_file)
            return index
        order = cells.order()
        sorted_cells = cells.cell[order]
        start = 0
        while start < len(order):
            stop = min(start + ADD_ROWS, len(order))
            if stop < len(order):  # not in the middle of a cell
                stop = int(np.searchsorted(sorted_cells, sorted_cells[stop - 1], "right"))
            faces = order[start:stop]
            rows = np.ascontiguousarray(self.vectors[faces])
            ids = faces.astype(np.int64)
            where = cells.cell[faces].astype(np.int64)
            index.add_core(len(rows), *(faiss.swig_ptr(array) for array in (rows, ids, where)))
            start = stop
        return index

    def _keep_lists(self, index: InvertedLists, cells: Cells, file: Path) -> None:
        """Write the lists of an empty index, cell by cell, and let it map them.

        faiss itself would let the file grow while it is mapped, where a full disk kills the process, and print.
        """
        sizes = np.bincount(cells.cell, minlength=cells.count)
        ends = np.cumsum(sizes)
        order = cells.order()
        handle = open_own(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with no_space_left(file), os.fdopen(handle, "wb") as opened:
            for start, stop in zip(ends - sizes, ends, strict=True):
                faces = order[start:stop]
                opened.write(self.vectors[faces].astype(np.float16).tobytes())
                opened.write(faces.astype(np.int64).tobytes())
        lists = self.faiss.OnDiskInvertedLists(cells.count, index.code_size, str(file))
        entry = index.code_size + np.dtype(np.int64).itemsize
        table = np.stack([sizes, sizes, (ends - sizes) * entry], axis=1).astype(np.uint64)  # as OnDiskOneList
        self.faiss.memcpy(lists.lists.data(), self.faiss.swig_ptr(table), table.nbytes)
        lists.totsize = file.stat().st_size
        lists.read_only = True
        lists.do_mmap()
        index.replace_invlists(lists, True)
        lists.this.disown()
        index.ntotal = len(self.vectors)


@njit(cache=True, nogil=True, parallel=True)
def _pair_similarities(vectors: np.ndarray, found: np.ndarray, faces: np.ndarray, sims: np.ndarray) -> None:
    for row in prange(found.shape[0]):
        own = vectors[faces[row]]
        for p in range(found.shape[1]):
            sims[row, p] = inner_product(own, vectors[found[row, p]])


@njit(cache=True, nogil=True, parallel=True)
def _sort_rows(
    found: np.ndarray, sims: np.ndarray, faces: np.ndarray, k: int, out_ids: np.ndarray, out_sims: np.ndarray
) -> None:
    """Fill the columns behind the first, which holds the face itself."""
    for row in prange(found.shape[0]):
        bits = (sims[row] + np.float32(0)).view(np.int32)  # + 0: there is one zero only
        keys = np.empty(bits.shape[0], dtype=np.int64)
        for p in range(bits.shape[0]):
            # As integers, similarities are in order, negative ones backwards.
            similar = np.int64(bits[p] if bits[p] >= 0 else bits[p] ^ np.int32(LOW_BITS))
            keys[p] = (-similar << 32) | np.int64(found[row, p])
        keys.sort()
        out_bits = out_sims[row].view(np.int32)
        count = 1
        for p in range(keys.shape[0]):
            face = np.int32(keys[p] & LOW_BITS)
            if face != faces[row] and count < k:
                value = np.int32(-(keys[p] >> 32))
                out_ids[row, count] = face
                out_bits[count] = value if value >= 0 else value ^ np.int32(LOW_BITS)
                count += 1


def order_candidates(
    vectors: np.ndarray, found: np.ndarray, faces: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sort candidates by their true similarity: the face itself first, then downwards, equal ones by id.

    vectors: (n, d) float32 unit rows; found: (m, >= k) candidate ids of ``faces`` (m,), none twice in a row.
    Returns ids (m, k) int32 and sims (m, k) float32.
    """
    sims = similarities_of_lists(vectors, found, faces)
    out_ids = np.empty((len(found), k), dtype=np.int32)
    out_sims = np.empty((len(found), k), dtype=np.float32)
    # Itself apart: among many copies of a face, faiss may leave out the face that was asked for.
    out_ids[:, 0] = faces
    out_sims[:, :1] = similarities_of_lists(vectors, out_ids[:, :1], faces)
    _sort_rows(found, sims, faces, k, out_ids, out_sims)
    return out_ids, out_sims


def similarities_of_lists(vectors: np.ndarray, ids: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the cosine similarities (m, k) float32 of the lists ``ids`` (m, k) of ``faces`` (m,).

    vectors: (n, d) float32, C-contiguous unit rows.
    """
    sims = np.empty(ids.shape, dtype=np.float32)
    _pair_similarities(vectors, ids, faces, sims)
    return sims
