"""``fcdeploy report``: a run as one static page with a few files beside it, to be opened from disk."""

import base64
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fcdeploy import __version__
from fcdeploy.clustering.flags import FLAGS
from fcdeploy.data.atomic_folder import atomic_folder, check_folder
from fcdeploy.packages import import_package
from fcdeploy.report import figures
from fcdeploy.report.opened import OpenedRun, open_run
from fcdeploy.report.overview import Clusters, Overview, overview_of
from fcdeploy.report.thumbnails import Sprites, no_sprites, style_of, write_sprites

PAGE = Path(__file__).parent / "page"
INDEX, RECORD = "index.html", "report.json"
FORMAT = "fcdeploy-report"
FIXED = (INDEX, RECORD, "report.css", "report.js", "review.js", "thumbs.css", "data.js")
SHEET = re.compile(r"thumbs-\d{3,}\.jpg")
STATIC_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data:; "
    "base-uri 'none'; form-action 'none'"
)
SERVED_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_TEXT = 16_000_000  # characters of ids in a page, of which the rest takes nearly as many
EVERY = (("numbers", "Numbers"), ("search", "Search"))
INSTALL = "pip install 'fcdeploy[cpu,report]'"


@dataclass(frozen=True)
class Reviewing:
    """What the page of a review says beyond the report: the file that decisions go to, and its keys.

    grouped: the decision, by its revision, up to which the clusters of the page respect them; 0 for none.
    """

    decisions: str
    keys: tuple[tuple[str, str], ...]
    grouped: int = 0


def report(
    run_dir: Path | str,
    output: Path | str = "report",
    *,
    images: Path | str | None = None,
    path_column: str | None = None,
    labels: Path | str | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> Path:
    """Write an HTML page that shows the clusters of a finished run; returns the path of the page.

    - run_dir: the folder of the run.
    - output: the folder to write; it is created, or replaces that of an earlier report.
    - images: images of the faces, as ``fcdeploy.embed`` takes them, one per row of the features; by default the crops
      that a run over photos keeps. Without any the page shows numbers only.
    - labels: true identities, to report quality and mark wrong faces.
    - seed: random seed of the random sample of clusters.

    Raises InputError (a ValueError) for a folder without a finished run, images or labels of another number, and an
    output folder with other files in it; MissingDependencyError if Jinja2 (or Pillow, for images) is not installed.
    """
    output = check_folder(Path(output), our_files)
    check_installed()
    run = open_run(run_dir, images=images, path_column=path_column, labels=labels, label_column=label_column)
    with atomic_folder(output, our_files) as folder:
        write_page(folder, run, seed=seed, truth_name=None if labels is None else str(labels))
    return output / INDEX


def check_installed() -> None:
    """Raise MissingDependencyError where the package that makes the page is missing."""
    import_package("jinja2", "Jinja2", INSTALL)


def our_files(folder: Path) -> Collection[str] | None:
    """Return the names of the files that a report wrote into a folder, None where it is not one of ours."""
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found["files"], list):
        return None
    return [name for name in found["files"] if name in FIXED or SHEET.fullmatch(str(name))]


