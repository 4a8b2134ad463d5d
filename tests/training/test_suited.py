"""Settings that follow from figures of the faces: those that gave good clusters of others, and others elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from fcdeploy.data.features import features_from_array  # noqa: E402
from fcdeploy.systems import NAMES, get_system  # noqa: E402
from fcdeploy.systems.gcn_d.training import largest_proposal  # noqa: E402
from fcdeploy.systems.habits import Labelled  # noqa: E402
from fcdeploy.systems.pse_gcn.training import noise_for  # noqa: E402
from fcdeploy.training.best_of import longest_list, recipe_chosen  # noqa: E402
from fcdeploy.training.choices import chosen_settings  # noqa: E402
from fcdeploy.training.figures import (  # noqa: E402
    Crowd,
    Dealt,
    Sample,
    boundary_between,
    crowd_of,
    labelled_figures,
    similarity_within,
)
from fcdeploy.training.suited import (  # noqa: E402
    closest_split,
    list_length,
    networks_of,
    splits_to_try,
    suited_to,
    usual_split,
)

# 299 people with 20 photographs each, six renderings of a photograph.
CELEBRITIES = Labelled(36_300, 299, np.full(299, 126), 0.36, 0.4)


def crowd(*alike, faces=1000):
    return Crowd(faces, np.sort(np.array(alike)))


def suited(system, target=None, labelled=CELEBRITIES, fewest=3000):
    networks = networks_of(get_system(system), None)
    albums, strays = usual_split(labelled.typical, 0.0)
    return suited_to(
        get_system(system), networks, labelled, Dealt(albums, strays, crowd(5, 15, 20)), target, fewest
    )


@pytest.mark.parametrize(
    ("system", "network", "steps", "batch", "lr", "settings"),
    [
        ("pse-gcn", "refine", 450, 16, 0.03, {"nodes": "128", "flips": "0.15", "noise": "0.5"}),
        ("sepfl", "pairwise", 80, 64, 5e-4, {"reach": "39", "group": "8", "start": "similarity"}),
        ("nsr-fc", "lce", 1200, 64, 3e-4, {}),
        ("nsr-fc", "pce", 800, 64, 3e-4, {"others": "1"}),
        ("l-gcn", "links", 8000, 16, 0.05, {}),
        ("gcn-d", "detect", 1500, 32, 0.05, {"dropout": "0"}),
        ("ve-gcn", "vertex", 1500, 256, 0.003, {"start": "similarity"}),
    ],
)
def test_three_hundred_people_get_about_what_was_found_good_by_hand(
    system, network, steps, batch, lr, settings
):
    found = suited(system)
    assert found.steps[network] == pytest.approx(steps, rel=0.02)
    assert (found.networks[network].batch, found.networks[network].lr) == (batch, lr)
    assert settings.items() <= found.networks[network].settings.items()
    assert 8 <= found.albums <= 12
    assert found.strays == 0.4


def test_recipes_are_those_of_people_with_tens_of_faces():
    recipes = {name: recipe_chosen(get_system(name), suited(name), 256) for name in NAMES}
    assert (recipes["ve-gcn"].graph.k, recipes["ve-gcn"].links.k) == (40, 320)
    assert recipes["pse-gcn"].neighborhood.hops == (40, 8)
    assert recipes["l-gcn"].neighborhood.hops == (40, 5)
    assert (recipes["sepfl"].links.k, recipes["sepfl"].links.rho) == (40, 0.7)
    assert recipes["nsr-fc"].pairs.certain_weights == (1, 1, 1)
    assert [one.threshold for one in recipes["gcn-d"].proposals] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8]
    assert {one.max_size for one in recipes["gcn-d"].proposals} == {3000}
    assert recipes["gcn-d"].overlap.min_cohesion == 0.18  # half of how alike two faces of a person are


def test_the_longest_list_of_a_recipe_is_that_of_any_of_its_tables():
    """L-GCN's are its hops of one, and the face itself."""
    longest = {name: longest_list(get_system(name).recipe()) for name in NAMES}
    assert longest == dict.fromkeys(NAMES, 80)


