"""From a photo and five points of a face to an aligned crop.

Coordinates are those of OpenCV: the centre of the first pixel is (0, 0). A matrix (2, 3) takes the photo's coordinates
to those of the crop.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SIZE = 112  # of a crop, pixels
# Where the points of a face lie in a crop: the eye on the left of the picture, that on the right, the tip of the nose,
# the corners of the mouth. The template of ArcFace, after which embedders are trained:
# https://github.com/deepinsight/insightface/blob/master/python-package/insightface/utils/face_align.py
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
COARSE = 1.6  # how much smaller a window may show a photo without averaging, where that need not be fine
MARGIN = 4  # pixels round what is read of a photo, for the filters' sake


def similarity(points: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """Return the similarity transform (2, 3) float64 that takes points (m, 2) nearest to those of ``template``.

    Least squares over rotation, scale and translation (Umeyama, IEEE PAMI 13, 1991, without reflection, in closed form:
    in the plane a similarity is a multiplication of complex numbers). Points that all lie in one place, or are not
    finite, give a matrix that is not finite.
    """
    given, wanted = (array[:, 0] + 1j * array[:, 1] for array in (points.astype(np.float64), template))
    here, there = given.mean(), wanted.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        turn = np.vdot(given - here, wanted - there) / np.vdot(given - here, given - here).real
    shift = there - turn * here
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def applied(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (..., 2) under a transform (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse (2, 3) of a transform (2, 3)."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def warped(
    image: "Image.Image", matrix: np.ndarray, size: tuple[int, int], *, fine: bool = True
) -> "Image.Image":
    """Return what of a photo lies in a window of ``size`` (width, height), in which black is beyond the photo.

    matrix: (2, 3), photo to window. Where the window shows the photo smaller, the photo is shrunk first with a filter
    that averages (antialiasing), and then turned; the filters are bicubic. Not so ``fine``, they are bilinear, and what
    is shrunk a little only is not averaged.
    """
    from PIL import Image

    resample = Image.Resampling.BICUBIC if fine else Image.Resampling.BILINEAR

    back = inverse(matrix)
    shrink = math.sqrt(abs(np.linalg.det(back[:, :2])))  # pixels of the photo in a row of one of the window
    if shrink > (1 if fine else COARSE):
        corners = np.array([[-1, -1], [size[0], -1], [-1, size[1]], [size[0], size[1]]])
        spots = applied(back, corners)
        low = np.clip(np.floor(spots.min(axis=0) - MARGIN * shrink), 0, image.size).astype(int)
        high = np.clip(np.ceil(spots.max(axis=0) + MARGIN * shrink), 0, image.size).astype(int)
        if (high <= low).any():
            return Image.new(image.mode, size)
        width, height = np.maximum(1, np.round((high - low) / shrink)).astype(int).tolist()
        image = image.resize((width, height), resample, box=(*low.tolist(), *high.tolist()), reducing_gap=3.0)
        ratio = (width, height) / (high - low)
        # Edges of pixels lie half a pixel from their centres, before and after.
        back = ratio[:, None] * (back + np.column_stack([np.zeros((2, 2)), 0.5 - low])) - np.array(
            [[0, 0, 0.5]]
        )
    (a, b, c), (d, e, f) = back
    # Pillow's coordinates begin at the edge of the first pixel.
    place = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
    return image.transform(size, Image.Transform.AFFINE, place, resample)
