"""Images that somebody else made: pixels, or why there are none, in bounded memory."""

import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzing import check_each, damaged, tries
from hypothesis import strategies as st
from PIL import Image

from fcdeploy.data.images import FORMATS, State, import_pillow, read_image

SIZE = (16, 12)
LIMIT = 1_000_000  # pixels
MIB = 1 << 20
PICTURE = np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def encoded(form: str, picture: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (picture or Image.fromarray(PICTURE)).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """A picture in every format that can be written here, and in some of their kinds."""
    import_pillow()
    rotated = Image.Exif()
    rotated[0x0112] = 6
    palette = Image.fromarray(PICTURE).convert("P")
    found = [encoded(form) for form in FORMATS if form in Image.SAVE]
    assert len(found) > 7
    return [
        *found,
        *(encoded("TIFF", compression=how) for how in ("tiff_deflate", "tiff_lzw", "jpeg")),
        encoded("JPEG", exif=rotated),
        encoded("PNG", palette, transparency=3),
        encoded("PNG", Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)),
        encoded("GIF", palette, save_all=True, append_images=[palette.rotate(90)]),
    ]


def read(content: bytes, folder: Path) -> State:
    path = folder / "picture"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow
        state, pixels = read_image(bytes(path), SIZE, "rgb", LIMIT)
    if pixels is not None:
        assert state < State.BLANK
        assert (pixels.shape, pixels.dtype) == ((*SIZE, 3), np.uint8)
    else:
        assert state >= State.BLANK
    return state


@tries(300, 15_000)
def test_a_damaged_image_is_pixels_or_a_reason(count: int, pictures: list[bytes], tmp_path: Path) -> None:
    states = set()
    cases = st.sampled_from(pictures).flatmap(damaged)
    check_each(count, cases, lambda content: states.add(read(content, tmp_path)))
    assert {State.STRETCHED, State.DAMAGED, State.NOT_AN_IMAGE} <= states


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs() -> dict[str, tuple[bytes, set[State]]]:
    """Images of some kilobytes that would become hundreds of megabytes, and what may become of them."""
    small, packed = encoded("PNG", Image.new("L", (10, 10))), zlib.compress(bytes(200 * MIB))
    head, rest = small[:33], small[33:]  # signature and IHDR
    frames = [Image.new("L", (900, 900), shade) for shade in range(60)]
    many = {"save_all": True, "append_images": frames[1:]}
    return {
        "pixels": (encoded("PNG", Image.new("L", (9000, 9000))), {State.TOO_LARGE}),
        "pixels of a header": (
            head[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + head[24:] + rest,
            {*State},
        ),
        "text": (
            head + chunk(b"zTXt", b"a\0\0" + packed) + rest,
            {State.DAMAGED, State.RESIZED, State.STRETCHED},
        ),
        "profile": (head + chunk(b"iCCP", b"a\0\0" + packed) + rest, {*State}),
        "more than its size": (head + chunk(b"IDAT", packed) + chunk(b"IEND", b""), {*State}),
        "frames of a GIF": (encoded("GIF", frames[0], **many), {State.STRETCHED}),
        "frames of a TIFF": (
            encoded("TIFF", frames[0], compression="tiff_deflate", **many),
            {State.STRETCHED},
        ),
    }


def test_no_image_of_some_kilobytes_takes_hundreds_of_megabytes(tmp_path: Path) -> None:
    """Measured for what Python allocates and for the process: decoders allocate by themselves."""
    for name, (content, states) in bombs().items():
        assert len(content) < MIB, name
        before = resident()
        tracemalloc.start()
        state = read(content, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert state in states, (name, state)
        assert peak < 80 * MIB, (name, peak)
        assert resident() - before < 80 * MIB, name


def resident() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
