"""Re-ranking, neighborhoods, links, components and PSE-GCN's network by definition, in sets and loops."""

import numpy as np
from scipy.special import erf


def near(lists, i, m):
    """N_m(i): the first m neighbors of face i."""
    return {int(j) for j in lists[i][:m]}


def reciprocal(lists, i, m):
    """R_m(i) = { j in N_m(i) : i in N_m(j) }."""
    return {j for j in near(lists, i, m) if i in near(lists, j, m)}


def expanded(lists, i):
    """R*(i): R_k(i), joined with R_half(j) of those j in R_k(i) that share at least 2/3 of it with R_k(i)."""
    k = len(lists[i])
    own = reciprocal(lists, i, k)
    grown = set(own)
    for j in own:
        theirs = reciprocal(lists, j, k // 2)
        if 3 * len(theirs & own) >= 2 * len(theirs):
            grown |= theirs
    return grown


def reranked(lists):
    """Give for each face the similarity |R*(i) ∩ R*(j)| / |R*(i) ∪ R*(j)| of each of its candidates j."""
    k = len(lists[0])
    sets = [expanded(lists, i) for i in range(len(lists))]
    rows = []
    for i in range(len(lists)):
        candidates = near(lists, i, k).union(*(near(lists, j, 10) for j in near(lists, i, k)))
        rows.append({j: overlap(sets[i], sets[j]) for j in candidates})
    return rows


def overlap(a, b):
    """|a ∩ b| / |a ∪ b|; nothing has no overlap with nothing."""
    return len(a & b) / len(a | b) if a | b else 0.0


def ties_by_cosine(row, own_list, own_sims, cosine):
    """Order a row of ``reranked`` downwards; of equals N_k first, then by cosine, then by id.

    own_list, own_sims: the face's kNN list with its similarities; cosine: similarities of all other faces.
    """
    known = dict(zip(map(int, own_list), own_sims, strict=True))
    return sorted(row, key=lambda j: (-row[j], j not in known, -known.get(j, cosine[j]), j))


def neighborhood(lists, centre, first_hop, second_hop):
    """Name the faces in the neighborhood of ``centre``, the centre among them whatever its list says."""
    ones = [int(j) for j in lists[centre][1:first_hop]]
    faces = {centre, int(lists[centre][0]), *ones}
    for j in ones:
        faces |= {int(face) for face in lists[j][1 : second_hop + 1]}
    return faces


def fixed_graph(ids, sims, nodes, active):
    """Connect ``nodes`` along the first ``active`` entries of their lists, by the larger similarity; 1 to oneself."""
    n = len(ids)
    whole = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        for j, sim in zip(ids[i][:active], sims[i][:active], strict=True):
            if i != j:
                whole[i, j] = sim
    whole = np.maximum(whole, whole.T) + np.eye(n, dtype=np.float32)
    return whole[np.ix_(nodes, nodes)]


def density(sims):
    """Sum each row in float32, one after the other, and divide by the largest."""
    sums = []
    for row in sims:
        total = np.float32(0)
        for sim in row:
            total = np.float32(total + np.float32(sim))
        sums.append(total)
    largest = max(abs(total) for total in sums)
    return [np.float32(total / largest) if largest else total for total in sums]


def link_to_denser(ids, sims, dense):
    """Give each face its first strictly denser neighbor and their similarity, or None."""
    links = []
    for i in range(len(ids)):
        denser = [(int(j), sim) for j, sim in zip(ids[i], sims[i], strict=True) if dense[j] > dense[i]]
        links.append(denser[0] if denser else None)
    return links


def components(n, links):
    """Label faces by breadth-first search from the first face that has no label yet."""
    linked = {i: set() for i in range(n)}
    for a, b in links:
        linked[a].add(b)
        linked[b].add(a)
    labels = {}
    for face in range(n):
        if face in labels:
            continue
        label = len(set(labels.values()))
        labels[face], queue = label, [face]
        while queue:
            for other in linked[queue.pop(0)]:
                if other not in labels:
                    labels[other] = label
                    queue.append(other)
    return [labels[face] for face in range(n)]


def partition(labels):
    """Forget the numbers of labels: the set of sets of faces."""
    groups = {}
    for face, label in enumerate(labels):
        groups.setdefault(int(label), set()).add(face)
    return {frozenset(group) for group in groups.values()}


def pse_gcn(state, features, adj, *, sum_eps=1e-5, normalised=2):
    """PSE-GCN's outputs (n, 2d) of one neighborhood without padding, in float64.

    state: the authors' state_dict as arrays; features (n, d); adj (n, n). sum_eps and normalised: what a
    careless reading of the publication would change: the 1e-5 in row sums, the fixed graph normalised twice.
    """
    p = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, x):
        scaled = (x - p[f"{name}.running_mean"]) / np.sqrt(p[f"{name}.running_var"] + 1e-5)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def rownorm(a):
        return a / (a.sum(axis=1)[:, None] + sum_eps)

    def unit(x):
        return x / np.sqrt((x**2).sum(axis=1))[:, None]

    def gc(name, x, a):
        return np.maximum(np.hstack([x, a @ x]) @ p[f"{name}.weight"] + p[f"{name}.bias"], 0)

    def drawn(h):
        sims = h @ h.T
        return rownorm(np.where(sims >= 0.5, sims, 0))

    def trans(name, x):
        return linear(f"{name}.2", gelu(linear(f"{name}.0", x)))

    def classifier(name, x):
        return linear(f"{name}.3", gelu(linear(f"{name}.1", norm(f"{name}.0", x))))

    def local_classifier(name, x):
        return linear(f"{name}.1", norm(f"{name}.0", x))

    x0 = norm("bn0", np.asarray(features, dtype=np.float64))
    r = linear("Up_dim", x0)
    t1 = trans("trans1", x0)
    l1 = rownorm(np.asarray(adj, dtype=np.float64))
    h1 = unit(local_classifier("local_classifier1", gc("local_conv1", t1, l1)))
    x1 = classifier("classifier1", gc("conv1", linear("trans_x", x0), drawn(h1))) + r
    l2 = rownorm(l1) if normalised == 2 else l1
    h2 = unit(local_classifier("local_classifier2", gc("local_conv2", trans("trans2", x1), l2)))
    x2 = classifier("classifier2", gc("conv2", x1, drawn(h2))) + x1
    return unit(linear("classifier_out", np.hstack([x2, x1, t1])))


def inner_products_in_lanes(ones, others):
    """Inner products of rows (..., d) float32 by 32 lanes of sums that are then added pairwise, all by NumPy."""
    shape = np.broadcast_shapes(ones.shape[:-1], others.shape[:-1])
    sums = np.zeros((*shape, 32), np.float32)
    for at in range(ones.shape[-1]):
        sums[..., at % 32] += ones[..., at] * others[..., at]
    for width in (16, 8, 4, 2, 1):
        sums = sums[..., :width] + sums[..., width:]
    return sums[..., 0]
