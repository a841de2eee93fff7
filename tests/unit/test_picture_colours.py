"""What a model sees of a picture: its colours in sRGB, its shapes on transparency, and which way is up."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps

from revln.images import ImageLimits, decode_image, inspect_image, thumbnail
from revln.images.colour import png_profile, to_srgb
from tests import pictures

LIMITS = ImageLimits()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def off(got: Image.Image, wanted: Image.Image) -> float:
    return float(np.abs(np.asarray(got.convert("RGB"), int) - np.asarray(wanted.convert("RGB"), int)).mean())


def in_space(image: Image.Image, profile: bytes, mode: str) -> Image.Image:
    """The numbers that ``profile`` has for an sRGB picture."""
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    turned = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), given, outputMode=mode)
    turned.info = {}
    return turned


@pytest.mark.parametrize("target", [None, 64])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("profile", "mode"),
    [
        (pictures.icc_profile(), "RGB"),
        (
            pictures.icc_profile(2.2, ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))),
            "RGB",
        ),
        (pictures.icc_profile(1.0, ()), "L"),
    ],
    ids=["ProPhoto", "Adobe RGB", "linear grey"],
)
def test_a_picture_in_another_space_is_the_same_picture_in_srgb(profile, mode, format_, target):
    image = pictures.noise(640, 480) if mode == "RGB" else pictures.noise(640, 480).convert("L").convert("RGB")
    if (mode, format_) == ("L", "WEBP"):
        pytest.skip("a WebP has no grey")
    options = (
        {"quality": 95, "subsampling": 0} if format_ == "JPEG" else {"lossless": True} if format_ == "WEBP" else {}
    )
    numbers = in_space(image, profile, mode)
    data = pictures.saved(numbers, format_, icc_profile=profile, **options)
    plain = pictures.saved(image, format_, **options)
    assert off(numbers, image) > 3, "as it was without the profile"
    assert off(decode_image(data, LIMITS, target), decode_image(plain, LIMITS, target)) < 1.5
    small = (Image.open(io.BytesIO(thumbnail(one, LIMITS, 200))) for one in (data, plain))
    assert off(*small) < 2


def test_the_profile_of_a_palette_of_alpha_and_of_deep_grey_is_followed():
    profile, image = pictures.icc_profile(), pictures.quadrants(64, 48)
    numbers = in_space(image, profile, "RGB")
    clear = numbers.convert("RGBA")
    for data in (
        pictures.saved(numbers.convert("P", palette=Image.Palette.ADAPTIVE, colors=4), "PNG", icc_profile=profile),
        pictures.saved(clear, "PNG", icc_profile=profile),
        pictures.saved(clear, "WEBP", lossless=True, icc_profile=profile),
    ):
        assert off(decode_image(data, LIMITS), image) < 1.5
    grey, ramp = pictures.icc_profile(1.0, ()), np.tile(np.arange(0, 65_536, 257, dtype=np.uint16), (4, 1))
    deep = pictures.saved(Image.fromarray(ramp), "PNG", icc_profile=grey)
    assert decode_image(deep, LIMITS).getpixel((128, 0))[0] == pytest.approx(188, abs=1)  # half the light


@pytest.mark.parametrize(
    "profile",
    [SRGB, b"", b"\0" * 200, SRGB[:100], SRGB[:-200], SRGB.replace(b"RGB ", b"Lab "), b"\xff" * 5_000_000,
     pictures.icc_profile(1.0, ()).replace(b"kTRC", b"kTRX")],
    ids=["sRGB", "none", "zeros", "cut early", "cut", "Lab", "long", "no curve"],  # not the bytes, which hold the time
)  # fmt: skip
def test_srgbs_own_profile_and_damaged_ones_change_not_a_pixel(profile):
    image = pictures.noise(64, 48)
    for format_, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True})):
        plain = pictures.saved(image, format_, **options)
        data = pictures.saved(image, format_, icc_profile=profile, **options)
        assert decode_image(data, LIMITS).tobytes() == decode_image(plain, LIMITS).tobytes()
        assert inspect_image(data, LIMITS).width == 64


def test_a_profile_of_another_space_than_the_pixels_is_left_out():
    grey = pictures.icc_profile(1.0, ())
    assert decode_image(pictures.saved(pictures.noise(8, 8), "PNG", icc_profile=grey), LIMITS).tobytes() == (
        pictures.noise(8, 8).tobytes()
    )
    cmyk = pictures.quadrants().convert("CMYK")
    plain, given = (pictures.saved(cmyk, "JPEG", **more) for more in ({}, {"icc_profile": pictures.icc_profile()}))
    assert decode_image(given, LIMITS).tobytes() == decode_image(plain, LIMITS).tobytes()


def test_a_profile_that_unpacks_without_end_is_left_out():
    bomb = pictures.png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50 * 2**20), 9))
    data = pictures.png_of_size(16, 16, bomb)
    assert png_profile(data) is None
    assert decode_image(data, LIMITS).size == (16, 16)
    assert to_srgb(b"\0" * (4 * 2**20 + 1)) is None


# --- transparency -------------------------------------------------------------------------------------------------


def shapes(colour: tuple[int, int, int], extra: tuple[int, int, int] | None = None) -> list[Image.Image]:
    """Five shapes of one colour on transparency, each with the same spot of another."""
    found = []
    for number in range(5):
        image = Image.new("RGBA", (96, 96), (*colour, 0))
        draw = ImageDraw.Draw(image)
        box = (12, 12, 84, 84)
        ink = (*colour, 255)
        match number:
            case 0:
                draw.ellipse(box, ink)
            case 1:
                draw.rectangle(box, ink)
            case 2:
                draw.polygon([(12, 84), (48, 12), (84, 84)], ink)
            case 3:
                draw.line((12, 12, 84, 84), ink, 12)
            case 4:
                draw.ellipse(box, None, ink, 10)
        if extra:
            draw.rectangle((40, 40, 56, 56), (*extra, 255))
        found.append(image)
    return found


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF", "LA", "P", "half"])
@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 240, 240), (255, 255, 210), (0, 0, 0), (128, 128, 128)])
def test_shapes_of_one_colour_on_transparency_are_told_apart(colour, format_):
    for extra, target in ((None, 8), ((255, 0, 0), None)):
        seen = []
        for image in shapes(colour, extra):
            if format_ == "half":
                image.putalpha(image.getchannel("A").point(lambda a: a // 2))
            shown = image.convert("LA") if format_ == "LA" else image.quantize(16) if format_ == "P" else image
            name, options = {"WEBP": ("WEBP", {"lossless": True}), "GIF": ("GIF", {})}.get(format_, ("PNG", {}))
            seen.append(decode_image(pictures.saved(shown, name, **options), LIMITS, target))
        for one, other in combinations(seen, 2):
            assert off(one, other) > 3


def test_what_is_seen_on_white_stays_on_white():
    for colour in ((220, 20, 20), (20, 20, 220), (0, 0, 0), (120, 120, 120)):
        got = decode_image(pictures.saved(shapes(colour)[0], "PNG"), LIMITS)
        assert (got.getpixel((0, 0)), got.getpixel((48, 48))) == ((255, 255, 255), colour)
    opaque = pictures.noise(64, 48).convert("RGBA")
    assert decode_image(pictures.saved(opaque, "PNG"), LIMITS).tobytes() == opaque.convert("RGB").tobytes()
    clear = Image.new("RGBA", (16, 16), (9, 9, 9, 0))
    assert decode_image(pictures.saved(clear, "PNG"), LIMITS).getpixel((0, 0)) == (255, 255, 255)


# --- which way is up ----------------------------------------------------------------------------------------------

FORMS = {1: "B", 2: "c", 3: "H", 4: "I", 5: "II", 6: "b", 7: "c", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I"}


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("kind", FORMS)
def test_an_orientation_of_any_type_is_read_as_pillow_reads_it(kind, order):
    for value in (0, 1, 3, 6, 8, 9):
        form = order + FORMS[kind]
        numbers = [bytes((value,))] if "c" in form else [value, 1][: len(FORMS[kind])]
        exif = pictures.exif_number(kind, struct.pack(form, *numbers), order)
        data = pictures.saved(pictures.quadrants(64, 48), "PNG", exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            wanted = ImageOps.exif_transpose(image)
        got = decode_image(data, LIMITS)
        assert got.size == wanted.size, (kind, value)
        assert got.tobytes() == wanted.convert("RGB").tobytes(), (kind, value)


def test_a_long_turns_a_jpeg_and_two_values_do_not():
    image = pictures.quadrants(64, 48)
    long = pictures.saved(image, "JPEG", exif=pictures.exif_number(4, struct.pack(">I", 6)))
    assert (inspect_image(long, LIMITS).width, decode_image(long, LIMITS).size) == (48, (48, 64))
    two = pictures.saved(image, "JPEG", exif=pictures.exif_number(3, struct.pack(">HH", 6, 6), count=2))
    assert decode_image(two, LIMITS).size == (64, 48)


@pytest.mark.parametrize("form", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_xmp_says_it_where_exif_does_not(format_, form):
    xmp = f"<x:xmpmeta>{form}</x:xmpmeta>".encode()
    data = pictures.saved(pictures.quadrants(64, 48), format_, xmp=xmp)
    assert decode_image(data, LIMITS).size == (48, 64)
    both = pictures.saved(pictures.quadrants(64, 48), format_, xmp=xmp, exif=pictures.exif(1))
    assert decode_image(both, LIMITS).size == (64, 48)
