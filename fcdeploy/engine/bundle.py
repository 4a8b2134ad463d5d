"""An engine bundle: a folder with ``manifest.json`` and one graph file a pass."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from fcdeploy.data.atomic_folder import atomic_folder, check_folder
from fcdeploy.engine.onnx_file import takes_other_files
from fcdeploy.engine.onnxruntime import PROVIDERS, OnnxRuntimeEngine, import_onnxruntime
from fcdeploy.engine.tensorrt import PlanTarget, TensorRtEngine, check_target, target_from_dict
from fcdeploy.engine.tensorrt_library import TITLES
from fcdeploy.engine.tensors import Engine, PassSpec, pass_from_dict
from fcdeploy.errors import InputError

MANIFEST = "manifest.json"
FORMAT = "fcdeploy-bundle"
FORMAT_VERSION = 2
ONNX, PLAN = "onnx", "plan"  # kinds of bundles, and the suffixes of their graph files
FIELDS = {
    "system": str,
    "feature_dim": int,
    "precision": str,
    "recipe": dict,
    "passes": dict,
    "networks": dict,
    "versions": dict,
}
ANY = "*"  # whatever the fields are called
NUMBER = (int, float)
PASS_FIELDS = {"file": str, "sha256": str, "bytes": int}
NETWORK_FIELDS = {
    "widths": dict,
    "checkpoint": {"file": str, "sha256": str},
    "parity": {
        "backend": str,
        "sizes": [[int]],
        **dict.fromkeys(("max_error", "mean_error", "tolerance"), NUMBER),
        **dict.fromkeys(("nan", "edges", "flipped", "undecided"), int),
    },
}
HALF_FIELDS = {
    "keep": str,
    "products": {ANY: {"fp16": int, "fp32": int}},
    "agreement": {
        "faces": int,
        "source": str,
        "least": NUMBER,
        "runs": [
            {"inference": str, "options": {ANY: NUMBER}, "share": NUMBER, "clusters": [(int, NoneType)]}
        ],
    },
}


@dataclass(frozen=True)
class Bundle:
    """A bundle as its manifest describes it; nothing is loaded yet.

    manifest holds: kind, system, feature_dim, precision, recipe, passes (name -> file, sha256, bytes, inputs,
    outputs), networks (name -> widths, checkpoint (file, sha256), parity), versions. Where the kind is "plan", also
    target (flavour, version, compute_capability, device, profile), source (bundle, digest), and of each pass its
    profiles (axis -> shortest, typical, longest) and source (file, sha256).
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What the graph files are: "onnx", for ONNX Runtime, or "plan", for TensorRT."""
        return str(self.manifest.get("kind", ONNX))

    @property
    def target(self) -> PlanTarget:
        """What plans were built for."""
        return target_from_dict(self.manifest["target"])

    @property
    def system(self) -> str:
        return str(self.manifest["system"])

    @property
    def feature_dim(self) -> int:
        return int(self.manifest["feature_dim"])

    @property
    def weights(self) -> dict[str, dict[str, Any]]:
        """The networks that the bundle holds, each with the widths of its weights."""
        return {name: _as_widths(fields["widths"]) for name, fields in self.manifest["networks"].items()}

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
        return _remake(self.manifest, self.path)

    def check_files(self) -> None:
        """Raise InputError when a graph file is not the one that the manifest was written for."""
        for name in self.manifest["passes"]:
            self._checked(name)

    def _checked(self, name: str) -> bytes:
        """Read a graph file, once, so that what was checked is what is loaded."""
        file = self.file(name)
        fields = self.manifest["passes"][name]
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != fields["sha256"]:
            size, wanted = len(content), fields["bytes"]
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
                f"or give the ONNX bundle that it was built from, {self.manifest['source']['bundle']}."
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

        device: "cpu" or "cuda"; None: the CPU for ONNX graphs, the GPU for plans. vram: bytes of device memory to get
        along with, 0 for what is there; share: how many engines there are for what is there.
        """
        device = self.device(device)
        path, spec = self.file(name), self.passes[name]
        if self.kind == PLAN:
            check_target(self.target, str(path), self.remake)  # before the file is read
            self._checked(name)
            profiles = self.manifest["passes"][name]["profiles"]
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
        manifest = json.loads(file.read_bytes())
        if manifest["format"] != FORMAT:
            raise KeyError("format")
        if manifest["format_version"] > FORMAT_VERSION:
            raise InputError(
                f"{file}: has format {manifest['format_version']}, this fcdeploy reads up to {FORMAT_VERSION}; "
                "upgrade fcdeploy."
            )
        if manifest["format_version"] < FORMAT_VERSION:
            raise InputError(
                f"{file}: has format {manifest['format_version']}, of an older fcdeploy; export the bundle again."
            )
        for key, kind in FIELDS.items():
            if type(manifest[key]) is not kind:
                raise TypeError(f"'{key}' should be of type {kind.__name__}")
        for name, fields in manifest["networks"].items():
            _check_fields(fields, NETWORK_FIELDS, f"networks.{name}")
            _as_widths(fields["widths"])
        if "fp16" in manifest:
            _check_fields(manifest["fp16"], HALF_FIELDS, "fp16")
        _check_kind(manifest)
        if not manifest["networks"] or not manifest["passes"]:
            raise TypeError("there should be networks and passes")
        for name, fields in manifest["passes"].items():
            _check_fields(fields, PASS_FIELDS, f"passes.{name}")
            try:
                pass_from_dict(name, fields)
            except InputError as error:
                raise InputError(f"{file}: {error}") from error
            if Path(fields["file"]).name != fields["file"]:
                raise InputError(
                    f"{file}: pass {name} names {fields['file']!r}, which is not a file in the bundle."
                )
            if not (folder / fields["file"]).is_file():
                raise InputError(
                    f"{folder}: the file {fields['file']} of pass {name} is missing; {_remake(manifest, folder)}."
                )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file}: is not a bundle's manifest ({error!r}); export the bundle again."
        ) from error
    return Bundle(folder, manifest)


