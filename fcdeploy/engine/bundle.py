"""An engine bundle: a folder with ``manifest.json`` and one graph file a pass."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from fcdeploy.data.atomic_folder import atomic_folder, check_folder
from fcdeploy.data.digests import sha256_of
from fcdeploy.data.typed import typed
from fcdeploy.engine.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    ONNX,
    PLAN,
    Manifest,
    Source,
    Widths,
    manifest_from_dict,
)
from fcdeploy.engine.onnx_file import takes_other_files
from fcdeploy.engine.onnxruntime import PROVIDERS, OnnxRuntimeEngine, import_onnxruntime
from fcdeploy.engine.tensorrt import PlanTarget, TensorRtEngine, check_target
from fcdeploy.engine.tensorrt_library import TITLES
from fcdeploy.engine.tensors import Engine, PassSpec, pass_from_dict
from fcdeploy.errors import InputError


@dataclass(frozen=True)
class Named:
    file: str


@dataclass(frozen=True)
class Ours:
    """What a manifest of ours has in any version."""

    format: Literal["fcdeploy-bundle"]
    passes: dict[str, Named]


@dataclass(frozen=True)
class Bundle:
    """A bundle as its manifest describes it; nothing is loaded yet.

    manifest: the JSON text as tables, keys that fcdeploy does not know among them; ``about`` is what it says. That of
    a run in training holds system, feature_dim, the widths of networks, and passes without sizes only.
    """

    path: Path
    manifest: Mapping[str, Any]

    @cached_property
    def about(self) -> Manifest:
        """What the manifest says; raises InputError where it is none."""
        return manifest_from_dict(self.manifest, str(self.path / MANIFEST))

    @property
    def kind(self) -> str:
        """What the graph files are: "onnx", for ONNX Runtime, or "plan", for TensorRT."""
        return str(self.manifest.get("kind", ONNX))

    @property
    def target(self) -> PlanTarget:
        """What plans were built for."""
        assert self.about.target is not None, "of plans only"
        return self.about.target

    @property
    def source(self) -> Source:
        """What plans were built from."""
        assert self.about.source is not None, "of plans only"
        return self.about.source

    @property
    def system(self) -> str:
        return str(self.manifest["system"])

    @property
    def feature_dim(self) -> int:
        return int(self.manifest["feature_dim"])

    @property
    def weights(self) -> dict[str, Widths]:
        """The networks that the bundle holds, each with the widths of its weights."""
        return {
            name: msgspec.convert(fields["widths"], Widths)
            for name, fields in self.manifest["networks"].items()
        }

    @property
    def passes(self) -> dict[str, PassSpec]:
        return {name: pass_from_dict(name, fields) for name, fields in self.manifest["passes"].items()}

    def file(self, name: str) -> Path:
        """Return the graph file of pass ``name``; raises InputError when the bundle has no such pass."""
        if name not in self.manifest["passes"]:
            raise InputError(
                f"{self.path}: has no pass '{name}', only {', '.join(self.manifest['passes'])}; {self.remake}."
            )
        return self.path / self.manifest["passes"][name]["file"]

    def digest(self, passes: Collection[str] | None = None) -> str:
        """Return one SHA-256 over system, recipe-independent widths and the graph files of ``passes`` (all)."""
        parts = {
            name: fields["sha256"]
            for name, fields in self.manifest["passes"].items()
            if passes is None or name in passes
        }
        text = json.dumps([self.system, self.feature_dim, parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def remake(self) -> str:
        """What to do about a bundle that cannot be used as it is."""
        return self.about.remake(self.path.name)

    def check_files(self) -> None:
        """Raise InputError when a graph file is not the one that the manifest was written for."""
        for name in self.about.passes:
            self._checked(name)

    def _checked(self, name: str) -> bytes:
        """Read a graph file, once, so that what was checked is what is loaded."""
        file = self.file(name)
        described = self.about.passes[name]
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != described.sha256:
            size, wanted = len(content), described.bytes
            short = f" (it holds {size:,} of {wanted:,} bytes)" if size < wanted else ""
            raise InputError(
                f"{file}: is not the file that the manifest was written for{short}; {self.remake}."
            )
        if self.kind == ONNX and takes_other_files(content):
            raise InputError(
                f"{file}: takes weights from another file, which the manifest says nothing of; {self.remake}."
            )
        return content

    def device(self, asked: str | None = None) -> str:
        """Return where the bundle runs, "cpu" or "cuda", when ``asked`` to run there (None: where it can).

        Raises InputError for plans on a CPU.
        """
        if self.kind == PLAN and asked == "cpu":
            raise InputError(
                f"{self.path}: holds TensorRT plans, which run on a GPU only; leave --device out, "
                f"or give the ONNX bundle that it was built from, {self.source.bundle}."
            )
        return asked or ("cuda" if self.kind == PLAN else "cpu")

    def provider(self, asked: str | None = None) -> str:
        """Return the execution provider of an engine that runs there: ONNX Runtime's name of it, or the TensorRT."""
        return TITLES[self.target.flavour] if self.kind == PLAN else PROVIDERS[self.device(asked)]

    @property
    def runtime(self) -> dict[str, str]:
        """The version of what evaluates the bundle, by name; raises MissingDependencyError without ONNX Runtime.

        Plans run with the version of TensorRT that built them only.
        """
        if self.kind == PLAN:
            return {self.target.flavour: self.target.version}
        return {"onnxruntime": str(import_onnxruntime().__version__)}

    def check_device(self, asked: str | None = None) -> None:
        """Raise an error when this machine cannot run the bundle there; nothing that takes long is done before it."""
        device = self.device(asked)
        if self.kind == PLAN:
            check_target(self.target, str(self.path), self.remake)
        elif device != "cpu":
            with self.open(next(iter(self.passes)), device=device):
                pass

    @contextlib.contextmanager
    def open(
        self, name: str, *, threads: int = 0, device: str | None = None, vram: int = 0, share: int = 1
    ) -> Iterator[Engine]:
        """Load pass ``name`` after its hash was found right; the block's end frees it.

        device: "cpu" or "cuda"; None: the CPU for ONNX graphs, the GPU for plans. vram: budget of device memory
        in bytes, 0 for what is there; share: how many engines there are for what is there.
        """
        device = self.device(device)
        path, spec = self.file(name), self.passes[name]
        if self.kind == PLAN:
            check_target(self.target, str(path), self.remake)  # before the file is read
            self._checked(name)
            profiles = self.about.passes[name].profiles or ()
            with TensorRtEngine(
                path, spec, self.target, profiles, remake=self.remake, vram=vram, share=share
            ) as on_gpu:
                yield on_gpu
            return
        content = self._checked(name)
        with OnnxRuntimeEngine(
            path, spec, graph=content, threads=threads, device=device, vram=vram
        ) as engine:
            del content
            yield engine