@pytest.mark.parametrize("name", NAMES)
def test_chosen_settings_are_possible_together_and_each_is_explained(name):
    found = suited(name, crowd(0, 3, 9, faces=20_000))
    system = get_system(name)
    recipe = recipe_chosen(system, found, 256)
    assert recipe.problem() is None
    for network, habit in found.networks.items():
        training = system.trainings()[network]
        assert chosen_settings(training, habit.settings, name).problem(recipe, 3000) is None
        assert any(row.name == f"steps of {network}" for row in found.reasons)
    assert {"splits", "singletons"} <= {row.name for row in found.reasons}
    assert all(row.why for row in found.reasons)


@pytest.mark.parametrize("name", NAMES)
def test_settings_for_the_shortest_lists_are_possible_together(name):
    found = suited(name, fewest=9)
    assert found.recipe.get("neighborhood.k", 8) == 8
    assert recipe_chosen(get_system(name), found, 256).problem() is None


def test_more_people_train_longer_and_are_not_augmented():
    many = Labelled(500_000, 8000, np.full(8000, 60), 0.4, 0.4)
    found = suited("pse-gcn", labelled=many)
    assert found.steps["refine"] == 12_000
    assert "flips" not in found.networks["refine"].settings


def test_faces_to_be_clustered_decide_how_long_lists_are():
    assert [list_length(n, 1000) for n in (0, 4, 5, 22, 38, 39)] == [24, 24, 40, 40, 40, 80]
    assert [list_length(39, fewest) for fewest in (28, 8, 3)] == [24, 8, 8]
    assert suited("sepfl", crowd(39, 39, 39)).recipe["links.k"] == 80


def test_gcn_e_is_trained_behind_gcn_v_and_asked_about_every_face():
    found = suited("ve-gcn")
    assert list(found.networks) == ["vertex", "edge"]
    assert found.networks["edge"].settings == {"ignore_ratio": "0", "start": "similarity"}
    assert recipe_chosen(get_system("ve-gcn"), found, 256).edge.ignore_ratio == 0


def test_a_recipe_that_is_given_decides_what_depends_on_its_lists():
    networks = ["pairwise"]
    found = suited_to(get_system("sepfl"), networks, CELEBRITIES, Dealt(10, 0.4, crowd(5)), None, 3000, 16)
    assert found.networks["pairwise"].settings["reach"] == "15"
    assert found.recipe == {}
    assert "k" not in {row.name for row in found.reasons}


def test_re_scoring_is_trained_by_name_only():
    assert networks_of(get_system("nsr-fc"), None) == ["lce", "pce"]
    assert networks_of(get_system("nsr-fc"), "rescore") == ["rescore"]


@given(st.floats(1, 1000), st.floats(0, 1))
def test_a_usual_split_leaves_people_some_faces(typical, singles):
    albums, strays = usual_split(typical, singles)
    assert albums >= 1
    assert strays == 0 or albums > 1
    assert albums == 1 or 8 <= typical / albums <= 18


@given(st.floats(1, 300), st.integers(1, 100_000))
def test_splits_that_are_tried_leave_enough_faces(typical, faces):
    for albums, strays in splits_to_try(typical, faces):
        assert albums == 1 or (typical / albums >= 4 and faces / albums >= 160)
        assert albums > 1 or strays == 0


@given(
    st.lists(st.integers(0, 39), min_size=1, max_size=30),
    st.lists(st.integers(0, 39), min_size=1, max_size=30),
)
def test_crowds_differ_as_their_look_alikes_do(one, two):
    a, b = crowd(*one), crowd(*two)
    assert a.unlike(b) == pytest.approx(b.unlike(a))
    assert a.unlike(a) == 0
    assert crowd(*[39] * 9).unlike(crowd(*[0] * 9)) == pytest.approx(2 * np.log2(40))


