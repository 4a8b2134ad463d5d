import numpy as np
import oracles
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.components import join, labels_from_forest, new_forest


@st.composite
def linked_faces(draw):
    n = draw(st.integers(1, 40))
    face = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(face, face), max_size=60))


def labels_of(n, links):
    forest = new_forest(n)
    ends = np.array(links, dtype=np.int32).reshape(-1, 2)
    join(forest, np.ascontiguousarray(ends[:, 0]), np.ascontiguousarray(ends[:, 1]))
    return labels_from_forest(forest).tolist()


@settings(max_examples=200, deadline=None)
@given(linked_faces())
def test_labels_are_those_of_a_breadth_first_search_numbered_by_first_appearance(case):
    n, links = case
    labels = labels_of(n, links)
    assert labels == oracles.components(n, links)
    firsts = [label for face, label in enumerate(labels) if label not in labels[:face]]
    assert firsts == list(range(len(firsts)))


@settings(max_examples=100, deadline=None)
@given(linked_faces(), st.randoms(), st.data())
def test_the_order_and_direction_of_links_and_their_blocks_do_not_matter(case, random, data):
    n, links = case
    shuffled = [(b, a) if random.random() < 0.5 else (a, b) for a, b in links]
    random.shuffle(shuffled)
    cut = data.draw(st.integers(0, len(links)))
    forest = new_forest(n)
    for part in (shuffled[:cut], shuffled[cut:]):
        ends = np.array(part, dtype=np.int32).reshape(-1, 2)
        join(forest, np.ascontiguousarray(ends[:, 0]), np.ascontiguousarray(ends[:, 1]))
    assert labels_from_forest(forest).tolist() == labels_of(n, links)


def test_an_answer_worked_by_hand():
    """0 alone; 1-4 and 4-2 make one component; 3-5 another: numbered as 0, 1 and 3 appear."""
    assert labels_of(6, [(4, 2), (5, 3), (1, 4)]) == [0, 1, 1, 2, 1, 2]


def test_no_links_leave_every_face_alone():
    assert labels_of(3, []) == [0, 1, 2]


def test_a_chain_of_a_million_links_from_its_far_end_is_one_component():
    """Each link joins a smaller root: without path halving this would take a million steps a face."""
    n = 1_000_000
    far = np.arange(n - 1, 0, -1, dtype=np.int32)
    forest = new_forest(n)
    join(forest, far, far - 1)
    assert not labels_from_forest(forest).any()
