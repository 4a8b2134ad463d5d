"""The best of many integer scores: which lists a row is compared with, and which members of them score highest.

Rows and the lists that they visit make pairs; the pairs of one list are a tile of scores, all computed in one product.
The best of a row are those with the highest score, among equal ones those with the lower id: the same whatever the
order of tiles. A score and an id are one key of 64 bits, so that keys compare as pairs of them do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit
from fcdeploy.graph.products import Packed, Products

NO_KEY = -(2**62)  # below every key
ID_BITS = 32
LAST_ID = 2**31 - 1
CHUNK = 64  # scores looked at together: most chunks hold none that is wanted
PART = 16  # of a chunk
SPARE = 32  # keys beyond ``wide`` that a row holds at least before it drops the lowest
TILE = 2**17  # scores in one product: 512 KB, which the cache of a core holds
WINDOW = 4096  # rows that are gathered at once
BATCH = 2**18  # scores between two selections


@dataclass(frozen=True)
class Lists:
    """Members of lists, side by side: list l holds ids[first[l]:first[l + 1]], and their codes.

    codes: (n, d) int8 rows in the order of ``ids`` (n,) int32; first: (lists + 1,) int64. packed: what
    ``Products.packed`` makes of each list, or None to make it whenever it is needed.
    """

    codes: np.ndarray
    ids: np.ndarray
    first: np.ndarray
    packed: Sequence[Packed] | None = None


class BestScores:
    """The ``wide`` best members of lists for each of ``rows``, codes (m, d) int8."""

    def __init__(self, products: Products, rows: np.ndarray, wide: int) -> None:
        self.products = products
        self.rows = rows
        self.wide = wide
        spare = max(SPARE, wide)
        self.keys = np.empty((len(rows), wide + spare), dtype=np.int64)
        self.held = np.zeros(len(rows), dtype=np.int64)
        self.floor = np.full(len(rows), NO_KEY, dtype=np.int64)
        self._scores: np.ndarray = np.empty(BATCH, dtype=products.scores)
        self._gathered: np.ndarray = np.empty((WINDOW, rows.shape[1]), dtype=products.rows)

    def visit(self, lists: Lists, first: np.ndarray, rows: np.ndarray) -> None:
        """Compare rows with lists, none with a list that it was compared with before.

        rows: (pairs,) int64, list l is compared with rows[first[l]:first[l + 1]]; see ``pairs_by_list``.
        """
        tiles: list[tuple[int, int, int, int, int]] = []
        used, window = 0, slice(0, 0)
        starts, members = first.tolist(), lists.first.tolist()
        for which in np.flatnonzero(np.diff(first)).tolist():
            member, end = members[which], members[which + 1]
            if member == end:
                continue
            packed = lists.packed[which] if lists.packed is not None else None
            step = end - member if packed is not None else min(end - member, TILE // 32)
            for start in range(member, end, step):
                stop = min(start + step, end)
                part = packed if packed is not None else self.products.packed(lists.codes[start:stop])
                size = min(WINDOW, max(1, TILE // (stop - start)))
                for pair in range(starts[which], starts[which + 1], size):
                    pairs = min(size, starts[which + 1] - pair)
                    scores = pairs * (stop - start)
                    if used + scores > len(self._scores):
                        self._keep(tiles, rows, lists.ids)
                        used = 0
                        if scores > len(self._scores):
                            self._scores = np.empty(scores, dtype=self.products.scores)
                    if not window.start <= pair <= pair + pairs <= window.stop:
                        window = slice(pair, pair + WINDOW)
                        _gather_rows(self.rows, rows[window], self._gathered)
                    gathered = self._gathered[pair - window.start : pair - window.start + pairs]
                    self.products.multiply(gathered, part, self._scores[used : used + scores])
                    tiles.append((used, pair, pairs, start, stop - start))
                    used += scores
        self._keep(tiles, rows, lists.ids)

    def visit_all(self, lists: Lists) -> None:
        """Compare all rows with all lists."""
        count, m = len(lists.first) - 1, len(self.rows)
        self.visit(lists, m * np.arange(count + 1), np.tile(np.arange(m), count))

    def raise_floors(self) -> None:
        """Drop what cannot be among the best any more, so that less is looked at from here on."""
        _drop_all(self.keys, self.held, self.floor, self.wide)

    def found(self) -> np.ndarray:
        """Return the ids (m, wide) int32 of the best, in no order; -1 follows where there are fewer."""
        self.raise_floors()
        ids = np.empty((len(self.rows), self.wide), dtype=np.int32)
        _ids_of_keys(self.keys, self.held, ids)
        return ids

    def _keep(self, tiles: list[tuple[int, int, int, int, int]], rows: np.ndarray, ids: np.ndarray) -> None:
        if tiles:
            _keep_tiles(self._scores, np.array(tiles), rows, ids, self.keys, self.held, self.floor, self.wide)
            tiles.clear()


@njit(cache=True, nogil=True)
def pairs_by_list(lists: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs of lists (pairs,) and rows (pairs,) by list: where each begins, (count + 1,) int64, and the rows."""
    first = np.zeros(count + 1, dtype=np.int64)
    for pair in range(lists.shape[0]):
        first[lists[pair] + 1] += 1
    for one in range(count):
        first[one + 1] += first[one]
    end = first.copy()
    sorted_rows = np.empty(lists.shape[0], dtype=np.int64)
    for pair in range(lists.shape[0]):
        sorted_rows[end[lists[pair]]] = rows[pair]
        end[lists[pair]] += 1
    return first, sorted_rows