def read_bundle(path: Path | str) -> Bundle:
    """Read the manifest of a bundle folder, or of the bundle that a given file lies in.

    Raises InputError when there is none, or it is damaged, from a newer fcdeploy, or names files elsewhere.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    file = folder / MANIFEST
    if not path.exists():
        raise InputError(
            f"{path}: no such engine; make one with `fcdeploy export --ckpt CHECKPOINT -o {path.name}`."
        )
    if not file.is_file():
        raise InputError(
            f"{path}: no {MANIFEST} in {folder}; an engine is the folder that `fcdeploy export` wrote."
        )
    try:
        bundle = Bundle(folder, json.loads(file.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not a bundle's manifest ({error}); export the bundle again.") from error
    for name, described in bundle.about.passes.items():
        if Path(described.file).name != described.file:
            raise InputError(
                f"{file}: pass {name} names {described.file!r}, which is not a file in the bundle."
            )
        if not (folder / described.file).is_file():
            raise InputError(
                f"{folder}: the file {described.file} of pass {name} is missing; {bundle.remake}."
            )
    return bundle


def files_of_bundle(folder: Path) -> set[str] | None:
    """Return the names of our own files in a bundle, of any version and complete or not; None where none is ours."""
    try:
        ours = typed(Ours, json.loads((folder / MANIFEST).read_bytes()), MANIFEST, open_ended=True)
    except (OSError, ValueError, RecursionError):
        return None
    if (folder / MANIFEST).is_symlink():
        return None
    files = {described.file for described in ours.passes.values()}
    graphs = (f".{ONNX}", f".{PLAN}")
    if not all(Path(name).name == name and Path(name).suffix in graphs for name in files):
        return None
    return {MANIFEST, *files}


def check_bundle_path(path: Path | str, passes: Collection[str] = (), kind: str = ONNX) -> Path:
    """Return ``path`` when a bundle of these passes can be written there; raises InputError otherwise.

    A folder there is replaced only when it is a bundle of ours or empty, and a file of the user's in it stays. Meant
    to be called before the work starts.
    """
    return check_folder(path, files_of_bundle, _files(passes, kind))


@contextlib.contextmanager
def new_bundle(path: Path | str, passes: Collection[str] = (), kind: str = ONNX) -> Iterator[Path]:
    """Give a folder to write a bundle of these passes into; it appears at ``path`` whole or not at all.

    In a bundle that is there already, only the files that its manifest names are replaced. Raises InputError as
    ``check_bundle_path``.
    """
    with atomic_folder(path, files_of_bundle, _files(passes, kind)) as folder:
        yield folder


def _files(passes: Collection[str], kind: str) -> list[str]:
    return [MANIFEST, *(f"{name}.{kind}" for name in passes)]


def write_manifest(
    folder: Path,
    passes: Mapping[str, PassSpec],
    fields: Mapping[str, object],
    *,
    kind: str = ONNX,
    of_passes: Mapping[str, Mapping[str, object]] | None = None,
) -> None:
    """Write the manifest of the graph files ``<pass>.<kind>`` in ``folder``, with their sizes and hashes.

    of_passes: more to say of each pass.
    """
    described = {}
    for name, spec in passes.items():
        file = folder / f"{name}.{kind}"
        described[name] = {
            "file": file.name,
            "bytes": file.stat().st_size,
            "sha256": sha256_of(file),
            **spec.as_dict(),
            **(of_passes or {}).get(name, {}),
        }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        **fields,
        "passes": described,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
