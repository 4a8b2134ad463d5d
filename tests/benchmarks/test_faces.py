"""The synthetic faces of the benchmarks: repeatable, whatever the block, and shaped as they say."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import faces as synthetic

from fcdeploy.errors import InputError

N, D = 9000, 32  # three chunks, the last one part filled


@pytest.fixture(scope="module")
def in_memory() -> tuple[np.ndarray, np.ndarray]:
    return synthetic.make_faces(N, D, 3)


@pytest.mark.parametrize("block", [1000, synthetic.CHUNK, 5000, 100_000])
def test_the_file_holds_the_faces_of_memory_whatever_the_block(tmp_path, in_memory, block):
    """Equal to the bit: each chunk has its own random stream, whoever cuts it."""
    features_path, labels_path = synthetic.generate(tmp_path / "new", N, D, seed=3, block=block)
    assert (features_path.name, labels_path.name) == ("features.bin", "labels.meta")
    features, labels = in_memory
    assert features_path.read_bytes() == features.astype("<f4").tobytes()
    assert labels_path.read_text() == "".join(f"{label}\n" for label in labels)


def test_a_block_of_one_face_gives_the_same_faces(tmp_path):
    features_path, _ = synthetic.generate(tmp_path, 70, 8, seed=3, block=1)
    assert features_path.read_bytes() == synthetic.make_faces(70, 8, 3)[0].tobytes()


def test_the_same_seed_gives_the_same_faces_and_another_seed_others(in_memory):
    features, labels = in_memory
    again, again_labels = synthetic.make_faces(N, D, 3)
    np.testing.assert_array_equal(features, again)
    np.testing.assert_array_equal(labels, again_labels)
    others, other_labels = synthetic.make_faces(N, D, 4)
    assert not np.isclose(features, others).all(axis=1).any()
    assert (labels != other_labels).any()
    assert (np.bincount(labels) != np.bincount(other_labels)).any()


def test_no_chunk_repeats_the_chance_of_another(in_memory):
    norms = np.linalg.norm(in_memory[0], axis=1)
    assert not np.isclose(norms[: synthetic.CHUNK], norms[synthetic.CHUNK : 2 * synthetic.CHUNK]).all()


@pytest.mark.parametrize("n", [1, 2, 10, 67, synthetic.CHUNK, synthetic.CHUNK + 1])
def test_there_are_exactly_n_faces_and_no_identity_is_without_one(tmp_path, n):
    features, labels = synthetic.make_faces(n, 5, 1)
    assert features.shape == (n, 5)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert labels.shape == (n,)
    assert labels.dtype == np.int64
    assert (np.bincount(labels) > 0).all()
    features_path, labels_path = synthetic.generate(tmp_path, n, 5)
    assert features_path.stat().st_size == n * 5 * 4
    assert len(labels_path.read_text().splitlines()) == n


def test_sizes_have_the_mean_that_was_asked_and_a_long_tail():
    sizes = np.bincount(synthetic.make_faces(200_000, 2, 1)[1])
    assert sizes.sum() == 200_000
    assert sizes.mean() == pytest.approx(68, rel=0.01)
    assert np.median(sizes) < 60
    assert 4 * np.median(sizes) < sizes.max() < 1000
    assert (sizes < 15).any()


def test_another_mean_size_gives_other_sizes():
    labels = synthetic.make_faces(3000, 2, 1, mean_size=10)[1]
    assert np.bincount(labels).mean() == pytest.approx(10)


def test_faces_are_nearest_to_their_own_identity_and_then_to_look_alikes():
    """Mean cosines stand apart by more than 0.1 a step: own identity, its group, everybody.

    Consecutive identities are mostly of one group, identities ten apart mostly not.
    """
    features, labels = synthetic.make_faces(3000, 128, 1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sims = unit @ unit.T
    apart = np.abs(labels[:, None] - labels[None, :])
    own = sims[(apart == 0) & ~np.eye(len(labels), dtype=bool)].mean()
    look_alike, stranger = sims[apart == 1].mean(), sims[apart > 20].mean()
    assert own > look_alike + 0.1 > stranger + 0.2
    assert abs(stranger) < 0.05


def test_some_identities_are_tight_and_others_loose():
    features, labels = synthetic.make_faces(3000, 128, 1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    lengths = [np.linalg.norm(unit[labels == identity].mean(axis=0)) for identity in range(labels.max() + 1)]
    assert np.percentile(lengths, 90) > np.percentile(lengths, 10) + 0.1


def test_rows_are_not_normalised(in_memory):
    norms = np.linalg.norm(in_memory[0], axis=1)
    low, high = synthetic.NORMS
    assert norms.min() >= low * 0.999
    assert norms.max() <= high * 1.001
    assert norms.std() > 4


def test_faces_are_not_sorted_by_identity(in_memory):
    labels = in_memory[1]
    assert (labels[1:] == labels[:-1]).mean() < 0.1


def test_an_interrupt_leaves_what_was_there_and_nothing_half_written(tmp_path, monkeypatch):
    (tmp_path / "labels.meta").write_text("7\n")
    draw_chunk = synthetic.draw_chunk

    def interrupted(identities, first):
        if first:
            raise KeyboardInterrupt
        return draw_chunk(identities, first)

    monkeypatch.setattr(synthetic, "draw_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.generate(tmp_path, N, D, block=100)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.meta"]
    assert (tmp_path / "labels.meta").read_text() == "7\n"


@pytest.mark.parametrize("wrong", [{"faces": 0}, {"dim": 0}, {"mean_size": 0.5}, {"block": 0}])
def test_what_cannot_be_is_refused_by_name(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        synthetic.generate(tmp_path / "new", **({"faces": 10, "dim": 4} | wrong))
    assert not (tmp_path / "new").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        synthetic.generate(tmp_path / "taken", 10, 4)
