"""faiss, or the sentence that says how to install it."""

from typing import Any

from fcdeploy.errors import MissingDependencyError


def import_faiss() -> Any:
    """Import faiss; raises MissingDependencyError with the command that installs it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "faiss is not installed; install it with `pip install 'fcdeploy[cpu]'` (or `[gpu]`)."
        ) from error
    return faiss
