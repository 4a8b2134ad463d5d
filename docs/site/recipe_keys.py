"""The page docs/reference/recipe-keys.md: every key of every recipe; `make docs-pictures` writes it.

Keys, types and defaults are read off the systems' own dataclasses. What a key means is said here, and a key without a
sentence, or a sentence without a key, is an error.
"""

import json
from collections.abc import Iterator

from fcdeploy.data.typed import Kind, described, types_of
from fcdeploy.deploy.recipe import built_in_names, load_recipe
from fcdeploy.systems import NAMES, get_system
from fcdeploy.systems.recipe import Recipe
from fcdeploy.systems.settings import list_settings, setting_of

HEAD = """# Every recipe key

Made by `python docs/site/recipe_keys.py > docs/reference/recipe-keys.md` from the systems' own definitions.

A recipe is the TOML file that says what a checkpoint does not. `--recipe FILE` of `fcdeploy export` puts it into the
bundle;
`--set links.tau=0.8` of `fcdeploy cluster` changes a key for one run; `fcdeploy recipe pse-gcn-ms1m > my.toml` prints a
built-in one to start from. Keys that a recipe leaves out have the default. Unknown keys, wrong types and values that do
not fit together are errors. *Fixed by the weights* means that the checkpoint was trained for this value.

"""

SHARED = {
    "feature_dim": "Width of the input features. Fixed by the weights.",
    "features.normalize": "Divide every row by its length after reading.",
    "tolerance.refined": "Largest absolute error of refined features, exported graph against PyTorch.",
    "tolerance.logits": "Largest error of logits, as a share of their scale, exported graph against PyTorch.",
    "tolerance.flipped_edges": "Edges (similarity of 0.5 and more) that may differ from PyTorch's.",
    "tolerance.flipped_links": "Decisions on links that may differ from PyTorch's.",
    "tolerance.flipped_members": "Decisions on members of proposals that may differ from PyTorch's.",
    "tolerance.scores": "Largest error of scores, as a share of their scale, exported graph against PyTorch.",
    "tolerance.confidence": "Largest error of GCN-V's outputs, as a share of their scale, against PyTorch.",
}
NEIGHBORHOOD = {
    "neighborhood.k": "Neighbors per face in the kNN lists and in re-ranking; the face itself counts.",
    "neighborhood.hops": "Neighbors in the first hop (the face itself counts, at most k), and of each of these in "
    "the second (fewer than k).",
    "neighborhood.active": "First entries of a kNN list that are edges of the fixed graph; the face itself counts.",
}
MEANING: dict[str, dict[str, str]] = {
    "pse-gcn": NEIGHBORHOOD
    | {
        "links.k": "Neighbors among refined features, over which density is summed.",
        "links.tau": "Cosine similarity a link needs. Higher: more and purer clusters.",
    },
    "nsr-fc": NEIGHBORHOOD
    | {
        "rescore.k": "Neighbors per face whose distance is re-scored; the face itself counts.",
        "rescore.batch": "Faces that attend to each other, in the order of the file. Part of the trained function.",
        "rescore.attention": '`"batch"`, as published, or `"neighbors"` for weights trained to attend across a '
        "face's own neighbors.",
        "density_peaks.k": "Re-scored neighbors over which density is summed.",
        "density_peaks.sigma": "Width of the kernel of density.",
        "density_peaks.transition_sigma": "Width of the kernel of transition distances; 0 links by re-scored "
        "distances themselves.",
        "density_peaks.tau": "Transition distance that a link stays below (0 to 1). Lower: purer clusters.",
        "density_peaks.max_links": "Most links per face.",
        "pairs.k": "Neighbors per face that the pair networks see. Fixed by the weights.",
        "pairs.certain_weights": "Weights of a face's largest similarities, the largest last, whose mean decides "
        "which links are certain without PCENet; `[]`: none is.",
        "pairs.min_probability": "Probability above which PCENet confirms a link (0 to 1). Higher: purer clusters.",
    },
    "sepfl": {
        "links.k": "Neighbors per face; the face itself counts. Fixed by the weights.",
        "links.rho": "Similarity from which a neighbor counts for density.",
        "links.min_probability": "Probability a link needs (0 to 1); 0.5 is what the network accepts. Higher: purer "
        "clusters.",
    },
    "l-gcn": {
        "neighborhood.hops": "One-hop neighbors, each a link that is scored, and neighbors of each of these that join "
        "the sub-graph; the face itself does not count.",
        "neighborhood.active": "Neighbors that a face is connected to inside a sub-graph.",
        "propagation.max_size": "Most faces in a cluster. Larger components are taken apart.",
        "propagation.step": "Share of the way to 1 by which the threshold rises each round.",
        "propagation.pooling": "Score of a pair that was scored more than once: `mean`, `running-mean`, `max`, `last`.",
        "propagation.max_rounds": "Rounds of the rising threshold; 0: no limit.",
    },
    "gcn-d": {
        "graph.edge_weights": 'Weights of the edges of a proposal\'s graph: `"unit"` or `"similarity"`.',
        "proposals.k": "Neighbors per face in the kNN lists; the face itself counts.",
        "proposals.threshold": "Similarity below which a pair is not kept.",
        "proposals.step": "Share of the way to 1 by which the threshold rises while a component is too large.",
        "proposals.min_size": "Fewest faces of a proposal.",
        "proposals.max_size": "Most faces of a component. No cluster of a system without merges is larger.",
        "proposals.keep": "false: the components are only merged, not proposed.",
        "merge.k": "Neighbors among the components' mean features; the component itself counts.",
        "merge.threshold": "Similarity below which a pair of components is not kept.",
        "merge.step": "As of proposals.",
        "merge.min_parts": "Fewest components that are merged into one.",
        "merge.max_parts": "Most components that are merged into one.",
        "merge.min_size": "Fewest faces of a merged proposal.",
        "merge.max_size": "Most faces of a merged component.",
        "merge.keep": "false: only merged further, not proposed.",
        "network.reduce": 'How the faces of a proposal become one vector: `"max"`, `"mean"` or `"sum"`. Fixed by the '
        "weights.",
        "network.propagate_only": "For a network without layers: how often it propagates; true: 4, as published.",
        "network.featureless": "The network gets ones instead of features. Fixed by the weights.",
        "network.stage": '`"det"` scores proposals, `"seg"` also removes members, `"auto"` does what the bundle can.',
        "segment.seed": 'The face that the input of a segmentation marks: `"degree"`, `"random"` or `"none"`.',
        "segment.select": '`"all"` proposals are segmented, or those whose predicted IoP is in min_iop..max_iop '
        '(`"iop"`).',
        "segment.min_iop": 'With select = "iop": the lowest IoP.',
        "segment.max_iop": 'With select = "iop": the highest IoP.',
        "segment.th_outlier": "Members of this probability and less leave their proposal; 0: nobody does.",
        "segment.keep_outlier": "Removed members form a cluster of their own, ranked last.",
        "overlap.min_score": "Score a proposal needs.",
        "overlap.max_iou": "IoU with a better proposal above which one is dropped; 1: none is.",
        "overlap.min_cohesion": "Mean similarity of a proposal's pairs of faces that it needs; -1: any.",
    },
    "ve-gcn": {
        "graph.k": "Neighbors per face of which GCN-V's graph is made; the face itself counts.",
        "graph.th_sim": "Similarity an edge of GCN-V's graph needs.",
        "links.features": 'Features among which links are looked for: `"input"` or `"transformed"`.',
        "links.k": "Neighbors per face among which a link is looked for.",
        "links.tau": "Cosine similarity that a link is above. Higher: purer clusters.",
        "edge.th_sim": "Similarity an edge of GCN-E's graph needs.",
        "edge.ignore_ratio": "Share of faces, of lowest confidence, that keep the link to their nearest.",
    },
}
TABLES = {"proposals": "[[proposals]]", "merge": "[[proposals.merge]]"}


