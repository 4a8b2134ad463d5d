"""The first artifact of every run: the features, checked and normalised."""

import numpy as np

from fcdeploy.data.features import BLOCK_ROWS, check_features, check_unit_rows, stamp_of
from fcdeploy.errors import FcdeployError
from fcdeploy.graph.alike import FEWEST, alike_sentence, random_pairs
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.carried import rows_stay
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return ``rows`` (m, d) float32 divided by their 2-norms; one of zeros stays so, and is similar to nobody."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, np.float32(1))


@step("features")
def read_features(run: Run) -> Artifact:
    """Check all features, unless they are, and keep their rows (n, d) float32: unit vectors, or as they are."""
    features = run.features
    stamp = stamp_of(features) if run.stamp is None else run.stamp
    if run.stamp is None and not run.survey:
        check_features(features)
        run.stamp = stamp
    if not features.normalize and run.unit_rows is not None and not run.survey:
        check_unit_rows(features, run.unit_rows)

    def block(rows: np.ndarray) -> Arrays:
        return {"vectors": features.rows(int(rows[0]), int(rows[-1]) + 1)}

    def check(arrays: Arrays) -> None:
        if stamp_of(features) != stamp:
            run.store.drop("vectors")
            raise FcdeployError(
                f"{features.name}: was changed while it was being read; run the same command again."
            )
        if run.n >= FEWEST and (pairs := random_pairs(arrays["vectors"])).alike:
            run.note(alike_sentence(features.name, pairs), random_pairs_cosine=pairs.median)

    hashed = {"features": run.features_hash, "normalize": features.normalize} if not run.survey else {}
    return run.compute(
        Stage(
            name="vectors",
            text="features",
            block=block,
            shapes={"vectors": ((run.n, features.dim), np.float32)},
            settings=hashed,
            rows=run.n,
            size=BLOCK_ROWS,
            scratch=not run.keeps,
            then=check,
            carry=rows_stay,
        )
    )
