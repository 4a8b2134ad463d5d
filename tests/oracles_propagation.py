"""Pooling and propagation as the publication tells them: dictionaries, rounds, and breadth-first searches that stop."""


def pooled(links, scores, pooling):
    """Give each unordered pair its pooled score."""
    table, seen = {}, {}
    for (a, b), score in zip(links, scores, strict=True):
        pair = (min(a, b), max(a, b))
        if pair not in table:
            table[pair], seen[pair] = score, [score]
            continue
        seen[pair].append(score)
        table[pair] = {
            "mean": sum(seen[pair]) / len(seen[pair]),
            "running-mean": (table[pair] + score) / 2,
            "max": max(table[pair], score),
            "last": score,
        }[pooling]
    return table


def within(faces, near, max_size):
    """Search each component breadth-first until it is too large or meets a face that was left: (final, left)."""
    final, left, unseen = [], set(), sorted(faces)
    while unseen:
        group, queue = {unseen[0]}, [unseen[0]]
        stopped = False
        while queue and not stopped:
            new = near(queue.pop(0)) - group
            group |= new
            queue += sorted(new)
            stopped = len(group) > max_size or bool(left & new)
        if stopped:
            left |= group
        else:
            final.append(group)
        unseen = [face for face in unseen if face not in group]
    return final, left


def propagated(table, start, max_size, step, max_rounds):
    """Give the clusters as a set of sets; at most ``max_rounds`` rounds, which must be enough if they are None."""
    near = {face: {} for pair in table for face in pair}
    for (a, b), score in table.items():
        near[a][b] = near[b][a] = score
    clusters, left = within(near, lambda face: set(near[face]), max_size)
    th = start
    rounds = 0
    while left:
        if rounds == max_rounds:
            return {frozenset(group) for group in [*clusters, left]}
        th = th + (1 - th) * step

        def close(face, th=th):
            return {other for other, score in near[face].items() if score >= th}

        final, left = within(left, close, max_size)
        clusters += final
        rounds += 1
    return {frozenset(group) for group in clusters}


def too_large(table, start, max_size, step, max_rounds):
    """Give the components above the cap without a part above it in a later round: (divided, never divided), as sets.

    At most ``max_rounds`` rounds, which must be enough if they are None. All links of a round count.
    """
    th, rounds, last = start, 0, []
    divided = set()
    while True:
        near = {face: set() for pair in table for face in pair}
        for (a, b), score in table.items():
            if rounds == 0 or score >= th:
                near[a].add(b)
                near[b].add(a)
        found = {frozenset(group) for group in within(near, near.get, len(near))[0]}
        large = {group for group in found if len(group) > max_size}
        divided |= {group for group in last if not any(part <= group for part in large)}
        if not large or rounds == max_rounds:
            return divided, large
        last, th, rounds = large, th + (1 - th) * step, rounds + 1


def unasked(table, max_size, wanted):
    """Give the faces of components within the cap, of all links, that hold a link of two faces below ``wanted``."""
    near = {face: set() for pair in table for face in pair}
    for a, b in table:
        near[a].add(b)
        near[b].add(a)
    groups = within(near, near.get, len(near))[0]
    low = {a for (a, b), score in table.items() if score < wanted and a != b}
    return {face for group in groups if len(group) <= max_size and low & group for face in group}
