"""How good a face is to be recognised by: its sharpness, and how it is turned, from pixels and points alone."""

import math

import numpy as np

CENTRE = slice(16, 96)  # of a crop of 112 pixels: the face, and nothing of what lies beyond the photo
# How far the tip of the nose lies before the line from between the eyes to the middle of the mouth, as a share of the
# distance of the eyes: about 25 of 63 mm (of adults).
NOSE = 0.4


def sharpness_of(crop: np.ndarray) -> float:
    """Return the variance of the Laplacian of an aligned crop's middle; crop: (112, 112) uint8, greys.

    Below about 50 a face is blurred. A face that was enlarged to fill its crop counts as what it is then.
    """
    grey = crop.astype(np.float32)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian[CENTRE, CENTRE].var())


def roll_of(points: np.ndarray) -> float:
    """Return by how many degrees a face is turned in the plane of the photo, clockwise as one looks at it.

    points: (5, 2), in the order of ``alignment.TEMPLATE``. -180 to 180.
    """
    across = points[1] - points[0]
    return math.degrees(math.atan2(across[1], across[0]))


def yaw_of(points: np.ndarray) -> float:
    """Return by how many degrees a face looks to the right of the photo (negative: to the left), about.

    points: (5, 2), in the order of ``alignment.TEMPLATE``. The tip of the nose lies before the plane of eyes and mouth,
    so that it moves sideways as the head turns, while eyes and corners of the mouth come closer: tan(yaw) is that way
    over the distance that is left of the eyes, over NOSE. -90 to 90.
    """
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = mouth - eyes
    height = math.hypot(*down)
    if not height > 0:
        return math.nan
    right = np.array([down[1], -down[0]]) / height  # across the face
    nose = float((points[2] - eyes) @ right)
    between = float((points[1] - points[0]) @ right)
    return math.degrees(math.atan2(nose, NOSE * abs(between)))