@njit(cache=True, nogil=True)
def _gather_rows(source: np.ndarray, which: np.ndarray, out: np.ndarray) -> None:
    for i in range(which.shape[0]):
        row = which[i]
        for j in range(source.shape[1]):
            out[i, j] = source[row, j]


@njit(cache=True, nogil=True)
def _any_from(scores: np.ndarray, least: np.ndarray) -> bool:
    """Tell whether one of ``scores`` is at least least[0], of their dtype; compiled to a few vector instructions."""
    found = False
    for j in range(scores.shape[0]):
        found |= scores[j] >= least[0]
    return found


@njit(cache=True, nogil=True)
def _keep_tiles(
    scores: np.ndarray,
    tiles: np.ndarray,
    rows: np.ndarray,
    ids: np.ndarray,
    keys: np.ndarray,
    held: np.ndarray,
    floor: np.ndarray,
    wide: int,
) -> None:
    """Keep the keys of scores above the floors of their rows; tiles: (t, 5) of scores, pairs and members."""
    least = np.empty(1, dtype=scores.dtype)
    for t in range(tiles.shape[0]):
        at, members = tiles[t, 0], tiles[t, 4]
        for pair in range(tiles[t, 1], tiles[t, 1] + tiles[t, 2]):
            row = rows[pair]
            least[0] = floor[row] >> ID_BITS
            for start in range(0, members, CHUNK):
                chunk = scores[at + start : at + min(start + CHUNK, members)]
                if not _any_from(chunk, least):
                    continue
                for part in range(0, chunk.shape[0], PART):
                    few = chunk[part : min(part + PART, chunk.shape[0])]
                    if not _any_from(few, least):
                        continue
                    for j in range(few.shape[0]):
                        if few[j] < least[0]:
                            continue
                        key = (np.int64(few[j]) << ID_BITS) | (LAST_ID - ids[tiles[t, 3] + start + part + j])
                        if key <= floor[row]:
                            continue
                        if held[row] == keys.shape[1]:
                            held[row], floor[row] = _drop(keys[row], wide, floor[row])
                            least[0] = floor[row] >> ID_BITS
                            if key <= floor[row]:
                                continue
                        keys[row, held[row]] = key
                        held[row] += 1
            at += members


@njit(cache=True, nogil=True)
def _drop(keys: np.ndarray, wide: int, floor: int) -> tuple[int, int]:
    """Drop keys that are not among the ``wide`` largest; return how many are left, in front, and the new floor.

    Those that score as the least of the ``wide`` does may stay, unless that would be all.
    """
    least, most = _range_of(keys)
    low, high = max(least >> ID_BITS, floor >> ID_BITS), (most >> ID_BITS) + 1
    while high - low > 1:  # at least ``wide`` keys score ``low``, fewer score ``high``
        middle = (low + high) >> 1
        if _count_from(keys, middle << ID_BITS) >= wide:
            low = middle
        else:
            high = middle
    bound = low << ID_BITS
    held = 0
    for j in range(keys.shape[0]):
        key = keys[j]
        keys[held] = key
        held += key >= bound
    if held < keys.shape[0] - keys.shape[0] // 8:
        return held, max(floor, bound - 1)
    _select(keys[:held], wide)
    return wide, keys[wide - 1]


