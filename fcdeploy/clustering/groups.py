"""Groups of faces as offset arrays: group g holds ``nodes[offsets[g]:offsets[g + 1]]``, ascending ids."""

import numpy as np

from fcdeploy.graph.kernels import njit, prange


def groups_from_labels(
    labels: np.ndarray, min_size: int, max_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups of equal labels that have at least ``min_size`` and at most ``max_size`` members.

    labels: (n,) int64, numbered from 0, -1 in no group. Returns offsets (g + 1,) int64 and nodes (t,) int32, groups in
    the order of their labels.
    """
    chosen = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[chosen], minlength=1)
    fits = sizes >= max(1, min_size)
    if max_size is not None:
        fits &= sizes <= max_size
    chosen = chosen[fits[labels[chosen]]]
    nodes = chosen[np.argsort(labels[chosen], kind="stable")].astype(np.int32)
    return offsets_from_sizes(sizes[fits]), nodes


def offsets_from_sizes(sizes: np.ndarray) -> np.ndarray:
    """Return where groups of these sizes (g,) begin, and behind the last where it ends: (g + 1,) int64."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def take_groups(offsets: np.ndarray, nodes: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets and nodes of the groups ``chosen`` (m,), in this order."""
    starts, sizes = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
    taken = offsets_from_sizes(sizes)
    at = np.arange(taken[-1]) + np.repeat(starts - taken[:-1], sizes)
    return taken, nodes[at]


def join_groups(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Put lists of groups, each as offsets and nodes, one behind the other."""
    if not parts:
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32)
    sizes = np.concatenate([np.diff(offsets) for offsets, _ in parts])
    return offsets_from_sizes(sizes), np.concatenate([nodes for _, nodes in parts])


@njit(cache=True, nogil=True)
def number_parts(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Give every face a part: those of one label share it, a face labelled -1 is one by itself.

    labels: (n,) int64, numbered from 0. Returns parts (n,) int32, numbered by first appearance, and how many they are.
    """
    number = np.full(labels.max() + 1, -1, dtype=np.int32)
    parts = np.empty(len(labels), dtype=np.int32)
    count = 0
    for face in range(len(labels)):
        label = labels[face]
        if label < 0:
            parts[face] = count
            count += 1
        else:
            if number[label] < 0:
                number[label] = count
                count += 1
            parts[face] = number[label]
    return parts, count


@njit(cache=True, nogil=True, parallel=True)
def mean_rows(offsets: np.ndarray, nodes: np.ndarray, groups: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the mean of each group's rows of ``table`` (n, d) float32: (len(groups), d) float32.

    Summed in float32 in the order of nodes, as NumPy's mean over the first axis is.
    """
    means = np.zeros((len(groups), table.shape[1]), dtype=np.float32)
    for row in prange(len(groups)):
        begin, end = offsets[groups[row]], offsets[groups[row] + 1]
        for t in range(begin, end):
            for c in range(table.shape[1]):
                means[row, c] += table[nodes[t], c]
        for c in range(table.shape[1]):
            means[row, c] /= np.float32(end - begin)
    return means


@njit(cache=True, nogil=True)
def _hashes(offsets: np.ndarray, nodes: np.ndarray, extra: np.ndarray) -> np.ndarray:
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    for group in range(len(hashes)):
        value = np.uint64(14695981039346656037) ^ np.uint64(extra[group])
        for t in range(offsets[group], offsets[group + 1]):
            value = (value ^ np.uint64(nodes[t])) * np.uint64(1099511628211)
            value ^= value >> np.uint64(29)
        hashes[group] = value
    return hashes


@njit(cache=True, nogil=True)
def _mark_first(
    offsets: np.ndarray, nodes: np.ndarray, kinds: np.ndarray, hashes: np.ndarray, order: np.ndarray
) -> np.ndarray:
    first = np.ones(len(hashes), dtype=np.bool_)
    for at in range(len(order)):
        group = order[at]
        before = at - 1  # equal hashes stand together, smaller groups first
        while before >= 0 and hashes[order[before]] == hashes[group] and first[group]:
            other = order[before]
            before -= 1
            size = offsets[group + 1] - offsets[group]
            if (
                not first[other]
                or kinds[other] != kinds[group]
                or offsets[other + 1] - offsets[other] != size
            ):
                continue
            same = True
            for t in range(size):
                if nodes[offsets[group] + t] != nodes[offsets[other] + t]:
                    same = False
                    break
            first[group] = not same
    return first


def mark_first(offsets: np.ndarray, nodes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Tell which groups (g,) bool are no repetition of one before them: same nodes, same kind (g,) integers."""
    hashes = _hashes(offsets, nodes, kinds)
    return _mark_first(offsets, nodes, kinds, hashes, np.argsort(hashes, kind="stable"))
