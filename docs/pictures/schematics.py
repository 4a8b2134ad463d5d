"""Schematics that show an idea and no figures: exact and layer-wise inference, cells."""

import math

from svg import Picture, Theme

# Where five faces of a toy graph stand, and who is near whom.
FACES = {"a": (40, 40), "b": (118, 22), "c": (170, 78), "d": (96, 104), "e": (34, 128)}
EDGES = ("ab", "ad", "ae", "bc", "cd", "de", "bd")


def toy_graph(picture: Picture, x: float, y: float, centre: str, seen: str) -> None:
    """Draw the toy graph: the face whose feature is computed, and those that are looked at with it."""
    theme = picture.theme
    for one, other in EDGES:
        (x1, y1), (x2, y2) = FACES[one], FACES[other]
        inside = one in seen + centre and other in seen + centre
        picture.path(
            f"M{x + x1} {y + y1}L{x + x2} {y + y2}",
            color=theme.accent if inside else theme.line,
            dashed=not inside,
        )
    for name, (at, down) in FACES.items():
        strong = name == centre
        color = theme.series[1] if strong else theme.accent if name in seen else theme.line
        picture.dot(x + at, y + down, color, 12 if strong else 10)
        picture.text(x + at, y + down + 4, name, size=12, anchor="middle", color="#ffffff", bold=True)


def exact_and_layerwise(theme: Theme) -> str:
    """Exact: a face's whole neighborhood goes through all layers for it alone. Layer-wise: a layer for all faces."""
    picture = Picture(640, 372, theme, "Exact and layer-wise inference on a toy graph")
    picture.text(
        8, 20, "Exact: both layers for a's neighborhood, then again for b's, ...", size=14, bold=True
    )
    toy_graph(picture, 10, 30, "a", "bde")
    picture.path("M225 100H265", arrow=True)
    picture.box(272, 52, 160, 96, ("layers 1 and 2", "of a, b, d and e,", "with edges among", "these alone"))
    picture.path("M437 100H477", arrow=True)
    picture.box(484, 66, 150, 68, ("feature of a", "as published"), strong=True)
    picture.text(
        8, 208, "Layer-wise: layer 1 once for all faces, then layer 2 once for all faces", size=14, bold=True
    )
    toy_graph(picture, 10, 218, "a", "bde")
    picture.path("M225 288H265", arrow=True)
    picture.box(272, 228, 160, 52, ("layer 1, every face", "among its neighbors"))
    picture.path("M352 284V300", arrow=True)
    picture.box(272, 304, 160, 52, ("layer 2, every face", "from layer 1 of all"))
    picture.path("M437 330H477", arrow=True)
    picture.box(484, 296, 150, 68, ("features of all", "b was seen with c,", "too"), strong=True)
    return str(picture)


def cells(theme: Theme) -> str:
    """Faces in cells of a partition; a face looks into the cells that are near enough to hold its neighbors."""
    picture = Picture(560, 262, theme, "Search in cells: a face looks into the nearest cells only")
    centres = [(70, 74), (190, 62), (310, 80), (95, 192), (215, 184), (335, 200), (440, 80), (455, 198)]
    face = (214, 122)
    near = sorted(centres, key=lambda centre: math.dist(centre, face))[:4]
    for x, y in centres:
        looked = (x, y) in near
        picture.parts.append(
            f'<circle cx="{x}" cy="{y}" r="56" fill="{theme.box if looked else "none"}" '
            f'stroke="{theme.accent if looked else theme.line}" stroke-width="1.5"/>'
        )
    for x, y in centres:
        looked = (x, y) in near
        for at in range(11):  # places on a spiral, the same at every run
            angle, reach = at * 2.4, 14 + 3.6 * at
            picture.dot(
                x + reach * math.cos(angle),
                y + reach * math.sin(angle),
                theme.ink if looked else theme.line,
                2.5,
            )
    for x, y in near:
        picture.path(f"M{face[0]} {face[1]}L{x} {y}", color=theme.series[1], width=1.5)
        picture.dot(x, y, theme.series[1], 4)
    picture.dot(*face, theme.series[1], 7)
    picture.text(face[0] + 12, face[1] + 5, "a face", size=13, bold=True)
    return str(picture)
