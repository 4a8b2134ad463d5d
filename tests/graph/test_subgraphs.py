import numpy as np
import oracles_lgcn as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.graph.subgraphs import LAYERS, gather_subgraphs, own_positions


@st.composite
def lists(draw):
    """Lists of distinct faces; most begin with the face itself, some have it further behind or not at all."""
    n = draw(st.integers(2, 30))
    k = draw(st.integers(2, n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    strange = draw(st.sampled_from([0.0, 0.3]))
    rows = []
    for i in range(n):
        row = rng.permutation(n)
        if rng.random() >= strange:
            row = np.concatenate([[i], row[row != i]])
        rows.append(row[:k])
    return np.array(rows, dtype=np.int32)


def gather(ids, hops, active, centres=None):
    centres = np.arange(len(ids), dtype=np.int32) if centres is None else centres
    own = own_positions(np.ascontiguousarray(ids[:, : hops[0] + 1]), np.arange(len(ids), dtype=np.int32))
    return gather_subgraphs(ids, own, centres, hops, active)


def reached(one_hop, pairs, steps):
    """The faces at most ``steps`` connections away from one-hop neighbors."""
    seen = set(one_hop)
    for _ in range(steps):
        seen |= {face for pair in pairs if pair & seen for face in pair}
    return seen


@settings(max_examples=150, deadline=None)
@given(lists(), st.data())
def test_subgraphs_are_those_of_sets_as_far_as_one_hop_neighbors_see(ids, data):
    hops = (data.draw(st.integers(1, ids.shape[1] - 1)), data.draw(st.integers(0, 8)))
    active = data.draw(st.integers(1, 8))
    graphs = gather(ids, hops, active)
    for g, centre in enumerate(range(len(ids))):
        one_hop, faces, pairs = oracle.subgraph(ids, centre, hops, active)
        sizes, found = graphs.within[g].tolist(), graphs.faces[g].tolist()
        assert found[: sizes[0]] == one_hop
        for distance in range(LAYERS + 1):
            assert set(found[: sizes[distance]]) == reached(one_hop, pairs, distance)
        assert len(set(found[: sizes[LAYERS]])) == sizes[LAYERS] <= len(faces)
        for at in range(sizes[LAYERS - 1]):
            places = graphs.connected[g, graphs.starts[g, at] : graphs.starts[g, at + 1]].tolist()
            expected = {j for j in faces if j != found[at] and frozenset((found[at], j)) in pairs}
            assert {found[place] for place in places} == expected
            assert len(places) == len(expected)


def test_an_answer_worked_by_hand():
    """Face 0 with hops (2, 1), one active connection: 1, 2, then nbr(1)[0] = 3 and nbr(2)[0] = 1, and 0 itself.

    Connections: 1-3 from 1's list (3's nearest, 4, is not there), 2-1, 0-1. From {1, 2}: 0 and 3 are one away.
    """
    ids = np.int32([[0, 1, 2], [1, 3, 0], [2, 1, 0], [3, 4, 1], [4, 3, 1]])
    graphs = gather(ids, (2, 1), 1, np.int32([0]))
    assert graphs.within.tolist() == [[2, 4, 4, 4, 4]]
    assert graphs.faces[0, :2].tolist() == [1, 2]
    assert set(graphs.faces[0, 2:4].tolist()) == {0, 3}
    places = graphs.connected[0, : graphs.starts[0, 1]].tolist()
    assert {int(graphs.faces[0, place]) for place in places} == {0, 2, 3}


def test_a_face_may_be_connected_to_nobody():
    """Centre 0, hops (2, 0), one active connection: 1 and 2 are nearest to 3 and 4, which are not there; 0 to 1."""
    ids = np.int32([[0, 1, 2], [1, 3, 4], [2, 4, 3], [3, 1, 4], [4, 2, 3]])
    graphs = gather(ids, (2, 0), 1, np.int32([0]))
    assert graphs.within.tolist() == [[2, 3, 3, 3, 3]]
    assert graphs.faces[0, :3].tolist() == [1, 2, 0]
    assert graphs.starts[0, :4].tolist() == [0, 1, 1, 2]
    assert graphs.connected[0, :2].tolist() == [2, 0]


def test_the_face_itself_is_left_out_wherever_it_stands():
    """First, last, and absent: then the first entry takes its place."""
    ids = np.int32([[0, 1, 2], [0, 2, 1], [0, 1, 3], [3, 2, 1]])
    assert own_positions(ids, np.arange(4, dtype=np.int32)).tolist() == [0, 2, 0, 0]
    graphs = gather(ids, (2, 1), 1)
    assert graphs.faces[:, :2].tolist() == [[1, 2], [0, 2], [1, 3], [2, 1]]
