"""New faces to the clusters of a run folder, in one go: by this process, or by workers elsewhere."""

from pathlib import Path

from fcdeploy.data.features import Features
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options, check_values
from fcdeploy.runtime.assign import Assigned, Assigner
from fcdeploy.runtime.assign_workers import assign_on_workers
from fcdeploy.runtime.stored import read_state

UNMATCHED = ("-1", "singleton")
DEFAULTS = Options()


def check_unmatched(unmatched: str) -> None:
    """Raise InputError when ``unmatched`` is no choice."""
    if unmatched not in UNMATCHED:
        raise InputError(f"--unmatched {unmatched}: should be {' or '.join(UNMATCHED)}.")


def assign_features(
    features: Features,
    run_dir: Path | str,
    *,
    engine: Path | str | None = None,
    unmatched: str = UNMATCHED[0],
    options: Options = DEFAULTS,
    part: Path | None = None,
    quiet: bool = True,
) -> Assigned:
    """Assign faces to the clusters of a run folder, see ``Assigner``.

    unmatched: "-1", or "singleton" for a new number each. options: of these threads, memory, device, and those of a
    cluster are read; part: see ``assign_on_workers``.
    """
    check_unmatched(unmatched)
    check_values(options)
    if options.ray is not None:
        found = assign_on_workers(features, Path(run_dir), options, engine=engine, part=part, quiet=quiet)
        return found.with_new(read_state(Path(run_dir)).next_label) if unmatched == "singleton" else found
    limits = {"threads": options.threads, "memory": options.memory}
    with Assigner(run_dir, engine=engine, device=options.device, progress=not quiet, **limits) as assigner:
        found = assigner.assign_features(features)
        return found.with_new(assigner.next_label) if unmatched == "singleton" else found