@njit(cache=True, nogil=True)
def _range_of(keys: np.ndarray) -> tuple[int, int]:
    least, most = keys[0], keys[0]
    for j in range(keys.shape[0]):
        least = min(least, keys[j])
        most = max(most, keys[j])
    return least, most


@njit(cache=True, nogil=True)
def _count_from(keys: np.ndarray, bound: int) -> int:
    count = 0
    for j in range(keys.shape[0]):
        count += keys[j] >= bound
    return count


@njit(cache=True, nogil=True)
def _select(keys: np.ndarray, wide: int) -> None:
    """Move the ``wide`` largest keys to the front, the least of them last."""
    low, high, last = 0, keys.shape[0] - 1, wide - 1
    while low < high:
        middle = (low + high) >> 1
        # The median of three as the pivot.
        if keys[middle] > keys[low]:
            keys[middle], keys[low] = keys[low], keys[middle]
        if keys[high] > keys[low]:
            keys[high], keys[low] = keys[low], keys[high]
        if keys[high] > keys[middle]:
            keys[high], keys[middle] = keys[middle], keys[high]
        pivot = keys[middle]
        i, j = low, high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if last <= j:
            high = j
        elif last >= i:
            low = i
        else:
            return


@njit(cache=True, nogil=True)
def _drop_all(keys: np.ndarray, held: np.ndarray, floor: np.ndarray, wide: int) -> None:
    """Leave the ``wide`` largest keys of each row, and make the least of them its floor."""
    for row in range(keys.shape[0]):
        if held[row] > wide:
            held[row], _ = _drop(keys[row, : held[row]], wide, floor[row])
        if held[row] > wide:
            _select(keys[row, : held[row]], wide)
            held[row] = wide
        if held[row] == wide:
            floor[row] = _range_of(keys[row, :wide])[0]


@njit(cache=True, nogil=True)
def _ids_of_keys(keys: np.ndarray, held: np.ndarray, out: np.ndarray) -> None:
    for row in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[row, j] = LAST_ID - (keys[row, j] & LAST_ID) if j < held[row] else -1


@njit(cache=True, nogil=True)
def rank_columns(scores: np.ndarray, out: np.ndarray) -> None:
    """Write the columns with the best scores of each row to ``out`` (m, p), the best first, of equal ones the lower.

    scores: (m, columns), no fewer than p. The best of the parts of a row say what is worth looking at: as many parts
    as are wanted hold one each that is at least the bound.
    """
    columns, wide = scores.shape[1], out.shape[1]
    parts = columns // PART
    best = np.empty(parts, dtype=scores.dtype)
    keys = np.empty(columns, dtype=np.int64)
    for i in range(scores.shape[0]):
        row = scores[i]
        bound = np.int64(NO_KEY)
        for part in range(parts):
            few = row[part * PART : (part + 1) * PART]
            most = few[0]
            for j in range(1, few.shape[0]):
                most = few[j] if few[j] > most else most
            best[part] = most
        if parts > wide:
            bound = _bound_of(best, wide)
        held = 0
        for part in range(parts + 1):
            if part < parts and np.int64(best[part]) < bound:
                continue
            for column in range(part * PART, min((part + 1) * PART, columns)):
                if np.int64(row[column]) >= bound:
                    keys[held] = (np.int64(row[column]) << ID_BITS) | (LAST_ID - column)
                    held += 1
        if held > 2 * wide:
            _select(keys[:held], wide)
            held = wide
        few_keys = keys[:held]
        few_keys.sort()
        for p in range(wide):
            out[i, p] = LAST_ID - (keys[held - 1 - p] & LAST_ID)


@njit(cache=True, nogil=True)
def _bound_of(scores: np.ndarray, wide: int) -> np.int64:
    """Return the highest number that ``wide`` of ``scores`` reach."""
    low, high = np.int64(scores.min()), np.int64(scores.max()) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        reached = 0
        for j in range(scores.shape[0]):
            reached += scores[j] >= middle
        if reached >= wide:
            low = middle
        else:
            high = middle
    return low
