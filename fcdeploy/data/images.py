"""Image files to pixels of one size and one kind; what cannot be read is told, not raised."""

import contextlib
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from fcdeploy.packages import import_package

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from PIL import Image

T = TypeVar("T")

# Formats that are pictures and begin with a signature: nothing is guessed, and no PostScript is run.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
)
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
HEAD_BYTES = 32  # that tell an image from other files
MAX_PIXELS = 25_000_000
THUMBNAIL_GREY = (128, 128, 128)  # beside a picture that is not square
STRETCH = 0.02  # difference in shape that still counts as none
ORIENTATION = 0x0112  # EXIF tag
TRANSPOSES = {  # EXIF orientation -> what turns the picture upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class State(IntEnum):
    """What became of a line of a list; from BLANK on it has no embedding."""

    GOOD = 0
    RESIZED = 1
    STRETCHED = 2
    BLANK = 16
    MISSING = 17
    NOT_A_FILE = 18
    UNREADABLE = 19
    EMPTY = 20
    NOT_AN_IMAGE = 21
    DAMAGED = 22
    TOO_LARGE = 23
    UNCONVERTIBLE = 24
    NOT_FINITE = 25
    ALL_ZERO = 26
    HEIC = 27
    AVIF = 28


FIRST_BAD = State.BLANK
REASONS = {
    State.BLANK: "blank line",
    State.MISSING: "no such file",
    State.NOT_A_FILE: "not a file",
    State.UNREADABLE: "may not be read",
    State.EMPTY: "empty file",
    State.NOT_AN_IMAGE: "not an image of a known format",
    State.DAMAGED: "damaged or cut short",
    State.TOO_LARGE: "more than {max_pixels:,} pixels",
    State.UNCONVERTIBLE: "pixels of 32 bits or floating point",
    State.NOT_FINITE: "embedding not finite",
    State.ALL_ZERO: "embedding all zero",
    State.HEIC: "HEIC, which needs `pip install 'fcdeploy[heif]'`",
    State.AVIF: "AVIF, which this Pillow does not read: `pip install 'pillow>=11.3'`",
}


class _Unconvertible(Exception):
    """The pixels have no meaning in 0..255."""


def read_image(
    source: bytes | Callable[[], BinaryIO], size: tuple[int, int], channels: str, max_pixels: int
) -> tuple[State, np.ndarray | None]:
    """Read an image upright, in 8 bits a channel and at the size that is asked for.

    source: a path, or what opens the file. size: (height, width); channels: 'rgb', 'bgr' or 'gray'. What pixels become
    is said at ``read_upright``; another size is resized, bilinear with antialiasing. Returns GOOD, RESIZED or STRETCHED
    (of another shape) and (height, width, c) uint8, or why there is none.
    """

    def take(image: "Image.Image") -> tuple[State, np.ndarray | None]:
        state, resized = _resized(image, size)
        if channels == "gray":
            return state, np.asarray(resized.convert("L"))[..., None]
        pixels = np.asarray(resized)
        return state, pixels[..., ::-1] if channels == "bgr" else pixels

    state, taken = read_upright(source, max_pixels, take)
    return (state, None) if taken is None else taken


def read_thumbnail(
    source: bytes | Callable[[], BinaryIO], edge: int, max_pixels: int = MAX_PIXELS
) -> tuple[State, np.ndarray | None]:
    """Read an image as a square of ``edge`` pixels to look at: upright, whole, and grey beside what is not square.

    source: as of ``read_image``. Returns GOOD and (edge, edge, 3) uint8, or why there is none.
    """

    def take(image: "Image.Image") -> np.ndarray:
        from PIL import Image, ImageOps

        return np.asarray(ImageOps.pad(image, (edge, edge), Image.Resampling.BILINEAR, color=THUMBNAIL_GREY))

    return read_upright(source, max_pixels, take, edge=edge)


def read_upright(
    source: bytes | Callable[[], BinaryIO],
    max_pixels: int,
    take: "Callable[[Image.Image], T]",
    room: "Callable[[int], AbstractContextManager[object]]" = lambda pixels: contextlib.nullcontext(),
    edge: int | None = None,
) -> tuple[State, T | None]:
    """Read an image upright, as RGB of 8 bits, and return what ``take`` makes of it.

    source: a path, or what opens the file. The first frame of several. EXIF orientation is applied; greyscale, palette,
    CMYK and 16-bit pixels are converted, transparent ones lie on black. The number of pixels is read off the header
    before anything is decoded. room: opens what the image lies in memory in, given its number of pixels. edge: of
    what is to become small, which a JPEG is decoded for at a half, a quarter or an eighth, but no smaller. Returns GOOD
    and that, or why there is none and None. What ``take`` raises is not taken for the file's fault.
    """
    from PIL import Image, UnidentifiedImageError

    known = [name for name in FORMATS if name in Image.OPEN]
    with contextlib.ExitStack() as stack:
        try:
            with open(source, "rb") if isinstance(source, bytes) else source() as file:
                try:
                    image = Image.open(file, formats=known)
                except UnidentifiedImageError:
                    file.seek(0)
                    return _unread(file.read(HEAD_BYTES), known), None
                pixels = image.width * image.height
                if pixels > max_pixels:
                    return State.TOO_LARGE, None
                stack.enter_context(room(pixels))
                if edge is not None:
                    image.draft("RGB", (edge, edge))
                image.load()
                upright = _as_rgb(_upright(image))
        except Image.DecompressionBombError:
            return State.TOO_LARGE, None
        except _Unconvertible:
            return State.UNCONVERTIBLE, None
        except MemoryError:
            raise
        except OSError as error:
            # Pillow's own complaints about the content carry no number.
            return (State.DAMAGED if error.errno is None else State.UNREADABLE), None
        except Exception:  # damaged files make Pillow's readers raise nearly anything
            return State.DAMAGED, None
        return State.GOOD, take(upright)


def import_pillow() -> ModuleType:
    """Import Pillow with all its readers, of HEIC too where pillow-heif is installed.

    Raises MissingDependencyError, see ``import_package``.
    """
    image = import_package("PIL.Image", "Pillow", "pip install 'fcdeploy[cpu,embed]'")
    image.init()
    if "HEIF" not in image.OPEN:
        # Absent or broken, in whatever way: files of this format are told of one by one.
        with contextlib.suppress(Exception):
            import pillow_heif

            pillow_heif.register_heif_opener(decode_threads=1)  # images are decoded side by side already
    return image


def begins_like_an_image(head: bytes) -> bool:
    """Tell whether the first HEAD_BYTES of a file are those of an image of a known format."""
    return (
        head.startswith(SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4) and len(head) == HEAD_BYTES)
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() and b"\0" not in head[:3])
        or (head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS + AVIF_BRANDS)
    )


def _unread(head: bytes, known: list[str]) -> State:
    """Say why none of the readers takes a file that begins so; known: their formats."""
    if head[4:8] == b"ftyp":
        if head[8:12] in AVIF_BRANDS or (head[8:12] in (b"mif1", b"msf1") and b"avif" in head[16:]):
            return State.DAMAGED if "AVIF" in known else State.AVIF
        if head[8:12] in HEIC_BRANDS:
            return State.DAMAGED if "HEIF" in known else State.HEIC
    return State.NOT_AN_IMAGE


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture with damaged EXIF is a picture
        return image
    name = TRANSPOSES.get(orientation)
    return image.transpose(Image.Transpose[name]) if name else image


def _as_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "F":
        raise _Unconvertible
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), layer)
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise _Unconvertible from error


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale 16-bit pixels, in whatever integer type, to uint8; raises _Unconvertible for larger ones."""
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise _Unconvertible
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _resized(image: "Image.Image", size: tuple[int, int]) -> tuple[State, "Image.Image"]:
    from PIL import Image

    height, width = size
    if image.size == (width, height):
        return State.GOOD, image
    stretched = abs(image.width * height - image.height * width) > STRETCH * image.height * width
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return (State.STRETCHED if stretched else State.RESIZED), resized
