"""GCN-D's targets and its layers in training against definitions too simple to be wrong; its second network."""

import numpy as np
import pytest

from fcdeploy.systems import get_system

torch = pytest.importorskip("torch")
from test_train import trained  # noqa: E402

from fcdeploy.clustering.metrics import evaluate  # noqa: E402
from fcdeploy.data.features import features_from_array  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.run.options import Options  # noqa: E402
from fcdeploy.run.store import MemoryStore  # noqa: E402
from fcdeploy.systems.gcn_d.parity import random_batch  # noqa: E402
from fcdeploy.systems.gcn_d.spec import Recipe  # noqa: E402
from fcdeploy.systems.gcn_d.training import (  # noqa: E402
    HIDDEN,
    best_matches,
    detection_loss,
    network,
    segmentation_loss,
)
from fcdeploy.systems.settings import with_settings  # noqa: E402
from fcdeploy.training.choices import Choices  # noqa: E402
from fcdeploy.training.live import live_run, renew  # noqa: E402
from fcdeploy.training.loop import mean_f  # noqa: E402
from fcdeploy.training.sweep import best_trial, sweep  # noqa: E402
from fcdeploy.training.train import train  # noqa: E402

ONE = Options(threads=1)


def test_a_proposal_is_told_its_overlap_with_the_faces_of_its_majority():
    rng = np.random.default_rng(3)
    identity = rng.integers(0, 7, 80).astype(np.int32)
    sizes = rng.integers(1, 20, 40)
    nodes = np.concatenate([rng.permutation(80)[:size] for size in sizes]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    majority, overlap = best_matches(offsets, nodes, identity, np.bincount(identity))
    for p in range(40):
        members = set(nodes[offsets[p] : offsets[p + 1]].tolist())
        inside = [sum(identity[i] == who for i in members) for who in range(7)]
        who = inside.index(max(inside))
        theirs = set(np.flatnonzero(identity == who).tolist())
        assert majority[p] == who
        assert overlap[p] == pytest.approx(len(members & theirs) / len(members | theirs))


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_in_training_padding_changes_nothing(reduce, people):
    """Each graph alone through the published form, without dropout; a batch padded to its largest, in training."""
    recipe = load_recipe(people / "gcn-d.toml")
    rng = np.random.default_rng(5)
    batch = {key: torch.from_numpy(array) for key, array in random_batch(16, 6, 9, rng).items()}
    real = batch["adj"].sum(2) > 0
    wanted = torch.from_numpy(rng.random(6).astype(np.float32))
    net = network("detect", recipe, {})
    net.reduce = reduce
    sizes = real.sum(1).tolist()
    alone = [
        float(net(x[None, :n], adj[None, :n, :n]))
        for x, adj, n in zip(batch["features"], batch["adj"], sizes, strict=True)
    ]
    given = {"nodes": batch["features"], "adj": batch["adj"], "real": real, "overlap": wanted}
    loss, said = detection_loss(net, given, dropout=0.0)
    assert said.tolist() == pytest.approx(alone, abs=1e-6)
    assert float(loss.detach()) == pytest.approx(np.mean((np.array(alone) - wanted.numpy()) ** 2), abs=1e-6)

    net = network("segment", recipe, {})
    seeded = torch.cat([batch["features"], torch.zeros(6, 9, 1)], dim=2)
    same = torch.from_numpy(rng.integers(0, 2, (6, 9)))
    given = {"nodes": seeded, "adj": batch["adj"], "real": real, "same": same}
    loss, _ = segmentation_loss(net, given, dropout=0.0)
    parts = [
        -net(x[None, :n], adj[None, :n, :n])[0, same[at, :n], torch.arange(n)]
        for at, (x, adj, n) in enumerate(zip(seeded, batch["adj"], sizes, strict=True))
    ]
    assert float(loss.detach()) == pytest.approx(float(torch.cat(parts).mean().detach()), abs=1e-6)


def test_segmentation_is_trained_behind_a_detection_network(people, vectors, identities, tmp_path):
    from fcdeploy.deploy.checkpoint import load_state_dict
    from fcdeploy.deploy.recognise import recognise
    from fcdeploy.errors import InputError

    detect = trained(
        ("gcn-d", "detect", {}, 16, 0.1), people, vectors, identities, tmp_path / "d.pth", steps=3
    )
    arguments = (get_system("gcn-d"), features_from_array(vectors), identities, tmp_path / "s.pth")
    options = {
        "network": "segment",
        "recipe": load_recipe(people / "gcn-d.toml"),
        "choices": Choices(steps=4, batch=16, lr=0.1, threads=1),
    }
    with pytest.raises(InputError, match=r"trained networks of detect; .* --ckpt"):
        train(*arguments, **options)
    done = train(*arguments, **options, checkpoints=[detect.checkpoint])
    assert done.measures.keys() == {"pairwise_f", "bcubed_f"}
    shapes = {
        str(path): {key: tuple(tensor.shape) for key, tensor in load_state_dict(path).items()}
        for path in (detect.checkpoint, done.checkpoint)
    }
    system, networks, _ = recognise(shapes)
    assert (system.name, list(networks.values())) == ("gcn-d", ["detect", "segment"])


def test_what_segmentation_takes_from_proposals_is_chosen_where_there_is_one():
    """The published share first: it stays where segments make no difference."""
    tunable = get_system("gcn-d").tunable
    detect, segment = {"dim": 16, "hidden": (8,)}, {"dim": 17, "hidden": (8,)}
    proposals = ["overlap.min_cohesion", "overlap.min_score", "overlap.max_iou"]
    assert [one.key for one in tunable({"detect": detect}, ONE)] == proposals
    *overlap, outlier = tunable({"detect": detect, "segment": segment}, ONE)
    assert [one.key for one in overlap] == proposals
    assert outlier.key == "segment.th_outlier"
    assert outlier.values[0] == Recipe().segment.th_outlier
    assert {0.0} < set(outlier.values)


def test_a_segmentation_that_doubts_everyone_is_told_to_remove_nobody(people, vectors, identities):
    """Its network says 0.1 of every face: at the published 0.5 it takes all of them from every proposal."""
    system, recipe = get_system("gcn-d"), load_recipe(people / "gcn-d.toml")
    recipe = with_settings(recipe, {"segment.keep_outlier": False})
    torch.manual_seed(3)
    detect, segment = (network(name, recipe, {}) for name in ("detect", "segment"))
    with torch.no_grad():
        segment.classifier.weight.zero_()
        segment.classifier.bias.copy_(torch.log(torch.tensor([0.9, 0.1])))

    def best(weights, networks, stage="auto"):
        staged = with_settings(recipe, {"network.stage": stage})
        run = live_run(
            system, features_from_array(vectors), staged, weights, ONE, MemoryStore(), torch.device("cpu")
        )
        renew(run, "x", networks)
        tunables = system.tunable(weights, ONE)
        trials = sweep(run, lambda labels: evaluate(labels, identities), tunables, mean_f)
        return best_trial(trials, tunables, mean_f), trials

    widths = {"hidden": HIDDEN}
    weights = {"detect": {"dim": 16, **widths}, "segment": {"dim": 17, **widths}}
    networks = {"detect": detect, "segment": segment}
    alone, _ = best({"detect": weights["detect"]}, {"detect": detect})
    both, trials = best(weights, networks)
    assert both.evaluation == alone.evaluation
    assert both.values["segment.th_outlier"] < 0.1
    removed = {
        trial.evaluation.pairwise.recall for trial in trials if trial.values["segment.th_outlier"] > 0.1
    }
    assert removed == {0.0}
    assert alone.evaluation.pairwise.recall > 0.1
    unused, _ = best(weights, networks, stage="det")
    assert unused.evaluation == alone.evaluation
    assert unused.values["segment.th_outlier"] == recipe.segment.th_outlier
