"""From a list of face images to features.

    files      every line is looked up: is there a file, and which (size, times)
    embedding  threads decode images ahead of the embedder, which takes them in batches
    bad lines  listed; the run stops, or leaves them out, or gives them rows of zeros

What is done lies in a folder beside the output (or in the run folder) with a stamp of every file, so that the same
command goes on after the last complete block, and embeds again only what was changed since.
"""

import contextlib
import os
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

import numpy as np

from fcdeploy import machine
from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.bad_list import check_bad_list, remove_bad_list
from fcdeploy.data.features import BLOCK_ROWS, new_hash, write_features
from fcdeploy.data.filelist import NO_STAMP, Filelist, lines_outside, look_up_all
from fcdeploy.data.images import FIRST_BAD, MAX_PIXELS, REASONS, State, import_pillow, read_image
from fcdeploy.data.labels import check_labels_path, write_labels
from fcdeploy.data.locks import host_name
from fcdeploy.data.run_record import check_not_of_a_run
from fcdeploy.data.side_files import check_not_an_input, check_replaceable, is_table
from fcdeploy.data.sidecar import Sidecar, check_sidecar_path, sidecar_bytes
from fcdeploy.engine.embedder import (
    BATCH,
    Embedder,
    EmbedderSettings,
    overridden,
    settings_beside,
)
from fcdeploy.engine.onnx_file import check_model_path, model_digest, model_files
from fcdeploy.engine.onnxruntime import import_onnxruntime
from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployWarning, InputError, counted
from fcdeploy.graph.alike import FEWEST, alike_sentence, random_pairs
from fcdeploy.run.folder import RunFolder, rows_from_the_first
from fcdeploy.run.keys import digest
from fcdeploy.run.progress import Bar, Progress
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, MemoryStore, Partial, Shapes, Store, fixed
from fcdeploy.run.summary import EmbedSummary, ListSummary
from fcdeploy.runtime.computed import ours

Read = TypeVar("Read")
SUFFIXES = (".bin", ".npy")
SKIPPED = {"hidden": "hidden or of the system", "other": "of other kinds"}  # files in a folder
OUTCOMES = {"skip": "they are left out", "zero": "their rows are zero"}
COUNT = "{max_pixels:,}"  # in a reason
BAD_LINE = re.compile(  # of a list of bad lines: its number, the line, the reason
    f"\\d+\t.*\t({'|'.join(re.escape(r).replace(re.escape(COUNT), '[0-9,]+') for r in REASONS.values())})".encode()
)
COMMIT_LINES = 512  # embedded between two commits
AHEAD = 4  # images a thread that are decoded before they are needed
WORKING = "embedding"  # the product in the making, of all lines; a hash of the list follows


# Lets workers embed what a product lacks of a list: job, embedder, states of the lines, product, progress.
ShareOut = Callable[["Job", Embedder, np.ndarray, Partial, Progress], None]
Workers = Callable[[RunFolder], contextlib.AbstractContextManager[ShareOut | None]]


