"""Pages to view and to correct the clusters of a run, and exports for other tools.

``fcdeploy.report(...)`` writes the page: the folder has the name of what it does, and so it can be called.
"""

import importlib
import sys
from types import ModuleType


class _Callable(ModuleType):
    """A module that is called for the function of its name."""

    def __call__(self, *args: object, **options: object) -> object:
        return importlib.import_module(f"{__name__}.writing").report(*args, **options)


sys.modules[__name__].__class__ = _Callable
