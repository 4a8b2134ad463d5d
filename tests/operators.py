"""onnxscript parses the sources of its operators at each export, a third of an export's time; tests do it once."""

import contextlib
import functools
import gc


def parse_each_once() -> None:
    """Keep what an operator was parsed to."""
    with contextlib.suppress(ImportError, AttributeError):  # its own; slower where a release has it elsewhere
        from onnxscript._internal.values import TracedOnnxFunction

        TracedOnnxFunction.function_ir = property(functools.cache(TracedOnnxFunction.function_ir.fget))


def parse_all() -> None:
    """Parse all operators that are imported, in a process whose forks are to export."""
    parse_each_once()
    for thing in gc.get_objects():
        if type(thing).__name__ == "TracedOnnxFunction":
            _ = thing.function_ir