def files_of_bundle(folder: Path) -> set[str] | None:
    """Return the names of our own files in a bundle, of any version and complete or not; None where none is ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or (folder / MANIFEST).is_symlink():
            return None
        files = {fields["file"] for fields in manifest["passes"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
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
    fields: Mapping[str, Any],
    *,
    kind: str = ONNX,
    of_passes: Mapping[str, Mapping[str, Any]] | None = None,
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


def _remake(manifest: Mapping[str, Any], folder: Path) -> str:
    if manifest.get("kind", ONNX) != PLAN:
        return "export the bundle again"
    target = target_from_dict(manifest["target"])
    return f"rebuild it with `{target.command(manifest['source']['bundle'], folder.name)}`"


def _check_kind(manifest: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError unless the manifest says all that its kind needs."""
    if manifest.get("kind", ONNX) not in (ONNX, PLAN):
        raise TypeError(f"'kind' should be {ONNX} or {PLAN}")
    if manifest.get("kind") == PLAN:
        target_from_dict(manifest["target"])
        _check_fields(manifest["source"], {"bundle": str, "digest": str}, "source")
        for name, fields in manifest["passes"].items():
            for ranges in fields["profiles"]:
                for lengths in ranges.values():
                    if [type(length) for length in lengths] != [int, int, int]:
                        raise TypeError(f"'profiles' of pass {name} should hold three whole numbers an axis")


def _check_fields(value: Any, wanted: Any, where: str) -> None:
    """Raise TypeError or KeyError unless ``value`` has fields of the types ``wanted``; ``where`` names it."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            raise TypeError(f"'{where}' should be a table")
        for name, inner in dict.fromkeys(value, wanted[ANY]).items() if ANY in wanted else wanted.items():
            _check_fields(value[name], inner, f"{where}.{name}")
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise TypeError(f"'{where}' should be a list")
        for entry in value:
            _check_fields(entry, wanted[0], where)
    elif not isinstance(value, wanted) or isinstance(value, bool):
        raise TypeError(f"'{where}' should not be {value!r:.40}")


def _as_widths(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read a network's widths: whole numbers, and lists of them as tuples."""
    widths = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if "dim" not in widths:
        raise TypeError("there should be a width 'dim'")
    for name, value in widths.items():
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is not int or number < 1:
                raise TypeError(f"width '{name}' should be of positive whole numbers")
    return widths


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