@dataclass(frozen=True)
class Job:
    """What to embed, and with what; ``settings`` are the given ones over those beside the model.

    batch: pictures per engine call, where the graph leaves it open. threads: 0 means all cores. device: 'cpu' or
    'cuda', where the embedder runs; vram: device memory budget in bytes, 0 for what is there. notes: what
    the user was told of the list.
    """

    files: Filelist
    model: Path
    settings: EmbedderSettings
    batch: int | None = None
    max_pixels: int = MAX_PIXELS
    threads: int = 0
    device: str = "cpu"
    vram: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def cores(self) -> int:
        return machine.threads_for(self.threads)

    def note(self, sentence: str) -> None:
        """Tell the user something of the list, now and in the summary; once, however often it is found."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            warnings.warn(sentence, FcdeployWarning, stacklevel=3)

    def open(self) -> Embedder:
        """Load the embedder."""
        return Embedder(
            self.model,
            self.settings,
            batch=min(self.batch or BATCH, self.files.n),
            threads=self.cores,
            device=self.device,
            vram=self.vram,
        )

    def key(self) -> str:
        """Return a hash of all that decides the embedding of an image."""
        embedder = model_digest(self.model, self.settings)
        return digest(
            {
                "embedder": embedder,
                "max_pixels": self.max_pixels,
                "device": self.device,
                "libraries": libraries(),
            }
        )


class JobOptions(TypedDict, total=False):
    """What else a ``Job`` is told."""

    batch: int | None
    max_pixels: int
    threads: int
    device: str
    vram: int


def new_job(
    files: Filelist, model: Path, given: EmbedderSettings | None = None, **options: Unpack[JobOptions]
) -> Job:
    """Put together what a run needs, with the settings beside the model; raises InputError for what is missing."""
    import_pillow()
    check_model_path(model, "face embedder")
    if files.folder and len(outside := lines_outside(files)):
        warnings.warn(
            f"{files.name}: {len(outside):,} of {files.n:,} lines point outside of its folder (the first is line "
            f"{outside[0]}, counted from 0, {files.shown(outside[0])!r}); these files are read anyway.",
            FcdeployWarning,
            stacklevel=2,
        )
    settings = overridden(settings_beside(model), given or EmbedderSettings())
    if settings.scale and min(map(abs, settings.scale)) < 1:
        warnings.warn(
            f"pixels, 0 to 255, are divided by the scale; one below 1 ({min(settings.scale, key=abs):g}) is rarely "
            "intended.",
            FcdeployWarning,
            stacklevel=2,
        )
    job = Job(files, model, settings, **options)
    if any(files.skipped.values()):
        told = " and ".join(f"{count:,} {SKIPPED[kind]}" for kind, count in files.skipped.items() if count)
        job.note(f"{files.name}: {counted(files.n, 'image')}; {told} skipped.")
    return job


def embed_to_file(
    job: Job,
    output: Path,
    *,
    on_bad: str = "stop",
    labels: Path | None = None,
    quiet: bool = True,
    workers: Workers | None = None,
) -> EmbedSummary:
    """Embed the images of a list and write their features, whole or not at all.

    output: ``.bin`` or ``.npy``. Beside it appear ``OUTPUT.json``, what the features are (see ``data.sidecar``),
    ``NAME.bad.txt`` when lines are bad, and with on_bad 'skip', or when the list is no text, ``NAME.filelist.txt``,
    the lines of the rows. workers: have workers elsewhere embed, see ``runtime.embed_workers``. labels: where the
    people of the rows go, as the list says them. Raises InputError when lines are bad and on_bad is 'stop', after all
    were tried; the same call continues from there. Returns what ``fcdeploy embed --json`` prints.
    """
    bad_list, kept_list = check_outputs(job, output, on_bad, labels)
    noted = check_sidecar_path(output)
    listed = on_bad == "skip" or not job.files.is_text
    progress, started = Progress(quiet), time.perf_counter()
    shared = workers is not None
    with job.open() as embedder, RunFolder(part_of(output), "output", shared=shared) as folder:
        with (workers or nobody)(folder) as share_out:
            partial = embed_lines(job, embedder, folder, progress, share_out)
        with contextlib.closing(partial):
            features, states = partial.arrays["features"], np.array(partial.arrays["states"])
            report_bad_lines(job, states, on_bad, OUTCOMES, bad_list)
            alike = note_alike(job, features, states)
            kept = np.flatnonzero(states < FIRST_BAD) if on_bad == "skip" else np.arange(job.files.n)
            shape = len(kept), embedder.dim
            state = new_hash(shape, np.float32)

            def blocks() -> Iterator[np.ndarray]:
                for at in range(0, len(kept), BLOCK_ROWS):
                    block = np.ascontiguousarray(features[kept[at : at + BLOCK_ROWS]], dtype="<f4")
                    state.update(block.data)
                    yield block

            with contextlib.ExitStack() as stack:
                if listed:
                    # All get their names at nearly one time, the features first.
                    file = stack.enter_context(atomic_file(kept_list))
                    for line in kept.tolist():
                        file.write(job.files.line(line) + b"\n")
                sidecar = stack.enter_context(atomic_file(noted))
                write_features(output, shape, blocks())
                sidecar.write(
                    sidecar_bytes(
                        Sidecar(
                            *(*shape, "float32", output.stat().st_size, state.hexdigest()),
                            model=job.model.name,
                            model_sha256=model_digest(job.model, job.settings),
                            list=Path(job.files.name).name,
                            list_sha256=job.files.digest(),
                        )
                    )
                )
            if labels is not None and job.files.labels is not None:
                write_labels(labels, job.files.labels[kept])
            if not listed:
                remove_stale_list(kept_list, output, job)
        folder.remove()
    summary: EmbedSummary = {
        **summary_of(job, states),
        "rows": len(kept),
        "dim": embedder.dim,
        "input": embedder.describe(),
        "seconds": time.perf_counter() - started,
        "computed": {
            "device": {"device": job.device, "provider": embedder.provider},
            "batch": embedder.batch,
            "limits": {"threads": job.cores, "vram": job.vram},
            "versions": {**ours(), **libraries()},
        },
    }
    if alike is not None:
        summary["random_pairs_cosine"] = alike
    return summary


def nobody(folder: RunFolder) -> contextlib.AbstractContextManager[None]:
    """Have no workers."""
    return contextlib.nullcontext()


def embed_to_array(
    job: Job,
    *,
    on_bad: str = "stop",
    run_dir: Path | None = None,
    quiet: bool = True,
    workers: Workers | None = None,
) -> np.ndarray:
    """Return the embeddings (n, d) float32 of a list's images; rows of zeros for bad lines if on_bad is 'zero'.

    run_dir: where what is done is kept until it is complete; an interrupted call continues from there. workers: see
    ``embed_to_file``; they need one. Raises InputError when lines are bad and on_bad is 'stop'.
    """
    progress = Progress(quiet)
    with job.open() as embedder:
        if run_dir is None:
            arrays = embed_lines(job, embedder, MemoryStore(), progress).arrays
        else:
            with RunFolder(run_dir, shared=workers is not None) as folder:
                with (workers or nobody)(folder) as share_out:
                    partial = embed_lines(job, embedder, folder, progress, share_out)
                arrays = {name: np.array(array) for name, array in partial.arrays.items()}
                partial.close()
                if on_bad == "zero" or not (arrays["states"] >= FIRST_BAD).any():
                    folder.remove()
    report_bad_lines(job, arrays["states"], on_bad, OUTCOMES)
    note_alike(job, arrays["features"], arrays["states"])
    return arrays["features"]


def note_alike(job: Job, features: np.ndarray, states: np.ndarray) -> float | None:
    """Tell when random pairs of good lines are alike, and return how much; features: (n, d), states: (n,)."""
    good = np.flatnonzero(states < FIRST_BAD)
    if len(good) < FEWEST or not (pairs := random_pairs(features, good)).alike:
        return None
    job.note(alike_sentence(str(job.model), pairs))
    return pairs.median


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that embeddings may depend on, by name."""
    return {
        "numpy": np.__version__,
        "pillow": import_pillow().__version__,
        "onnxruntime": import_onnxruntime().__version__,
    }


