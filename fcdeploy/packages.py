"""Packages that only some installs have, imported where they are needed: one sentence says what is wrong with one."""

import importlib
import warnings
from types import ModuleType

from fcdeploy.errors import BrokenDependencyError, FcdeployWarning, MissingDependencyError

REASON_CHARACTERS = 300


def import_package(module: str, title: str, install: str) -> ModuleType:
    """Import a module of a package that may be missing, by its dotted name.

    title: what people call the package; install: what brings it, as in "pip install 'fcdeploy[cpu]'". Raises
    MissingDependencyError when the package is not installed, with the command that installs it, and
    BrokenDependencyError when it is and does not load (a library that it needs is missing or too old, it was built for
    another NumPy, parts of it are gone), with the reason.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise _broken(title, install, error) from error
        raise MissingDependencyError(f"{title} is not installed; install it with `{install}`.") from error
    except (Exception, SystemExit) as error:  # what a package raises while it loads is its own choice
        raise _broken(title, install, error) from error
    if getattr(found, "__file__", None) is None and getattr(found, "__path__", None) is not None:
        # A folder without its __init__.py, which an uninstall or an interrupted install has left.
        where = ", ".join(map(str, found.__path__))
        raise _broken(title, install, ImportError(f"only parts of it are in {where}"))
    return found


def tell_if_broken(error: MissingDependencyError, outcome: str) -> None:
    """Warn that a package is broken without which a run goes on anyway; say nothing of one that is missing."""
    if isinstance(error, BrokenDependencyError):
        warnings.warn(f"{str(error).rstrip('.')}; {outcome}.", FcdeployWarning, stacklevel=3)


def _broken(title: str, install: str, error: BaseException) -> BrokenDependencyError:
    return BrokenDependencyError(
        f"{title} is installed, but does not load ({reason_of(error)}); repair its installation, or install it again "
        f"with `{install}`."
    )


def reason_of(error: BaseException) -> str:
    """Return what an exception says, on one line and not too long; its type where that alone tells what it is."""
    text = " ".join(str(error).split())[:REASON_CHARACTERS].rstrip(". ")
    if isinstance(error, ImportError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
