"""Batches for GCN-E's passes: the candidates of faces, and the graph among them, in portions without padding."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit, prange
from fcdeploy.systems.ve_gcn.edges import Edges

GATHERED = 64  # centres whose graphs are gathered at a time


@dataclass(frozen=True)
class Candidates:
    """The neighbors of higher confidence of m centres, in the order of the centre's list.

    centres: (m,) int32; starts: (m + 1,) int64, where those of each centre begin in faces (c,) int32; places: (c,)
    int32, where each stands in the list.
    """

    centres: np.ndarray
    starts: np.ndarray
    faces: np.ndarray
    places: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.starts)

    def __getitem__(self, part: slice) -> "Candidates":
        starts = self.starts[part.start : part.stop + 1]
        rows = slice(int(starts[0]), int(starts[-1]))
        return Candidates(self.centres[part], starts - starts[0], self.faces[rows], self.places[rows])


@dataclass(frozen=True)
class CandidateGraphs:
    """Candidates with the graph among those of each centre: n x n means, row by row.

    offsets: (m + 1,) int64, where those of each centre begin in shares (s,) float64, rows that sum to 1.
    """

    candidates: Candidates
    offsets: np.ndarray
    shares: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        of = self.candidates
        return of.centres, of.starts, of.faces, self.offsets, self.shares


def candidates_of(ids: np.ndarray, confidence: np.ndarray, centres: np.ndarray) -> Candidates:
    """Return the neighbors of strictly higher confidence of ``centres`` (m,) int32.

    ids: (n, k) int32, most similar first; confidence: (n,) float32.
    """
    counts = np.empty(len(centres), dtype=np.int64)
    _count_higher(ids, confidence, centres, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    faces, places = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.int32)
    _fill_higher(ids, confidence, centres, starts, faces, places)
    return Candidates(centres, starts, faces, places)


@njit(cache=True, nogil=True, parallel=True)
def _count_higher(ids: np.ndarray, confidence: np.ndarray, centres: np.ndarray, counts: np.ndarray) -> None:
    for row in prange(len(centres)):
        count = 0
        for p in range(ids.shape[1]):
            if confidence[ids[centres[row], p]] > confidence[centres[row]]:
                count += 1
        counts[row] = count


@njit(cache=True, nogil=True, parallel=True)
def _fill_higher(
    ids: np.ndarray,
    confidence: np.ndarray,
    centres: np.ndarray,
    starts: np.ndarray,
    faces: np.ndarray,
    places: np.ndarray,
) -> None:
    for row in prange(len(centres)):
        at = starts[row]
        for p in range(ids.shape[1]):
            if confidence[ids[centres[row], p]] > confidence[centres[row]]:
                faces[at], places[at] = ids[centres[row], p], p
                at += 1


def ignored_faces(confidence: np.ndarray, ratio: float) -> np.ndarray:
    """Tell which faces (n,) bool are among the ``ratio`` of lowest confidence, rounded down; equal ones by number."""
    ignored = np.zeros(len(confidence), dtype=bool)
    ignored[np.argsort(confidence, kind="stable")[: int(len(confidence) * ratio)]] = True
    return ignored


def graphs_among(edges: Edges, candidates: Candidates) -> CandidateGraphs:
    """Return the graph among the candidates of each centre: S + I between them, each row divided by its sum."""
    offsets = np.concatenate([[0], np.cumsum(candidates.counts**2)])
    shares = np.zeros(offsets[-1], dtype=np.float64)
    _gather(*edges.arrays, candidates.starts, candidates.faces, offsets, shares)
    return CandidateGraphs(candidates, offsets, shares)


@njit(cache=True, nogil=True, parallel=True)
def _gather(
    edge_starts: np.ndarray,
    edge_counts: np.ndarray,
    edge_ids: np.ndarray,
    edge_sims: np.ndarray,
    starts: np.ndarray,
    faces: np.ndarray,
    offsets: np.ndarray,
    shares: np.ndarray,
) -> None:
    for g in prange(len(starts) - 1):
        members = faces[starts[g] : starts[g + 1]]
        size = len(members)
        order = np.argsort(members)
        for u in range(size):
            row = shares[offsets[g] + u * size : offsets[g] + (u + 1) * size]
            at, end = edge_starts[members[u]], edge_starts[members[u]] + edge_counts[members[u]]
            total, t = 0.0, 0
            while at < end and t < size:  # both by the number of the face
                if edge_ids[at] < members[order[t]]:
                    at += 1
                elif edge_ids[at] > members[order[t]]:
                    t += 1
                else:
                    row[order[t]] = edge_sims[at]
                    total += np.float64(edge_sims[at])
                    at += 1
                    t += 1
            for v in range(size):
                row[v] /= total


def candidate_batches(
    edges: Edges, candidates: Candidates, *, rows: int, most: int
) -> Iterator[tuple[slice, CandidateGraphs]]:
    """Yield centres in portions for the engine: (where in candidates.centres, graphs), in order.

    rows: candidates per engine call at most (or those of a single centre); most: centres a portion at most.
    """
    begin, last = 0, len(candidates.centres)
    while begin < last:
        fits = np.searchsorted(candidates.starts, candidates.starts[begin] + rows, side="right") - 1 - begin
        end = min(begin + max(1, min(int(fits), most, GATHERED)), last)
        yield slice(begin, end), graphs_among(edges, candidates[begin:end])
        begin = end
