"""Pictures: what is read, what is refused and why, and that nothing but ImageError comes out."""

from __future__ import annotations

import hashlib
import io
import struct
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from revln.errors import ImageError, ItemInvalid
from revln.images import ImageLimits, decode_image, inspect_image, thumbnail
from revln.images.headers import webp_tables_bytes
from tests import pictures

LIMITS = ImageLimits()
CORNERS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
QUADRANTS = (pictures.RED, pictures.GREEN, pictures.BLUE, pictures.YELLOW)


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The colour in the middle of each quadrant, row by row."""
    return [image.getpixel((int(image.width * x), int(image.height * y))) for x, y in CORNERS]


def close(got: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 8) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("make", "media_type"),
    [
        (pictures.jpeg, "image/jpeg"),
        (pictures.progressive_jpeg, "image/jpeg"),
        (pictures.png, "image/png"),
        (pictures.webp, "image/webp"),
        (pictures.gif, "image/gif"),
        (pictures.bmp, "image/bmp"),
    ],
)
def test_the_facts_of_a_good_picture_are_its_own(make, media_type):
    data = make(60, 40)
    facts = inspect_image(data, LIMITS)
    assert (facts.media_type, facts.width, facts.height) == (media_type, 60, 40)
    assert (facts.size_bytes, facts.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    image = decode_image(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (60, 40))


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_comes_upright_whatever_its_orientation(orientation, order):
    data = pictures.rotated_jpeg(orientation, 64, 48, order)
    facts = inspect_image(data, LIMITS)
    assert (facts.width, facts.height) == (64, 48)
    image = decode_image(data, LIMITS)
    assert image.size == (64, 48)
    assert all(close(got, wanted) for got, wanted in zip(colours(image), QUADRANTS, strict=True))


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_the_orientation_in_a_png_or_a_webp_is_followed(format_):
    data = pictures.saved(pictures.quadrants(64, 48), format_, exif=pictures.exif(6))
    assert (inspect_image(data, LIMITS).width, decode_image(data, LIMITS).size) == (48, (48, 64))


def test_an_orientation_behind_the_pixels_of_a_png_is_followed():
    data = pictures.png(64, 48)
    late = data[:-12] + pictures.png_chunk(b"eXIf", pictures.exif(8)[6:]) + data[-12:]
    assert (inspect_image(late, LIMITS).width, decode_image(late, LIMITS).size) == (48, (48, 64))


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        b"Exif\0\0XX*\0\x08\0\0\0\x01\0",
        pictures.exif(9),
        pictures.exif(6)[:30],
    ],
)
def test_a_damaged_exif_block_neither_turns_nor_stops_a_picture_nor_warns(block):
    data = pictures.saved(pictures.quadrants(64, 48), "JPEG", exif=block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, LIMITS).size == (64, 48)
        assert inspect_image(data, LIMITS).width == 64


def test_metadata_is_dropped():
    image = Image.new("RGB", (8, 8))
    data = pictures.saved(image, "JPEG", exif=pictures.exif(1), comment=b"secret", icc_profile=b"\0" * 200)
    decoded = decode_image(data, LIMITS)
    assert type(decoded) is Image.Image
    assert decoded.info == {}
    assert len(decoded.getexif()) == 0
    assert b"holiday" not in thumbnail(pictures.rotated_jpeg(6), LIMITS, 32)


def test_cmyk_keeps_its_colours():
    image = decode_image(pictures.cmyk_jpeg(), LIMITS)
    assert all(close(got, wanted, 12) for got, wanted in zip(colours(image), QUADRANTS, strict=True))


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.asarray(decode_image(pictures.gray16_png(256), LIMITS))[0, :, 0].astype(int)
    assert np.array_equal(levels, np.arange(256))


def test_alpha_lies_over_white():
    left, right, *_ = colours(decode_image(pictures.transparent_png(), LIMITS))
    assert (left, right) == ((255, 255, 255), pictures.RED)


def test_a_palette_with_transparent_colours_lies_over_white():
    got = colours(decode_image(pictures.palette_png(), LIMITS))
    assert got == [(255, 255, 255), *QUADRANTS[1:]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_transparent_colour_key_lies_over_white(mode):
    key = (0, 0, 0) if mode == "RGB" else 0
    data = pictures.saved(Image.new(mode, (4, 4), 0), "PNG", transparency=key)
    assert decode_image(data, LIMITS).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_gives_rgb(mode):
    image = decode_image(pictures.mode_png(mode), LIMITS)
    assert (image.mode, image.size) == ("RGB", (32, 24))


def test_the_first_frame_of_an_animation_is_taken():
    assert close(decode_image(pictures.animated_gif(), LIMITS).getpixel((5, 5)), pictures.RED)
    frames = [Image.new("RGB", (16, 16), colour) for colour in QUADRANTS]
    for format_ in ("PNG", "WEBP"):
        data = pictures.saved(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)
        assert close(decode_image(data, LIMITS).getpixel((5, 5)), pictures.RED)


def test_one_pixel_is_a_picture():
    assert decode_image(pictures.one_pixel_png(), LIMITS).getpixel((0, 0)) == pictures.RED
    assert inspect_image(pictures.one_pixel_png(), LIMITS).width == 1


def test_a_good_jpeg_with_a_page_behind_it_is_only_a_jpeg():
    assert inspect_image(pictures.polyglot(), LIMITS).media_type == "image/jpeg"
    assert decode_image(pictures.polyglot(), LIMITS).size == (64, 48)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no picture at all"),
        (pictures.not_an_image(), "not a picture that revln knows"),
        (pictures.svg(), "an SVG drawing"),
        (pictures.html(), "an HTML page"),
        (pictures.tiff(), "a TIFF"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\0\0\0\x1cftypheic", "HEIC"),
        (pictures.strip_png(), "65,000; the limit is 32,768"),
        (pictures.png_of_size(2, 2_000), "100 times"),
        (pictures.bomb_png(), "144,000,000 pixels; the limit is 40,000,000"),
        (pictures.webp_of_size(2**24, 255), "pixels; the limit is 40,000,000"),
        (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0" * 20, "pixels; the limit is 40,000,000"),
        (pictures.wide_frame_gif(), "pixels; the limit is 40,000,000"),
        (pictures.many_scans_jpeg(), "over 64 scans"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000, "segments"),
        (pictures.rle_bmp(), "run-length"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
        (b"BM", "cannot be decoded"),
        (b"GIF89a", "cannot be decoded"),
        (b"RIFF\0\0\0\0WEBP", "cannot be decoded"),
    ],
)
def test_what_is_not_read_is_refused_at_once_saying_why(data, words):
    start = time.monotonic()
    for use in (inspect_image, decode_image, lambda *a: thumbnail(*a, 64)):
        with pytest.raises(ImageError) as caught:
            use(data, LIMITS)
        assert words in caught.value.message
    assert time.monotonic() - start < 2  # a deadline for hangs, not a measurement


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("make", [pictures.jpeg, pictures.progressive_jpeg, pictures.png, pictures.webp, pictures.bmp])
def test_a_truncated_picture_is_refused_at_upload_and_at_decoding(make, keep):
    data = make(320, 240)
    data = data[: int(len(data) * keep)]
    for use in (inspect_image, decode_image):
        with pytest.raises(ImageError):
            use(data, LIMITS)


def test_limits_are_the_callers():
    data = pictures.png(64, 48)
    with pytest.raises(ImageError, match="3,072 pixels; the limit is 3,071"):
        inspect_image(data, ImageLimits(max_pixels=3_071))
    assert inspect_image(data, ImageLimits(max_pixels=3_072)).width == 64
    with pytest.raises(ImageError, match="a PNG, which is not among the formats allowed here; revln reads JPEG"):
        inspect_image(data, ImageLimits(formats=("JPEG",)))
    with pytest.raises(ValueError, match="TIFF"):
        ImageLimits(formats=("TIFF",))


def test_pillows_global_limit_does_not_matter(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(pictures.jpeg(), LIMITS).size == (64, 48)
    assert decode_image(pictures.png(), LIMITS).size == (64, 48)


def test_an_invalid_animation_header_and_a_text_bomb_do_not_stop_a_png():
    extra = pictures.png_chunk(b"acTL", b"\0" * 8) * 2 + pictures.png_chunk(b"zTXt", b"a\0\0not zlib")
    assert decode_image(pictures.png_of_size(16, 16, extra), LIMITS).size == (16, 16)


@pytest.mark.parametrize(
    ("size", "target", "wanted"),
    [
        ((640, 480), 60, (80, 60)),
        ((640, 480), 61, (160, 120)),
        ((640, 480), 240, (320, 240)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 5_000, (640, 480)),
        ((640, 480), None, (640, 480)),
    ],
)
def test_a_big_jpeg_is_decoded_small_but_never_below_the_target(size, target, wanted):
    assert decode_image(pictures.jpeg(*size), LIMITS, target_side=target).size == wanted


def test_a_turned_jpeg_decoded_small_is_still_upright():
    image = decode_image(pictures.rotated_jpeg(6, 640, 480), LIMITS, target_side=100)
    assert image.size == (160, 120)
    assert all(close(got, wanted) for got, wanted in zip(colours(image), QUADRANTS, strict=True))


def test_a_thumbnail_is_bounded_upright_and_never_enlarged():
    def size(data: bytes, width: int) -> tuple[int, int]:
        with Image.open(io.BytesIO(thumbnail(data, LIMITS, width)), formats=["JPEG"]) as image:
            return image.size

    assert size(pictures.jpeg(640, 480), 160) == (160, 120)
    assert size(pictures.rotated_jpeg(6, 480, 640), 120) == (120, 160)
    assert size(pictures.jpeg(64, 48), 2_048) == (64, 48)
    assert size(pictures.jpeg(100, 1_600), 100) == (25, 400)
    assert size(pictures.one_pixel_png(), 16) == (1, 1)


@pytest.mark.parametrize("width", [-1, 0, 15, 2_049])
def test_a_thumbnail_of_another_width_is_refused(width):
    with pytest.raises(ItemInvalid, match="ask for 16 to 2048"):
        thumbnail(pictures.jpeg(), LIMITS, width)


def test_many_threads_decode_as_one_does():
    data = [make() for make in (pictures.jpeg, pictures.cmyk_jpeg, pictures.palette_png, pictures.webp, pictures.gif)]
    alone = [decode_image(each, LIMITS).tobytes() for each in data]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: decode_image(each, LIMITS).tobytes(), data * 20))
    assert together == alone * 20


def test_the_tables_of_a_lossless_webp_are_charged():
    data = pictures.webp_of_groups(256, 4_096)
    assert decode_image(data, LIMITS).size == (256, 256)
    assert webp_tables_bytes(data, 256 * 256) == 4_096 * 12_000
    assert webp_tables_bytes(data, 64 * 64) == 256 * 12_000
    lossy = pictures.saved(pictures.noise(640, 480), "WEBP", exif=pictures.exif(6))
    assert webp_tables_bytes(lossy, 640 * 480) == 0
    alpha = pictures.noise(640, 480).convert("RGBA")
    alpha.putalpha(pictures.noise(640, 480, 1).convert("L"))
    assert 0 < webp_tables_bytes(pictures.saved(alpha, "WEBP"), 640 * 480) <= 640 * 480 // 16 * 12_000
    animated = pictures.saved(
        pictures.noise(64, 48), "WEBP", save_all=True, append_images=[pictures.noise(64, 48, 2)], lossless=True
    )
    assert webp_tables_bytes(animated, 64 * 48) > 0