def write_page(
    folder: Path,
    run: OpenedRun,
    *,
    seed: int = 0,
    truth_name: str | None = None,
    reviewing: Reviewing | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the page and its files into an empty folder."""
    clusters = run.clusters
    overview = overview_of(clusters, seed)
    shown = overview.faces()
    sprites = no_sprites() if run.files is None else write_sprites(folder, run.files, shown, advance)
    ids = ids_of(run)
    texts = {
        INDEX: page_of(run, clusters, overview, sprites, truth_name, reviewing, by_ids=ids is not None),
        "thumbs.css": "\n".join(style_of(sprites)) + "\n",
        "data.js": data_of(run, sprites, ids, reviewing),
        "report.css": (PAGE / "report.css").read_text("utf-8"),
        "report.js": (PAGE / "report.js").read_text("utf-8"),
    }
    if reviewing is not None:
        texts["review.js"] = (PAGE / "review.js").read_text("utf-8")
    files = sorted([*texts, *sprites.sheets, RECORD])
    texts[RECORD] = json.dumps({"format": FORMAT, "version": 1, "fcdeploy": __version__, "files": files})
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8", "backslashreplace"))


def page_of(
    run: OpenedRun,
    clusters: Clusters,
    overview: Overview,
    sprites: Sprites,
    truth_name: str | None,
    reviewing: Reviewing | None,
    *,
    by_ids: bool,
) -> str:
    """Return the page as HTML; everything that others have named is escaped.

    by_ids: whether the search knows faces by their ids, where they have such.
    """
    jinja2 = import_package("jinja2", "Jinja2", INSTALL)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"whole": figures.whole, "real": figures.real, "real4": figures.real4}
    faces, measures = run.confidence.faces, run.confidence.clusters
    files, truth = run.files, run.truth

    @cache
    def majority(cluster: int) -> int | None:
        people = truth[clusters.rows(cluster)] if truth is not None else np.empty(0, np.int64)
        people = people[people >= 0]
        return int(np.bincount(people).argmax()) if len(people) else None

    return str(
        environment.get_template("index.html.j2").render(
            title=figures.title_of(run),
            version=__version__,
            policy=STATIC_POLICY if reviewing is None else SERVED_POLICY.partition("; frame-ancestors")[0],
            review=reviewing,
            keys=reviewing.keys if reviewing else (),
            sections=list(sections_of(overview, reviewing)),
            overview=overview,
            sprites=sprites,
            has_images=files is not None,
            path=(lambda face: "") if files is None else files.shown,
            name=run.name,
            named=run.ids is not None,
            short=short,
            ids=by_ids,
            too_many_ids=run.ids is not None and not by_ids,
            truth=truth,
            majority=majority,
            person=lambda face: "" if truth is None or truth[face] < 0 else f"person {truth[face]}",
            strength=run.confidence.strength,
            stats=figures.stats_of(run),
            notes=[str(note) for note in run.summary.get("notes") or ()],
            sizes=figures.sizes_of(measures.size),
            confidences=figures.confidences_of(faces.confidence),
            quality=figures.quality_of(run, truth_name),
            recall=figures.recall_of(run.summary),
            flag_rows=figures.flags_of(run),
            stages=figures.stages_of(run.summary),
            computed=list(figures.computed_of(run.summary)),
        )
    )


def short(name: str) -> str:
    """Return what stands below a face: of a path, what is behind the last folder."""
    return name[name.rstrip("/").rfind("/") + 1 :]


def sections_of(overview: Overview, reviewing: Reviewing | None) -> Iterator[tuple[str, str, int]]:
    """Yield the anchor, the name and the number of entries of each section."""
    if reviewing is not None:
        yield "decisions", "Decisions", 0
    for anchor, name in EVERY:
        yield anchor, name, 0
    yield "largest", "Largest", len(overview.largest)
    yield "suspicious", "Suspicious", len(overview.suspicious)
    yield "suspects", "Possibly the same person", len(overview.suspects)
    yield "singles", "Single faces", len(overview.singles)
    yield "sample", "Random sample", len(overview.sample)


def data_of(run: OpenedRun, sprites: Sprites, ids: str | None, reviewing: Reviewing | None = None) -> str:
    """Return the script that the page's search reads: arrays of all rows and clusters, little-endian, in base64.

    Measures are 16-bit, -1 to 1 in 65,534 steps, 0 where there is none. ids: see ``ids_of``.
    """
    faces, clusters = run.confidence.faces, run.confidence.clusters
    arrays = {
        "labels": run.placed.labels.astype("<i4"),
        "confidence": sixteen_bits(faces.confidence),
        "weakest": sixteen_bits(clusters.weakest),
        "cohesion": sixteen_bits(clusters.cohesion),
        "similarity": sixteen_bits(clusters.similarity),
        "flags": clusters.flags,
        "sprites": sprites.faces.astype("<i4"),
        "pictured": sprites.shown.astype(np.uint8),
    }
    found: dict[str, object] = {
        name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()
    }
    found |= {"flagNames": list(FLAGS), "images": run.files is not None}
    if reviewing is not None:
        found["grouped"] = reviewing.grouped
    return f'window.fcdeployData={json.dumps(found)[:-1]}, "ids": {ids or "null"}}};\n'


def ids_of(run: OpenedRun) -> str | None:
    """Return what the page calls the faces, as JSON, None for row numbers; so also where ids would make it heavy."""
    if run.ids is None:
        return None
    ids = json.dumps([str(one) for one in run.ids.tolist()], separators=(",", ":"))
    return ids if len(ids) <= MOST_TEXT else None


def sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Return measures (m,) float32 between -1 and 1 as (m,) uint16; NaN is 0."""
    steps = np.round((np.clip(np.nan_to_num(values), -1, 1) + 1) / 2 * 65534) + 1
    return np.where(np.isnan(values), 0, steps).astype("<u2")
