"""Looking at clusters: a page to see them, another to correct them, and exports for the tools people use.

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
