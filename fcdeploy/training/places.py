"""Where a training leaves things: the checkpoint, the recipe beside it and the run folder."""

from pathlib import Path

from fcdeploy.data.atomic import check_parent
from fcdeploy.data.run_record import Claims, check_run_folder, read_record
from fcdeploy.data.side_files import check_replaceable
from fcdeploy.deploy.recipe import is_written_recipe
from fcdeploy.deploy.recipe_beside import TRAINING, recipe_place
from fcdeploy.errors import InputError
from fcdeploy.training.configuration import is_config
from fcdeploy.training.loop import BEST, CURVES, LAST, STATE

FACES = "faces"
KEPT = (TRAINING, f"{CURVES}.csv", f"{CURVES}.png", BEST, LAST, STATE, FACES)  # in the run folder


def check_places(output: Path, run_dir: Path) -> None:
    """Raise InputError when checkpoint, recipe and run folder are not to lie in three places."""
    beside = recipe_place(output)
    for path in (output, run_dir):
        if path.resolve() == beside.resolve():
            raise InputError(f"{path}: is where the recipe goes, beside the checkpoint; choose another name.")
    if output.resolve() == run_dir.resolve():
        raise InputError(f"{output}: is the run folder, too; choose another name for the checkpoint.")
    check_replaceable(beside, is_written_recipe, "the recipe")
    claims_of(run_dir).check_free(KEPT)
    check_run_folder(run_dir / FACES)


def claims_of(run_dir: Path) -> Claims:
    """Return what in a run folder is ours; raises InputError when it is a folder of somebody's files."""
    return Claims(run_dir, check_run_folder(run_dir, older=names_before_records))


def names_before_records(folder: Path) -> set[str] | None:
    """Return the names that are ours in the run folder of a version that left no record there."""
    found = {path.name for path in folder.iterdir()}
    if found == {FACES} and read_record(folder / FACES) is not None:
        return {FACES}
    return {*KEPT} if is_config(folder / TRAINING) else None


def made_folders(output: Path, run_dir: Path) -> Claims:
    """Make the folders of the checkpoint and of the run; returns what is ours in the latter.

    Raises InputError where none can be.
    """
    if not run_dir.parent.is_dir() and run_dir.parent.resolve() != output.parent.resolve():
        raise InputError(
            f"{run_dir}: the folder {run_dir.parent} does not exist; create it or choose another --run-dir."
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir}: is a file; give a folder as --run-dir.")
    for folder, remedy in ((output.parent, "output"), (run_dir, "--run-dir")):
        make_folder(folder, remedy)
        check_parent(output)
    claims = claims_of(run_dir)
    claims.begin()
    claims.claim(*KEPT)
    return claims


def make_folder(folder: Path, remedy: str) -> None:
    """Make a folder and those above it; raises InputError, with what to choose anew, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: {error.filename} is a file, not a folder; choose another {remedy}."
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another {remedy}.") from error
