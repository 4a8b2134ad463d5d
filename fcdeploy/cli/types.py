"""Kinds of option values that several verbs share."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

T = TypeVar("T")


class NamedPath(click.Path):
    """A path; an empty one, as of a shell's variable that is not set, would be the current folder."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        if not os.fspath(value):
            self.fail("it is empty; is a variable of the shell not set?", param, ctx)
        return Path(os.fsdecode(super().convert(value, param, ctx)))


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class Real(click.FloatRange):
    """A number in a range; NaN, which is beyond no limit, and infinity are none."""

    name = "number"

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


PathType = NamedPath(path_type=Path)


def from_values(kind: Callable[..., T], values: Mapping[str, object]) -> T:
    """Return what ``kind`` makes of values by name, whose types click has seen to."""
    return kind(**values)


class Hops(click.ParamType):
    """Two whole numbers with a comma between, e.g. 80,10."""

    name = "K0,K1"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            first, second = (int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not two whole numbers separated by a comma, e.g. 80,10.", param, ctx)
        return first, second


class Size(click.ParamType):
    """A whole number of pixels, or two with an x between, height first."""

    name = "PIXELS|HxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            lengths = [int(part) for part in str(value).lower().split("x")]
        except ValueError:
            lengths = []
        if len(lengths) not in (1, 2) or not all(1 <= length <= 4096 for length in lengths):
            self.fail(
                f"'{value}' is not a size; write pixels, e.g. 112, or height x width, e.g. 112x96.",
                param,
                ctx,
            )
        return lengths[0], lengths[-1]


class Numbers(click.ParamType):
    """One number, or three with commas between."""

    name = "X|X,X,X"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
            self.fail(f"'{value}' is neither one number nor three numbers separated by commas.", param, ctx)
        return numbers


class Bytes(click.ParamType):
    """A number of bytes, perhaps with K, M, G or T behind it (powers of 1024)."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().upper().removesuffix("B")
        power = "KMGT".find(text[-1:]) + 1 if text else 0
        try:
            size = int(float(text.rstrip("KMGT")) * 1024**power)
        except (ValueError, OverflowError):
            self.fail(
                f"'{value}' is not a size; write a number followed by K, M, G or T, e.g. 4G.", param, ctx
            )
        if size < 0:
            self.fail(f"'{value}' is negative.", param, ctx)
        return size


class Settings(click.ParamType):
    """A dotted key of a recipe and a value for it, e.g. links.tau=0.8."""

    name = "KEY=VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, given = str(value).partition("=")
        if not (key.strip() and equals):
            self.fail(f"'{value}' is not a setting; write KEY=VALUE, e.g. links.tau=0.8.", param, ctx)
        return key.strip(), given.strip()
