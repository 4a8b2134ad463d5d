"""Build profiles: TOML files that say what a bundle is compiled for, and how long its axes may get."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from fcdeploy.data.toml import table_from_toml
from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import InputError
from fcdeploy.systems import NAMES

BUILT_IN = resources.files("fcdeploy.deploy") / "profiles"
DEFAULT = "rtx3090"
FLAVOURS = ("tensorrt-rtx", "tensorrt", "onnxruntime")
OTHER = "other"  # stands for every axis that is named nowhere
CAPABILITY = re.compile(r"\d{1,2}\.\d")

Range = tuple[int, int, int]  # shortest, typical, longest
Ranges = dict[str, Range]  # axis name -> its range


@dataclass(frozen=True)
class PassRanges:
    """Ranges of one pass: of its axes, and groups of axes, one optimization profile each."""

    axes: Ranges = field(default_factory=dict)
    groups: tuple[Ranges, ...] = ()


@dataclass(frozen=True)
class BuildProfile:
    """What to build for.

    name: what --profile has to be given to get it again, a built-in name or a file's without its folder. flavour: of
    FLAVOURS. compute_capability: as in "8.6"; empty for ONNX Runtime. workspace: bytes of scratch memory, 0 for as
    much as the builder likes. passes: what holds for one pass of one system alone, by (system, pass).
    """

    name: str
    flavour: str
    compute_capability: str = ""
    workspace: int = 0
    everywhere: PassRanges = field(default_factory=PassRanges)
    passes: Mapping[tuple[str, str], PassRanges] = field(default_factory=dict)

    def ranges(self, system: str, spec: PassSpec) -> list[Ranges]:
        """Return the ranges of a pass's free axes, one dictionary an optimization profile.

        A pass that the profile has a table for is described by it; any other by the groups whose axes it has, all of
        them. Axes outside the groups come from [axes]. Raises InputError for an axis that has no range at all.
        """
        free = list(dict.fromkeys(a for tensor in spec.inputs for a in tensor.axes if isinstance(a, str)))
        own = self.passes.get((system, spec.name), PassRanges())
        groups: Collection[Ranges] = own.groups
        if not groups and not own.axes:
            groups = [group for group in self.everywhere.groups if group.keys() <= set(free)]
        single = {**self.everywhere.axes, **own.axes}
        found = []
        for group in groups or [{}]:
            ranges = {}
            for axis in free:
                if axis in group:
                    ranges[axis] = group[axis]
                elif axis in single or OTHER in single:
                    ranges[axis] = single.get(axis, single.get(OTHER, (0, 0, 0)))
                else:
                    raise InputError(
                        f"profile {self.name}: has no range for axis '{axis}' of pass {spec.name}; "
                        f"add {axis} = [shortest, typical, longest] or {OTHER} = ... to its [axes]."
                    )
            found.append(ranges)
        return found


def built_in_names() -> list[str]:
    """Return the names of the built-in build profiles, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in BUILT_IN.iterdir() if entry.name.endswith(".toml")
    )


def built_in_text(name: str) -> str:
    """Return a built-in build profile as it is written."""
    return (BUILT_IN / f"{name}.toml").read_text(encoding="utf-8")


def load_profile(source: Path | str) -> BuildProfile:
    """Read a build profile from a TOML file, or a built-in one by its name.

    Raises InputError that names file and key for anything unknown, missing, of a wrong type or impossible.
    """
    path = Path(source)
    if path.is_file():
        where, text = str(path), path.read_bytes()
    elif str(source) in built_in_names():
        where, text = f"profile {source}", built_in_text(str(source)).encode()
    else:
        raise InputError(
            f"{source}: no such build profile, and no built-in one of that name ({', '.join(built_in_names())})."
        )
    profile = profile_from_dict(table_from_toml(text, where, "a build profile"), path.stem, where)
    if path.is_file() and (path.stem not in built_in_names() or built_in_text(path.stem).encode() != text):
        return replace(profile, name=path.name)
    return profile