def test_the_split_is_chosen_that_looks_like_the_target():
    """The second; of the last two, which have as many look-alikes but for a few faces, the one with as many alone."""
    far, near = Dealt(1, 0.0, crowd(30, 35, 39)), Dealt(4, 0.2, crowd(1, 4, 9))
    assert closest_split([far, near], crowd(1, 4, 9)) == near
    none, some = (
        Dealt(4, share, Crowd(400, np.sort(np.r_[np.full(390, 5), np.full(10, alone)])))
        for share, alone in ((0.0, 1), (0.4, 0))
    )
    target = Crowd(400, np.sort(np.r_[np.full(385, 7), np.full(15, 0)]))
    assert closest_split([none, some], target) == some


def test_a_boundary_parts_same_from_others():
    sims = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)
    assert boundary_between(sims, np.array([1, 1, 1, 0, 0, 0], bool)) == 0.7
    assert boundary_between(sims, np.array([1, 1, 0, 1, 0, 0], bool)) == pytest.approx(0.6)
    assert boundary_between(sims, np.ones(6, bool)) == 0.5


def test_noise_is_shorter_than_the_way_between_two_faces_of_a_person():
    assert noise_for(0.36) == 0.5
    assert noise_for(0.9) == 0.2
    assert (largest_proposal(100), largest_proposal(4000), largest_proposal(10**6)) == (300, 1000, 3000)


@pytest.fixture(scope="module")
def known():
    """Faces (400, 8) of 40 people: ten around each of 40 unit vectors that are hardly alike."""
    rng = np.random.default_rng(5)
    centres = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    vectors = np.repeat(centres, 10, axis=0) + 0.1 * rng.standard_normal((400, 40))
    return features_from_array(vectors.astype(np.float32)), np.repeat(np.arange(40), 10)


def test_figures_of_faces_that_are_easy_to_tell_apart(known):
    """Ten faces each, so nine look-alikes in one set; half of them, about, in each of two."""
    features, identity = known
    sample = Sample(features, identity, np.arange(400))
    figures = labelled_figures(sample, 1, 0.0)
    assert (figures.faces, figures.people, figures.typical) == (400, 40, 10)
    assert 0.5 < figures.same < 0.9
    assert 0.3 < figures.boundary < figures.same
    whole = sample.dealt(1, 0.0, figures.boundary).crowd
    assert whole.typical == 9
    assert whole.alone == 0
    assert sample.dealt(2, 0.0, figures.boundary).crowd.alike.mean() < 8
    assert crowd_of(features, figures.boundary).alike.mean() == pytest.approx(9, abs=0.1)
    few = sample.dealt(8, 1.0, figures.boundary).crowd
    assert few.alone > 0.2


def test_similarity_within_compares_faces_of_one_person_only(known):
    features, identity = known
    rows = features.rows(0, 400)
    sims = rows @ rows.T
    same = (identity[:, None] == identity) & ~np.eye(400, dtype=bool)
    assert similarity_within(features, identity, 0) == pytest.approx(np.median(sims[same]), abs=0.02)
    assert similarity_within(features, np.arange(400), 0) == 1.0


def test_neighbors_of_another_album_are_none(known):
    features, identity = known
    sample = Sample(features, identity, np.arange(400))
    sims, same = sample.neighbors(4, 0.0)
    from fcdeploy.training.identities import deal_faces

    album = deal_faces(identity, 4, 0, np.arange(400), 0.0)
    rows = features.rows(0, 400)
    for at, face in enumerate(sample.chosen[:20]):
        others = np.flatnonzero((album == album[face]) & (np.arange(400) != face))
        expected = np.sort(rows[face] @ rows[others].T)[::-1][:39]
        np.testing.assert_allclose(sims[at, : len(expected)], expected, atol=1e-5)
        assert same[at].sum() >= (identity[others] == identity[face]).sum() - 39