def embed_lines(
    job: Job, embedder: Embedder, store: Store, progress: Progress, share_out: ShareOut | None = None
) -> Partial:
    """Embed all lines into a product of ``store``, complete but not finished; share_out: see ``fill``."""
    found, stamps = looked_up(job, progress)
    partial = begin(store, job, job.key(), embedder.dim, stamps)
    fill(partial, job, embedder, found, stamps, progress, share_out)
    return partial


def begin(
    store: Store, job: Job, key: str, dim: int, stamps: np.ndarray, finished: Arrays | None = None
) -> Partial:
    """Open the product of all lines, with what earlier runs have of the very same files, on whatever lines.

    key: of the job; stamps: (n,), of ``look_up`` now; finished: more rows to take over, by the names of ``shapes_of``.
    """
    name = f"{WORKING}-{job.files.digest()[:16]}"
    partial = store.begin(name, key, shapes_of(job.files.n, dim), durable=True)
    others = [other for other in store.unfinished(WORKING) if other[0] != name]
    if not partial.finished:
        sources = [arrays for _, other_key, arrays in others if other_key == key]
        take_over(partial, stamps, sources + ([finished] if finished else []))
    for other, *_ in others:
        store.drop(other)
    return partial


def take_over(partial: Partial, stamps: np.ndarray, sources: Sequence[Arrays]) -> None:
    """Fill in the rows of lines whose stamps (n,) are among those of ``sources``; the others are to be done again."""
    arrays, taken = partial.arrays, 0
    for source in sources:
        if source.keys() < arrays.keys():  # of a kill during its deletion
            continue
        usable = np.flatnonzero((source["states"] < FIRST_BAD) & (source["stamps"] != NO_STAMP))
        order = usable[np.argsort(source["stamps"][usable], kind="stable")]
        known = source["stamps"][order]
        places = np.searchsorted(known, stamps)
        places[places == len(known)] = 0
        lines = np.flatnonzero(known[places] == stamps) if len(known) else places[:0]
        rows = order[places[lines]] if len(known) else places[:0]
        for start in range(0, len(lines), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            for name in ("features", "states", "stamps"):
                arrays[name][lines[block]] = source[name][rows[block]]
        taken += len(lines)
    if taken:
        partial.commit(0, len(stamps))


def looked_up(job: Job, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Look all lines up: (n,) uint8 states and (n,) uint64 stamps, as ``look_up`` gives them."""
    with progress.bar("files", job.files.n) as bar:
        found = look_up_all(job.files, job.cores, bar.advance)
    if renamed := job.files.found_as:
        first = min(renamed)
        job.note(
            f"{job.files.name}: in {len(renamed):,} of {counted(job.files.n, 'line')}, the Unicode normalisation of "
            f"the name differs from that on disk (the first is line {first}, counted from 0, "
            f"{job.files.shown(first)!r}); these files are used."
        )
    return found


def fill(
    partial: Partial,
    job: Job,
    embedder: Embedder,
    found: np.ndarray,
    stamps: np.ndarray,
    progress: Progress,
    share_out: ShareOut | None = None,
) -> None:
    """Embed what ``partial`` lacks: first the lines behind it that were bad or have another file now, then the others.

    found, stamps: (n,), of ``look_up`` now. Rows of bad lines are zero. share_out: lets workers elsewhere embed those
    others, instead of this process.
    """
    arrays, done, n = partial.arrays, rows_from_the_first(partial.finished), job.files.n
    redo = np.flatnonzero(
        (arrays["stamps"][:done] != stamps[:done])
        | (stamps[:done] == NO_STAMP)
        | (arrays["states"][:done] >= FIRST_BAD)
    )
    if not len(redo) and done == n:
        return
    with progress.bar("embedding", n, done - len(redo)) as bar:
        if len(redo):
            # A row is trusted by its stamp, so the stamp goes first and comes back last.
            arrays["stamps"][redo] = NO_STAMP
            partial.commit(0, done)
            pending = []
            for lines, rows, states in embedded(redo, job, embedder, found):
                arrays["features"][lines], arrays["states"][lines] = rows, states
                pending.append(lines)
                bar.advance(len(lines))
                if sum(map(len, pending)) >= COMMIT_LINES:
                    _stamp(partial, pending, stamps, done)
                    pending = []
            _stamp(partial, pending, stamps, done)
            partial.commit(0, done)
        if share_out is None:
            fill_behind(partial, done, job, embedder, found, stamps, bar)
    if share_out is not None and done < n:
        arrays["stamps"][done:] = stamps[done:]  # of lines that are not committed, which nobody trusts
        share_out(job, embedder, found, partial, progress)


def fill_behind(
    partial: Partial,
    done: int,
    job: Job,
    embedder: Embedder,
    found: np.ndarray,
    stamps: np.ndarray,
    bar: Bar,
) -> None:
    """Embed the lines from ``done`` on; see ``fill``."""
    arrays, n, since = partial.arrays, job.files.n, 0
    for lines, rows, states in embedded(np.arange(done, n), job, embedder, found):
        arrays["features"][lines], arrays["states"][lines] = rows, states
        arrays["stamps"][lines] = stamps[lines]
        since += len(lines)
        bar.advance(len(lines))
        if since >= COMMIT_LINES or lines[-1] + 1 == n:
            partial.commit(0, int(lines[-1]) + 1)
            since = 0


def stage_of(job: Job, embedder: Embedder, found: np.ndarray, name: str) -> Stage:
    """Describe the embedding of a list as a stage, whose blocks workers compute; found: (n,), of ``look_up``.

    Blocks are whole batches. A file that was there when the driver looked it up, and is not here, is nobody's fault
    but this machine's: raises FileNotFoundError.
    """

    def block(lines: np.ndarray) -> Arrays:
        arrays = {
            part: np.empty((len(lines), *shape[1:]), dtype)
            for part, (shape, dtype) in fixed(shapes_of(job.files.n, embedder.dim)).items()
            if part != "stamps"
        }
        for group, rows, states in embedded(lines, job, embedder, found):
            at = slice(int(group[0] - lines[0]), int(group[-1] - lines[0]) + 1)
            arrays["features"][at], arrays["states"][at] = rows, states
        for line in lines[(arrays["states"] == State.MISSING) & (found[lines] == State.GOOD)].tolist():
            raise FileNotFoundError(f"{job.files.shown(line)} is not there on {host_name()}")
        return arrays

    return Stage(
        name=name,
        text="embedding",
        unit="images",
        block=block,
        shapes=shapes_of(job.files.n, embedder.dim),
        rows=job.files.n,
        size=-(-COMMIT_LINES // embedder.batch) * embedder.batch,
        whole=embedder.batch,
        in_order=True,
    )


def no_engine(name: str, share: int) -> contextlib.AbstractContextManager[Engine]:
    """Open no pass: an embedding has none."""
    raise KeyError(name)


def _stamp(partial: Partial, groups: list[np.ndarray], stamps: np.ndarray, done: int) -> None:
    if groups:
        partial.commit(0, done)
        lines = np.concatenate(groups)
        partial.arrays["stamps"][lines] = stamps[lines]


def embedded(
    lines: np.ndarray, job: Job, embedder: Embedder, found: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Embed ``lines`` in their order, a batch at a time; images are decoded by threads ahead of the embedder.

    Where the embedder is called side by side these threads embed them as well.

    found: (n,) uint8, of ``look_up``. Yields lines (m,), rows (m, d) float32 and states (m,) uint8.
    """

    def read(line: int) -> tuple[int, np.ndarray | None]:
        if found[line]:
            return int(found[line]), None
        source = job.files.source(line)
        state, pixels = read_image(source, embedder.size, embedder.channels, job.max_pixels)
        if pixels is None:
            return int(state), None
        picture = embedder.prepare(pixels)
        return int(state), embedder.embed([picture])[0] if embedder.side_by_side else picture

    for group, images in read_ahead(read, lines, embedder.batch, job.cores):
        states = np.array([state for state, _ in images], np.uint8)
        rows = np.zeros((len(group), embedder.dim), np.float32)
        good = [at for at, (_, picture) in enumerate(images) if picture is not None]
        if good:
            made = [picture for _, picture in images if picture is not None]
            rows[good] = made if embedder.side_by_side else embedder.embed(made)
            with np.errstate(over="ignore", invalid="ignore"):
                norms = np.linalg.norm(rows, axis=1)
            states[~np.isfinite(norms)] = State.NOT_FINITE
            states[(norms == 0) & (states < FIRST_BAD)] = State.ALL_ZERO
            rows[states >= FIRST_BAD] = 0
        yield group, rows, states


def read_ahead(
    read: Callable[[int], Read], lines: np.ndarray, batch: int, threads: int
) -> Iterator[tuple[np.ndarray, list[Read]]]:
    """Yield groups of ``batch`` lines with what ``read`` makes of each, while threads are at the next ones."""
    waiting: deque[tuple[np.ndarray, list[Future[Read]]]] = deque()
    groups = -(-max(AHEAD * threads, 2 * batch) // batch)
    if threads == 1:  # which then is this one
        for start in range(0, len(lines), batch):
            group = lines[start : start + batch]
            yield group, [read(line) for line in group.tolist()]
        return
    pool = ThreadPoolExecutor(threads)
    try:
        for start in range(0, len(lines), batch):
            group = lines[start : start + batch]
            waiting.append((group, [pool.submit(read, line) for line in group.tolist()]))
            if len(waiting) > groups:
                group, futures = waiting.popleft()
                yield group, [future.result() for future in futures]
        while waiting:
            group, futures = waiting.popleft()
            yield group, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def report_bad_lines(
    job: Job, states: np.ndarray, on_bad: str, outcomes: Mapping[str, str], bad_list: Path | None = None
) -> None:
    """List bad lines in the file ``bad_list``, and tell the user of them and of stretched images.

    The list is deleted when there are none. outcomes: on_bad -> what becomes of them. Raises InputError when there are
    and on_bad is 'stop', or no line is good.
    """
    files, bad = job.files, np.flatnonzero(states >= FIRST_BAD)
    stretched = np.flatnonzero(states == State.STRETCHED)
    if len(stretched):
        warnings.warn(
            f"{len(stretched):,} of {counted(files.n, 'image')} stretched to the aspect ratio of the embedder's input "
            f"(the first is line {stretched[0]}, counted from 0, {files.shown(stretched[0])!r}); aligned face crops "
            "are expected.",
            FcdeployWarning,
            stacklevel=2,
        )
    if not len(bad):
        if bad_list is not None:
            remove_bad_list(bad_list)
        return
    listed = ""
    if bad_list is not None:
        with atomic_file(bad_list) as file:
            for line in bad.tolist():
                reason = reason_of(states[line], job.max_pixels)
                file.write(b"%d\t%s\t%s\n" % (line, files.line(line), reason.encode()))
        listed = f", listed in {bad_list}"
    reasons = Counter(reason_of(state, job.max_pixels) for state in states[bad].tolist())
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    told = (
        f"{files.name}: {len(bad):,} of {counted(files.n, 'line')} could not be embedded ({why}; the first is line "
        f"{bad[0]}, counted from 0, {files.shown(bad[0])!r}){listed}"
    )
    if len(bad) == files.n:
        raise InputError(f"{told}; nothing is left.")
    if on_bad == "stop":
        choice = "on_bad='zero'" if bad_list is None else "--on-bad skip or zero (finished work is kept)"
        raise InputError(f"{told}; fix them, or give {choice}.")
    warnings.warn(f"{told}; {outcomes[on_bad]}.", FcdeployWarning, stacklevel=2)


def reason_of(state: int, max_pixels: int) -> str:
    """Say why a line is bad."""
    return REASONS[State(state)].format(max_pixels=max_pixels)


def check_outputs(job: Job, output: Path, on_bad: str, labels: Path | None = None) -> tuple[Path, Path]:
    """Return where bad and kept lines are listed; raises InputError when an output cannot be written or is an input."""
    if labels is not None:
        check_labels_path(labels)
        if job.files.labels is None:
            raise InputError(
                f"{job.files.name}: holds no labels; leave out --write-labels, or give a folder with a folder per "
                "person."
            )
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: name the output .bin (raw float32 rows) or .npy.")
    lists = output.with_suffix(".bad.txt"), output.with_suffix(".filelist.txt")
    for path in (output, *lists):
        check_not_of_a_run(check_parent(path))
    check_bad_list(lists[0])
    written = [output, lists[0], *([labels] if labels else [])]
    if on_bad == "skip" or not job.files.is_text:
        written.append(lists[1])
    if len(set(map(os.path.abspath, written))) < len(written):
        raise InputError(f"{labels}: is also another output; choose another name for the labels.")
    for path in written:
        check_not_an_input(path, inputs_of(job))
    check_replaceable(lists[0], is_bad_list, "the list of bad lines")
    if lists[1] in written:
        check_replaceable(lists[1], lambda path: lists_lines_of(path, job), "the list of the rows")
    return lists


def is_bad_list(path: Path) -> bool:
    """Tell whether a file is a list of bad lines that ``report_bad_lines`` wrote, by all of its lines."""
    return is_table(path, BAD_LINE)


def lists_lines_of(path: Path, job: Job) -> bool:
    """Tell whether a file holds lines of the job's list, in their order, and no others: as we list the rows."""
    lines = iter(range(job.files.n))
    with open(path, "rb") as file:
        return all(any(job.files.line(at) == line.removesuffix(b"\n") for at in lines) for line in file)


def is_shorter_list(path: Path, job: Job) -> bool:
    """Tell whether a file, and no link to one, lists some of the job's lines in their order, and not all."""
    if path.is_symlink() or not path.is_file() or not lists_lines_of(path, job):
        return False
    with open(path, "rb") as file:
        return 0 < sum(1 for _ in file) < job.files.n


def remove_stale_list(path: Path, output: Path, job: Job) -> None:
    """Delete the list of rows that an earlier run left beside ``output``: row i is line i now."""
    others = [output.with_suffix(suffix) for suffix in SUFFIXES if suffix != output.suffix]
    stale = is_shorter_list(path, job) and not is_input(path, job)
    if stale and not any(map(Path.exists, others)):
        path.unlink()


def inputs_of(job: Job) -> tuple[Path, ...]:
    """Return the files that a run reads, its images not counted."""
    return (*job.files.sources, *model_files(job.model), job.model.with_suffix(".toml"))


def is_input(path: Path, job: Job) -> bool:
    """Tell whether a path is one of the files that a run reads, its images not counted."""
    return path.exists() and any(given.exists() and path.samefile(given) for given in inputs_of(job))


def part_of(output: Path) -> Path:
    """Return the folder beside an output that holds what is done of it."""
    return output.with_name(f"{output.name}.part")


def shapes_of(n: int, dim: int) -> Shapes:
    return {"features": ((n, dim), np.float32), "states": ((n,), np.uint8), "stamps": ((n,), np.uint64)}


def summary_of(job: Job, states: np.ndarray) -> ListSummary:
    """Return what a summary says of a list, by states (n,) of its lines."""
    bad = Counter(State(state).name.lower() for state in states[states >= FIRST_BAD].tolist())
    summary: ListSummary = {
        "lines": len(states),
        "bad": int((states >= FIRST_BAD).sum()),
        "reasons": dict(bad),
        "resized": int(((states == State.RESIZED) | (states == State.STRETCHED)).sum()),
        "stretched": int((states == State.STRETCHED).sum()),
        "embedder": {"file": str(job.model), "sha256": model_digest(job.model, job.settings)},
    }
    if job.files.skipped:
        summary["skipped"] = job.files.skipped
    if job.notes:
        summary["notes"] = list(job.notes)
    return summary
