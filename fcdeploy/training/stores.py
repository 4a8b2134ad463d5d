"""Where a tuning keeps what it makes on the way: in memory, in a run folder, or in one that goes at the end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from fcdeploy.data.scratch import scratch_folder
from fcdeploy.run.folder import SCRATCH_FOLDER, RunFolder, places_of
from fcdeploy.run.store import MemoryStore, Store
from fcdeploy.runtime.copies import ROWS
from fcdeploy.runtime.disk import most_at_once, note_too_little
from fcdeploy.runtime.prepare import Prepared
from fcdeploy.runtime.survey import places_of_run, sum_of_artifacts


@contextlib.contextmanager
def opened_store(prepared: Prepared, run_dir: Path | None, scratch_dir: Path | str | None) -> Iterator[Store]:
    """Open where artifacts are kept: in ``run_dir``, else in memory, or, where they are too large, in a folder.

    That folder is removed at the end. Raises InputError when another's files are in the place of artifacts.
    """
    artifacts, options = prepared.artifacts(), prepared.options
    with contextlib.ExitStack() as stack:
        folder = run_dir
        if folder is None and sum_of_artifacts(artifacts) > options.budget // 2:
            place = scratch_folder(options.scratch, scratch_dir)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=SCRATCH_FOLDER, dir=place)))
        if folder is None:
            yield MemoryStore()
            return
        store = stack.enter_context(RunFolder(folder))
        store.check_free([*places_of_run(prepared.system, artifacts), *places_of(ROWS)])
        note_too_little(store, most_at_once(artifacts, options, prepared.features.n, store.finished))
        yield store
