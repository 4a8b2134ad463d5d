"""What a run computed, said in its summary: how, from what, by which code and on what."""

import platform
from collections.abc import Iterator

from fcdeploy import __version__
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import counted
from fcdeploy.run.run import Run
from fcdeploy.run.summary import Computed
from fcdeploy.systems.settings import settings_as_dict

NOT_OF_A_RUN = ("system", "feature_dim", "tolerance")  # keys of a recipe that no run computes with
GIVEN = (
    "min_probability",
    "uncovered",
    "link",
    "tables",
    "batch",
)  # options that no setting of the recipe holds


def what_was_computed(run: Run, bundle: Bundle) -> Computed:
    """Return what ``cluster --json`` prints as "computed"; plain values, the same for a run that is continued.

    system; inference: used ("exact" is the published function) and asked; search: of every search its method, k and,
    where they apply, cells, probes, recall or file; settings: those of the recipe really used, by their dotted names,
    and options: what was given beside them; engine: path, digest, kind and precision; device: where it ran and the
    execution provider that was opened; features: name, rows, how many of them were computed on (the
    others are copies, or bad), width, dtype, how they were read and whether they were normalised; limits: threads,
    memory and vram in bytes; versions.
    """
    options, features = run.options, run.features
    used = {name: value for name, value in settings_as_dict(run.settings).items() if name not in NOT_OF_A_RUN}
    return {
        "system": bundle.system,
        "inference": {"used": options.inference, "asked": run.asked.inference},
        "search": {name: dict(search) for name, search in run.searches.items()},
        "settings": dict(_dotted("", used)),
        "options": {name: value for name in GIVEN if (value := getattr(options, name)) is not None},
        "engine": {
            "path": str(bundle.path),
            "digest": bundle.digest(),
            "kind": bundle.kind,
            "precision": str(bundle.manifest["precision"]),
        },
        "device": {
            "device": bundle.device(options.device),
            # Of a run that found everything made, the one that its keys say it was made by.
            "provider": ", ".join(sorted(set(run.opened.values()))) or run.provider,
        },
        "features": {
            "name": features.name,
            "rows": features.given,
            "computed": features.n,
            "width": features.dim,
            "dtype": str(features.array.dtype),
            "normalized": features.normalize,
            "read_as": features.read_as,
        },
        "limits": {"threads": options.cores, "memory": options.budget, "vram": options.vram},
        "versions": {**ours(), **run.libraries},
    }


def ours() -> dict[str, str]:
    """Return the versions of fcdeploy and Python."""
    return {"fcdeploy": __version__, "python": platform.python_version()}


def sentences(computed: Computed) -> Iterator[str]:
    """Yield the lines of a closing summary."""
    engine, device, features = computed["engine"], computed["device"], computed["features"]
    given = (
        features["read_as"]
        or f"{counted(features['rows'], 'row')} of {features['width']} {features['dtype']}"
    )
    yield f"{features['name']}: {given}{', normalized' if features['normalized'] else ''}"
    yield (
        f"{computed['system']}, {computed['inference']['used']} inference, {engine['precision']}, by "
        f"{device['provider']} with {counted(computed['limits']['threads'], 'thread')}; engine {engine['digest'][:12]}"
    )
    searches = []
    for name, search in computed["search"].items():
        details = ", ".join(
            f"{key} {value}" for key, value in search.items() if key in ("k", "probes", "cells")
        )
        searches.append(f"{name} {search.get('file', search['method'])} ({details})")
    if searches:
        yield f"neighbors: {'; '.join(searches)}"
    said = {**computed["settings"], **computed["options"]}
    yield ", ".join(f"{key} = {value}" for key, value in said.items())


def _dotted(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the values of nested tables with their dotted names, as in ("links.tau", 0.8)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _dotted(f"{prefix}.{key}" if prefix else key, inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for at, inner in enumerate(value):
            yield from _dotted(f"{prefix}[{at}]", inner)
    else:
        yield prefix, value