def profile_from_dict(table: Mapping[str, Any], name: str, where: str) -> BuildProfile:
    """Build a profile from nested tables; ``where`` names their origin in messages."""
    _only(table, ("target", "axes", "groups", "systems"), where, "")
    target = _table(table.get("target"), where, "target")
    _only(target, ("flavour", "compute_capability", "workspace"), where, "target.")
    flavour = target.get("flavour")
    if flavour not in FLAVOURS:
        raise InputError(
            f"{where}: target.flavour should be one of {', '.join(FLAVOURS)}, found {flavour!r}."
        )
    capability = target.get("compute_capability", "")
    if flavour == "onnxruntime":
        if len(table) > 1 or len(target) > 1:
            raise InputError(f"{where}: for onnxruntime there is nothing to set beside target.flavour.")
    else:
        check_capability(capability, f"{where}: target.compute_capability")
    everywhere = _pass_ranges(
        {**_table(table.get("axes", {}), where, "axes"), "groups": table.get("groups", [])}, where, "axes."
    )
    passes = {}
    for system, tables in _table(table.get("systems", {}), where, "systems").items():
        if system not in NAMES:
            raise InputError(f"{where}: systems.{system} is no known system; known: {', '.join(NAMES)}.")
        for of, ranges in _table(tables, where, f"systems.{system}").items():
            key = f"systems.{system}.{of}"
            passes[system, of] = _pass_ranges(_table(ranges, where, key), where, f"{key}.")
    workspace = _bytes(target.get("workspace", 0), where)
    return BuildProfile(name, flavour, capability, workspace, everywhere, passes)


def check_capability(value: Any, where: str) -> None:
    """Raise InputError unless ``value`` is a compute capability as in "8.6"."""
    if not isinstance(value, str) or not CAPABILITY.fullmatch(value):
        raise InputError(f'{where} should be a compute capability, as in "8.6", found {value!r}.')


def _pass_ranges(table: Mapping[str, Any], where: str, prefix: str) -> PassRanges:
    table = dict(table)
    groups = table.pop("groups", [])
    if not isinstance(groups, list):
        raise InputError(f"{where}: groups should be an array of tables, found {groups!r}.")
    read = []
    for at, group in enumerate(groups):
        ranges = _ranges(_table(group, where, f"groups[{at}]"), where, f"groups[{at}].")
        if not ranges or OTHER in ranges:
            raise InputError(f"{where}: groups[{at}] should name axes, each with its range.")
        read.append(ranges)
    return PassRanges(_ranges(table, where, prefix), tuple(read))


def _ranges(table: Mapping[str, Any], where: str, prefix: str) -> Ranges:
    ranges = {}
    for axis, value in table.items():
        whole = isinstance(value, list) and all(type(length) is int for length in value)
        if not whole or len(value) != 3 or not 1 <= value[0] <= value[1] <= value[2] <= 2**31 - 1:
            raise InputError(
                f"{where}: {prefix}{axis} should be [shortest, typical, longest], rising from 1, found {value!r}."
            )
        ranges[axis] = (value[0], value[1], value[2])
    return ranges


def _table(value: Any, where: str, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {key} should be a table of settings, found {value!r}.")
    return value


def _only(table: Mapping[str, Any], known: Collection[str], where: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            raise InputError(f"{where}: unknown key '{prefix}{key}'; known here: {', '.join(known)}.")


def _bytes(value: Any, where: str) -> int:
    """Read a size: a whole number of bytes, or a text as in "4G" (powers of 1024)."""
    if type(value) is int and value >= 0:
        return value
    match = re.fullmatch(r"(\d+)([KMGT]?)", value) if isinstance(value, str) else None
    if match is None:
        raise InputError(f'{where}: target.workspace should be a size, as in "4G", found {value!r}.')
    return int(match[1]) * 1024 ** (" KMGT".index(match[2] or " "))
