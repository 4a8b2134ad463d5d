"""Any ONNX face detector that gives boxes and five points: which head it has, and pictures through it."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from fcdeploy.engine.detector_heads import Candidates, is_decoded, recognise, rows_of
from fcdeploy.engine.detector_settings import DetectorSettings
from fcdeploy.engine.embedder import DTYPES
from fcdeploy.engine.onnx_file import model_files
from fcdeploy.engine.onnxruntime import open_session, run_error
from fcdeploy.errors import FcdeployError, InputError

PROBE = (256, 320)  # height, width of a picture that is tried first, where the graph leaves them open
LAYOUTS = ("NCHW", "NHWC")


class Detector:
    """A loaded detector, which several threads may call at once; a ``with`` frees it.

    size: (height, width) of its input where the graph says them, else None: pictures of any size. batch: how many
    pictures it takes per call, None for any number. head: how its outputs are read. threads: for one call. Raises
    InputError when the graph is no detector of faces with points, or does not fit the settings.
    """

    def __init__(
        self,
        path: Path,
        settings: DetectorSettings,
        *,
        threads: int = 1,
        device: str = "cpu",
        vram: int = 0,
    ) -> None:
        self.path, self._settings = path, settings
        model_files(path)
        self._session = open_session(path, threads=threads, device=device, vram=vram)
        self.provider: str = self._session.get_providers()[0]
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in DTYPES or len(inputs[0].shape) != 4:
            told = ", ".join(f"{tensor.name} {tensor.shape} {tensor.type}" for tensor in inputs)
            raise InputError(
                f"{path}: expected one input of images with four axes, found {told}; give an ONNX face detector."
            )
        self._input = inputs[0].name
        self._dtype = DTYPES[inputs[0].type]
        shape = [axis if isinstance(axis, int) and axis > 0 else None for axis in inputs[0].shape]
        self.layout = self._layout(shape)
        at = dict(zip(self.layout, shape, strict=True))
        self.size = self._size(at["H"], at["W"])
        self.batch = at["N"]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        probe = self.size or PROBE
        values = np.zeros((self.batch or 1, 3, *probe), np.float32)
        found = self._run(values)
        self.head = recognise(rows_of(found, 0, settings), probe, settings, str(path))
        self.channels = settings.channels or self.head.channels
        self._mean = np.array(settings.numbers("mean", self.head.mean), np.float32)
        self._scale = np.array(settings.numbers("scale", self.head.scale), np.float32)
        if is_decoded(settings) or any(output.ndim < 3 for output in found.values()):
            self.batch = self.batch or 1  # what has no batch axis is of one picture
        self._buffers = threading.local()

    def describe(self) -> str:
        """Say in a line what pictures become, and how the outputs are read."""
        size = "any size" if self.size is None else f"{self.size[0]} x {self.size[1]} (height x width)"
        mean, scale = (", ".join(f"{number:g}" for number in values) for values in (self._mean, self._scale))
        return f"{self.head.name}, {self.layout}, {size}, {self.channels}, (pixel - [{mean}]) / [{scale}]"

    def candidates(self, pictures: Sequence[np.ndarray], least: float) -> list[Candidates]:
        """Return what scores above ``least`` in each picture, before any suppression, in pixels of the picture.

        pictures: (height, width, 3) uint8, RGB, all of one size; no larger than ``size``, where there is one. They are
        filled up with black at the right and at the bottom.
        """
        found = []
        step = self.batch or len(pictures)
        for start in range(0, len(pictures), step):
            group = pictures[start : start + step]
            feed = self._prepared(group)
            outputs = self._run(feed)
            shape = feed.shape[2], feed.shape[3]
            for at in range(len(group)):
                faces = self.head.decode(rows_of(outputs, at, self._settings), shape, least)
                whole = np.isfinite(faces.boxes).all(axis=1) & np.isfinite(faces.points).all(axis=(1, 2))
                found.append(faces[whole] if not whole.all() else faces)
        return found

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> "Detector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepared(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the graph takes (b, 3, h, w) float32; the thread's own, until its next call."""
        height, width = pictures[0].shape[:2]
        multiple = self._settings.multiple
        size = self.size or (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
        shape = (self.batch or len(pictures), 3, *size)
        length = math.prod(shape)
        kept = getattr(self._buffers, "kept", None)
        if kept is None or len(kept) < length:
            kept = self._buffers.kept = np.empty(
                length, np.float32
            )  # for good: mapping new pages takes its time
        feed: np.ndarray = kept[:length].reshape(shape)
        feed[len(pictures) :] = feed[:, :, height:] = feed[..., width:] = 0
        for at, picture in enumerate(pictures):
            for channel in range(3):
                plane = picture[..., channel if self.channels == "rgb" else 2 - channel]
                feed[at, channel, :height, :width] = plane
        if self._mean.any():
            feed -= self._mean.reshape(1, -1, 1, 1)
        if (self._scale != 1).any():
            feed /= self._scale.reshape(1, -1, 1, 1)
        return feed

    def _run(self, feed: np.ndarray) -> dict[str, np.ndarray]:
        given = feed if self.layout == "NCHW" else np.ascontiguousarray(feed.transpose(0, 2, 3, 1))
        try:
            outputs = self._session.run(self._outputs, {self._input: given.astype(self._dtype, copy=False)})
        except Exception as error:  # ONNX Runtime's errors share no public base class
            problem = run_error(error, str(self.path))
            if isinstance(problem, FcdeployError) and not hasattr(self, "head"):
                raise InputError(f"{problem} It was tried on {given.shape} {given.dtype}.") from error
            raise problem from error
        return {
            name: np.asarray(output, np.float32) for name, output in zip(self._outputs, outputs, strict=True)
        }

    def _layout(self, shape: Sequence[int | None]) -> str:
        given = self._settings.layout
        fitting = [layout for layout in LAYOUTS if shape[layout.index("C")] in (None, 3)]
        if given is not None and given in fitting:
            return given
        if given is not None or not fitting:
            raise InputError(
                f"{self.path}: its input {shape} has no axis of 3 channels{f' as {given} has' if given else ''}."
            )
        said = [layout for layout in fitting if shape[layout.index("C")] == 3]
        return said[0] if said else fitting[0]

    def _size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        given = self._settings.height_width
        if height is None and width is None:
            return given
        wanted = given or (height or PROBE[0], width or PROBE[1])
        size = height or wanted[0], width or wanted[1]
        if given is not None and size != given:
            raise InputError(
                f"{self.path}: its input is {size[0]} x {size[1]} (height x width), not {given[0]} x {given[1]}; leave "
                "out the size."
            )
        return size
