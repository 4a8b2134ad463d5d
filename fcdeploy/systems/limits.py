"""What limits did to a run's clusters, found and told: persons cut by a cap on sizes, components joined unasked."""

from collections.abc import Sequence

import numpy as np

from fcdeploy.clustering.propagation import Cuts
from fcdeploy.errors import counted
from fcdeploy.graph.alike import random_pairs
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.run.run import Run

TOGETHER = 0.5  # of the similarity of nearest neighbors: what three in four random pairs of one person have
KEPT = 0.99  # share of a component's faces in one cluster that counts as not cut
SAME = 0.5  # share of a component that lies in one of another setting and makes it the same
BLOCK = 65536
EXPORT = "export again with `fcdeploy export --ckpt CHECKPOINT --recipe RECIPE.toml`"


def persons_divided(cuts: Cuts, vectors: np.ndarray, nearest: np.ndarray) -> list[np.ndarray]:
    """Return the faces (s,) of the components that a cap divided and that seem to be of one person each.

    vectors: (n, d), rows of any length; nearest: (n,) cosine of each face and its nearest. Links chain different
    persons together, too, and dividing chains is what the cap is for: in these, random pairs are hardly more similar
    than any others. Of the components of more than 300 faces among those of LFW, this tells the ones of one person.
    """
    divided = cuts.divided()
    if not divided:
        return []
    anywhere = random_pairs(vectors).tenth
    found = []
    for faces in divided:
        near = float(np.median(nearest[faces]))
        inside, base = random_pairs(vectors, faces).quarter, min(anywhere, near / 2)
        if inside >= near * TOGETHER and inside - base >= (near - base) * TOGETHER:
            found.append(faces)
    return found


def nearest_similarities(vectors: np.ndarray, graph: KnnGraph) -> np.ndarray:
    """Return the cosine (n,) float32 of each face and the first in its list that is not the face itself.

    vectors: (n, d), rows of any length. Similarities of a list from a file may be of another kind.
    """
    n = len(graph.ids)
    first = np.where(graph.ids[:, 0] == np.arange(n), graph.ids[:, min(1, graph.k - 1)], graph.ids[:, 0])
    found = np.empty(n, dtype=np.float32)
    for start in range(0, n, BLOCK):
        own = np.asarray(vectors[start : start + BLOCK], dtype=np.float32)
        other = np.asarray(vectors[first[start : start + BLOCK]], dtype=np.float32)
        norms = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
        found[start : start + BLOCK] = np.einsum("ij,ij->i", own, other) / np.maximum(
            norms, np.float32(1e-30)
        )
    return found


def note_divided(run: Run, labels: np.ndarray, persons: Sequence[np.ndarray], key: str, most: int) -> None:
    """Tell how many components, of one person each as it seems, a cap on sizes cut to pieces in the final labels.

    persons: their faces (s,), those of several settings too; key: where the cap ``most`` stands in the recipe.
    """
    if not run.final:
        return
    seen = np.zeros(run.n, dtype=bool)
    components, clusters = [], 0
    for faces in sorted(persons, key=len, reverse=True):
        if seen[faces].mean() > SAME:
            continue
        seen[faces] = True
        placed = labels[faces][labels[faces] >= 0]
        sizes = np.unique(placed, return_counts=True)[1]
        if sizes.max(initial=0) < KEPT * len(faces):
            components.append(len(faces))
            clusters += len(sizes)
    if components:
        several = len(components) > 1
        run.note(
            f"{key} = {most:,} cut {counted(len(components), 'component')} of more faces, "
            f"{'each ' if several else ''}of one person by {'their' if several else 'its'} similarities: "
            f"{sum(components):,} faces are in {counted(clusters, 'cluster')}; raise {key} well above "
            f"{max(components):,} in the recipe and {EXPORT}.",
            max_size={
                "limit": most,
                "components_cut": len(components),
                "faces": sum(components),
                "clusters": clusters,
                "largest": max(components),
            },
        )


def note_united(run: Run, components: int, faces: int, key: str, rounds: int) -> None:
    """Tell that components which no round could divide became one, as published."""
    if components > 1 and run.final:
        run.note(
            f"{components:,} components of {faces:,} faces were still larger than {key} after "
            f"{counted(rounds, 'round')} and became one component, as published; raise {key} in the recipe and "
            f"{EXPORT}.",
            united={"components": components, "faces": faces},
        )
