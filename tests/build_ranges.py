"""Lengths that the tests build passes for."""

RANGES = {  # axis -> shortest, typical, longest; enough for every system's passes
    "m": (1, 256, 1024),
    "b": (1, 8, 16),
    "n": (1, 32, 64),
    "other": (1, 4, 16),
}
GROUPS = ({"b": (1, 8, 16), "n": (1, 32, 64)}, {"b": (1, 2, 4), "n": (65, 96, 128)})