def keys_of(kind: Kind) -> Iterator[tuple[str, str, object]]:
    """Yield the dotted key, type in words and default of each field of a dataclass that is no table itself."""
    default = kind()
    for name, of in types_of(kind).items():
        if name not in ("merge", "proposals"):
            yield name, described(of), getattr(default, name)


def rows_of(name: str) -> list[tuple[str, str, object]]:
    """List the keys of a system, of the tables in lists, too."""
    recipe = get_system(name).recipe()
    rows: list[tuple[str, str, object]] = []
    for setting in list_settings(recipe):
        if setting.key == "proposals":
            proposal = setting_of(recipe, "proposals")[0]
            rows += [(f"proposals.{key}", *rest) for key, *rest in keys_of(type(proposal))]
            rows += [(f"merge.{key}", *rest) for key, *rest in keys_of(type(proposal.merge[0]))]
        else:
            rows.append((setting.key, setting.kind, setting.value))
    return rows


def shown(value: object) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def others(key: str, default: object, recipes: dict[str, Recipe]) -> str:
    """Say which built-in recipes have another value than the default."""
    if key.startswith(("proposals.", "merge.")):
        return ""
    values: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        if (value := setting_of(recipe, key)) != default:
            values.setdefault(shown(value), []).append(name)
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items())


def page() -> str:
    """Return the page as Markdown; raises KeyError for a key without a sentence, ValueError the other way round."""
    parts = [HEAD]
    built_in = {name: load_recipe(name) for name in built_in_names()}
    for name in NAMES:
        recipes = {title: recipe for title, recipe in built_in.items() if recipe.system == name}
        meaning = {**SHARED, **MEANING[name]}
        rows = rows_of(name)
        if unused := MEANING[name].keys() - {key for key, _, _ in rows}:
            raise ValueError(f"{name} has no key {min(unused)}")
        parts.append(
            f'## {get_system(name).title}\n\n`system = "{name}"`. Built in: {", ".join(f"`{r}`" for r in recipes)}.\n\n'
        )
        parts.append("| key | type | default | what it is | elsewhere |\n| --- | --- | --- | --- | --- |\n")
        for key, kind, value in rows:
            table, _, rest = key.partition(".")
            label = f"`{TABLES[table]}` `{rest}`" if table in TABLES else f"`{key}`"
            cells = (label, kind, f"`{shown(value)}`", meaning[key], others(key, value, recipes))
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
