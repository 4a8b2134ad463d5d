"""A worker's process on a Ray cluster: an actor that says what its flow asks, and hands it the answers.

This module is loaded before the numbers of threads are known, and imports nothing that has threads.
"""

import importlib
import os
import queue
import threading
from collections.abc import Callable

from fcdeploy.run.messages import ENDED, Ask, Reply

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
Send = Callable[[Ask], Reply]


def probe(target: str, argument: str) -> str:
    """Return what a function of text, "module:function", makes of an argument in this process."""
    module, _, name = target.partition(":")
    return str(getattr(importlib.import_module(module), name)(argument))


class RayWorker:
    """Runs ``target`` ("module:function") in a thread; its arguments: description, name, threads, workers, send.

    threads: those that the worker has; workers: how many share its machine.
    """

    def __init__(self, target: str, description: str, name: str, threads: int, workers: int) -> None:
        # Ray sets the first of these to the CPUs of whoever had the process first (ray issue 35937).
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
        self._asks: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._arguments = description, name, threads, workers
        threading.Thread(target=self._work, args=(target,), name="fcdeploy-worker", daemon=True).start()

    def exchange(self, reply: tuple[str, int, int, str] | None) -> tuple[str, int, str, str, int, int, str]:
        """Hand the flow an answer, if there is one, and return what it asks next."""
        if reply is not None:
            self._replies.put(Reply(*reply))
        kind, run, name, key, start, stop, text = self._asks.get()
        return kind, run, name, key, start, stop, text

    def _work(self, target: str) -> None:
        try:
            module, _, name = target.partition(":")
            getattr(importlib.import_module(module), name)(*self._arguments, self._send)
            reason = ""
        except BaseException as error:
            lines = str(error).splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
        self._asks.put(Ask(ENDED, text=reason))

    def _send(self, ask: Ask) -> Reply:
        self._asks.put(ask)
        return self._replies.get()
