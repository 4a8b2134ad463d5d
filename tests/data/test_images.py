"""Image files to pixels: upright, 8 bits, of the size that is asked for; what cannot be read is told."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcdeploy.data.images import MAX_PIXELS, REASONS, State, import_pillow, read_image

SIZE = (4, 6)  # height, width


@pytest.fixture(autouse=True)
def pillow() -> None:
    import_pillow()


@pytest.fixture
def rgb() -> np.ndarray:
    """A picture whose every pixel is another, (4, 6, 3) uint8."""
    return np.random.default_rng(0).permutation(4 * 6 * 3 * 3)[: 4 * 6 * 3].reshape(4, 6, 3).astype(np.uint8)


def read(path: Path, size: tuple[int, int] = SIZE, channels: str = "rgb", most: int = MAX_PIXELS) -> Any:
    return read_image(str(path).encode(), size, channels, most)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tiff", "a.webp", "a.jp2", "png.jpg"])
def test_pixels_of_lossless_files_are_theirs(tmp_path: Path, rgb: np.ndarray, name: str) -> None:
    options = {"lossless": True} if name == "a.webp" else {"irreversible": False} if name == "a.jp2" else {}
    form = {"format": "PNG"} if name == "png.jpg" else {}  # the content counts, not the name
    state, pixels = read(saved(tmp_path, Image.fromarray(rgb), name, **options, **form))
    assert state == State.GOOD
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, rgb)


def test_channels_in_the_order_that_is_asked_for(tmp_path: Path, rgb: np.ndarray) -> None:
    path = saved(tmp_path, Image.fromarray(rgb))
    assert np.array_equal(read(path, channels="bgr")[1], rgb[..., ::-1])
    gray = read(path, channels="gray")[1]
    assert gray.shape == (4, 6, 1)
    weighted = rgb.astype(float) @ [0.299, 0.587, 0.114]  # ITU-R 601, as Pillow says of mode L
    assert np.abs(gray[..., 0] - weighted).max() <= 1


ORIENTED = {  # EXIF orientation -> the stored pixels of an upright picture
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[::-1],  # to be turned clockwise by 90 degrees
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
def test_exif_orientation_is_applied_once(
    tmp_path: Path, rgb: np.ndarray, orientation: int, name: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTED[orientation](rgb)))
    options = {"lossless": True} if name == "a.webp" else {}
    state, pixels = read(saved(tmp_path, stored, name, exif=exif, **options))
    assert state == State.GOOD
    assert np.array_equal(pixels, rgb)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20), b"", b"Exif\0\0II*\0"]
)
def test_a_picture_with_damaged_exif_is_a_picture(tmp_path: Path, exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(tmp_path, Image.new("RGB", (6, 4), (9, 99, 199)), "a.jpg", exif=exif, quality=95)
        state, pixels = read(path)
    assert state == State.GOOD
    assert np.abs(pixels.astype(int) - [9, 99, 199]).max() < 8


def test_greyscale_and_palettes_are_spread_over_the_channels(tmp_path: Path) -> None:
    gray = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    wanted = gray[..., None].repeat(3, axis=2)
    assert np.array_equal(read(saved(tmp_path, Image.fromarray(gray)))[1], wanted)
    assert np.array_equal(read(saved(tmp_path, Image.fromarray(gray), "a.gif"))[1], wanted)
    palette = Image.fromarray(gray // 10)
    palette.putpalette([value for i in range(24) for value in (i, 2 * i, 255 - i)])
    i = gray // 10
    assert np.array_equal(read(saved(tmp_path, palette))[1], np.stack([i, 2 * i, 255 - i], axis=-1))
    bits = gray > 100
    assert np.array_equal(
        read(saved(tmp_path, Image.fromarray(bits)))[1], 255 * wanted.astype(bool) * bits[..., None]
    )


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, name: str) -> None:
    """0..65535 to 0..255 is a division by 257; the high byte alone, or clipping, would be wrong for these."""
    wide = np.array([0, 128, 129, 256, 257, 385, 386, 32768, 65406, 65407, 65535, 1000] * 2, np.uint16)
    state, pixels = read(saved(tmp_path, Image.fromarray(wide.reshape(4, 6)), name))
    assert state == State.GOOD
    wanted = np.floor(wide / 257 + 0.5).astype(np.uint8).reshape(4, 6)
    assert np.array_equal(pixels, wanted[..., None].repeat(3, axis=2))


def test_transparent_pixels_lie_on_black(tmp_path: Path, rgb: np.ndarray) -> None:
    alpha = np.full((4, 6, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    rgba = np.concatenate([rgb, alpha], axis=2)
    wanted = np.round(rgb * (alpha / 255)).astype(int)
    for name in ("a.png", "a.webp"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        pixels = read(saved(tmp_path, Image.fromarray(rgba), name, **options))[1].astype(int)
        assert np.abs(pixels - wanted).max() <= 1
        assert np.array_equal(pixels[2:], rgb[2:])
        assert not pixels[0].any()
    gray = np.concatenate([rgb[..., :1], alpha], axis=2)
    pixels = read(saved(tmp_path, Image.fromarray(gray, "LA")))[1].astype(int)
    assert np.abs(pixels - np.round(rgb[..., :1] * (alpha / 255))).max() <= 1
    keyed = saved(tmp_path, Image.fromarray(rgb), transparency=tuple(rgb[3, 5].tolist()))
    wanted = rgb.copy()
    wanted[3, 5] = 0
    assert np.array_equal(read(keyed)[1], wanted)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (6, 4), (255, 0, 0, 0))  # cyan
    state, pixels = read(saved(tmp_path, inks, "a.tiff"))
    assert state == State.GOOD
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 2
    state, pixels = read(saved(tmp_path, inks, "a.jpg", quality=95))
    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 8


def test_the_first_frame_of_several_counts(tmp_path: Path, rgb: np.ndarray) -> None:
    frames = [Image.fromarray(rgb), Image.new("RGB", (6, 4))]
    path = saved(tmp_path, frames[0], "a.tiff", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(path)[1], rgb)


def test_another_size_is_resized_with_antialiasing(tmp_path: Path) -> None:
    """A checkerboard of single pixels becomes grey; without antialiasing it would stay black or white."""
    board = (np.indices((64, 96)).sum(axis=0) % 2 * 255).astype(np.uint8)
    state, pixels = read(saved(tmp_path, Image.fromarray(board)))
    assert state == State.RESIZED
    assert pixels.shape == (4, 6, 3)
    assert np.abs(pixels.astype(int) - 127.5).max() < 8
    assert read(saved(tmp_path, Image.fromarray(board[:, :60])))[0] == State.STRETCHED
    state, pixels = read(saved(tmp_path, Image.fromarray(board[:1, :1])))
    assert (state, pixels.shape) == (State.STRETCHED, (4, 6, 3))


# What cannot be read


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    for content in (
        b"hello\n",
        bytes(1000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\xff\xd8",
    ):
        (tmp_path / "a.jpg").write_bytes(content)
        assert read(tmp_path / "a.jpg") == (State.NOT_AN_IMAGE, None)
    assert read(tmp_path / "none.jpg") == (State.UNREADABLE, None)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tiff", "a.webp", "a.gif", "a.jp2"])
def test_a_file_cut_short_is_never_a_picture_nor_an_exception(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(tmp_path, Image.fromarray(noise), name).read_bytes()
    states = set()
    for kept in np.linspace(4, 0.9 * len(whole), 40).astype(int):
        (tmp_path / name).write_bytes(whole[:kept])
        state, pixels = read(tmp_path / name)
        assert pixels is None
        states.add(state)
    assert states <= {State.NOT_AN_IMAGE, State.DAMAGED}
    assert State.DAMAGED in states


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp", "a.gif", "a.bmp"])
def test_damage_anywhere_raises_nothing(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = np.frombuffer(saved(tmp_path, Image.fromarray(noise), name).read_bytes(), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            damaged = whole.copy()
            at = rng.integers(0, min(len(whole), rng.choice([100, len(whole)])), 5)
            damaged[at] = rng.integers(0, 256, 5)
            (tmp_path / name).write_bytes(damaged.tobytes())
            state, pixels = read(tmp_path / name, most=10_000)
            assert (pixels is None) == (state >= State.BLANK)
            assert pixels is None or (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(5001, 5000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read(tmp_path / "bomb.png") == (State.TOO_LARGE, None)


def test_the_limit_of_pixels_is_the_users(tmp_path: Path, rgb: np.ndarray) -> None:
    path = saved(tmp_path, Image.fromarray(rgb))
    assert read(path, most=24)[0] == State.GOOD
    assert read(path, most=23) == (State.TOO_LARGE, None)


def test_pixels_that_mean_nothing_in_8_bits_are_refused(tmp_path: Path) -> None:
    for pixels in (
        np.ones((4, 6), np.float32),
        np.full((4, 6), 70_000, np.int32),
        np.full((4, 6), -1, np.int32),
    ):
        path = saved(tmp_path, Image.fromarray(pixels), "a.tiff")
        assert read(path) == (State.UNCONVERTIBLE, None)


def test_every_bad_state_has_a_reason() -> None:
    assert {state for state in State if state >= State.BLANK} == REASONS.keys()


def test_a_message_of_the_system_is_no_damage(tmp_path: Path, rgb: np.ndarray, monkeypatch: Any) -> None:
    path = saved(tmp_path, Image.fromarray(rgb))

    class Failing(io.FileIO):
        def read(self, *args: Any) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", lambda path, mode: Failing(path, mode))
    assert read(path) == (State.UNREADABLE, None)
