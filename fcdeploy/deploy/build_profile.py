"""Build profiles: TOML files that say what a bundle is compiled for, and how long its axes may get."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fcdeploy.data.toml import table_from_toml
from fcdeploy.data.typed import typed
from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import InputError
from fcdeploy.systems import NAMES

BUILT_IN = resources.files("fcdeploy.deploy") / "profiles"
DEFAULT = "rtx3090"
OTHER = "other"  # stands for every axis that is named nowhere
CAPABILITY = re.compile(r"\d{1,2}\.\d")
SIZE = re.compile(r"(\d+)([KMGT]?)")
RISING = "[shortest, typical, longest], rising from 1"

Range = tuple[int, int, int]  # shortest, typical, longest
Ranges = dict[str, Range]  # axis name -> its range
Length = Annotated[int, Meta(ge=1, le=2**31 - 1)]
WrittenRanges = dict[str, Annotated[tuple[Length, Length, Length], Meta(description=RISING)]]
WrittenGroups = Annotated[tuple[WrittenRanges, ...], Meta(description="an array of tables")]
Bytes = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern=rf"^{SIZE.pattern}\Z")]


@dataclass(frozen=True)
class Target:
    """The table [target] of a profile as it is written; workspace: bytes, or a text as in "4G" (powers of 1024)."""

    flavour: Literal["tensorrt-rtx", "tensorrt", "onnxruntime"]
    compute_capability: Annotated[str, Meta(description='a compute capability, as in "8.6"')] = ""
    workspace: Annotated[Bytes, Meta(description='a size, as in "4G"')] = 0


@dataclass(frozen=True)
class Written:
    """A profile as it is written; systems: system -> pass -> axes and groups of this pass."""

    target: Target
    axes: WrittenRanges = field(default_factory=dict)
    groups: WrittenGroups = ()
    systems: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PassRanges:
    """Ranges of one pass: of its axes, and groups of axes, one optimization profile each."""

    axes: Ranges = field(default_factory=dict)
    groups: tuple[Ranges, ...] = ()


@dataclass(frozen=True)
class BuildProfile:
    """The target of a build, and the ranges of its axes.

    name: what --profile has to be given to get it again, a built-in name or a file's without its folder. flavour: see
    ``Target``. compute_capability: as in "8.6"; empty for ONNX Runtime. workspace: bytes of scratch memory, 0 for as
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


def profile_from_dict(table: Mapping[str, object], name: str, where: str) -> BuildProfile:
    """Build a profile from nested tables; ``where`` names their origin in messages."""
    written = typed(Written, table, where)
    target = written.target
    if target.flavour != "onnxruntime":
        check_capability(target.compute_capability, f"{where}: target.compute_capability")
    elif len(table) > 1 or target != Target("onnxruntime"):
        raise InputError(f"{where}: for onnxruntime there is nothing to set besides target.flavour.")
    passes = {}
    for system, tables in written.systems.items():
        if system not in NAMES:
            raise InputError(f"{where}: systems.{system} is not a known system; known: {', '.join(NAMES)}.")
        for of, ranges in tables.items():
            key = f"systems.{system}.{of}"
            passes[system, of] = _pass_ranges(ranges, where, key, f"{key}.groups")
    everywhere = _pass_ranges({**written.axes, "groups": written.groups}, where, "axes", "groups")
    return BuildProfile(
        name, target.flavour, target.compute_capability, _bytes(target.workspace), everywhere, passes
    )


def check_capability(value: str, where: str) -> None:
    """Raise InputError unless ``value`` is a compute capability as in "8.6"."""
    if not CAPABILITY.fullmatch(value):
        raise InputError(f'{where} should be a compute capability, as in "8.6", found {value!r}.')


def _pass_ranges(table: Mapping[str, object], where: str, key: str, groups_key: str) -> PassRanges:
    """Read the ranges of axes, and of groups of these, that a table holds; the keys name both in messages."""
    axes = typed(WrittenRanges, {axis: of for axis, of in table.items() if axis != "groups"}, where, key)
    groups = typed(WrittenGroups, table.get("groups", ()), where, groups_key)
    for at, group in enumerate(groups):
        if not group or OTHER in group:
            raise InputError(f"{where}: {groups_key}[{at}] should name axes, each with its range.")
    for of, ranges in ((key, axes), *((f"{groups_key}[{at}]", group) for at, group in enumerate(groups))):
        for axis, lengths in ranges.items():
            if list(lengths) != sorted(lengths):
                raise InputError(f"{where}: {of}.{axis} should be {RISING}, found {list(lengths)}.")
    return PassRanges(axes, groups)


def _bytes(value: int | str) -> int:
    if isinstance(value, int):
        return value
    digits, unit = SIZE.fullmatch(value).groups()  # type: ignore[union-attr]  # as its type says
    return int(digits) * 1024 ** (" KMGT".index(unit or " "))
