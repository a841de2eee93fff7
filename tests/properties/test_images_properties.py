"""Whatever happens to a picture's bytes, only ImageError comes out; whatever its mode, RGB does."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from revln.errors import ImageError
from revln.images import ImageLimits, decode_image, inspect_image, thumbnail
from tests import pictures

# Small limits keep a flipped size field from costing a large canvas.
LIMITS = ImageLimits(max_pixels=250_000)
GOOD = {
    make.__name__: make
    for make in (
        pictures.jpeg,
        pictures.progressive_jpeg,
        pictures.rotated_jpeg,
        pictures.cmyk_jpeg,
        pictures.png,
        pictures.palette_png,
        pictures.transparent_png,
        pictures.gray16_png,
        pictures.webp,
        pictures.gif,
        pictures.animated_gif,
        pictures.bmp,
    )
}


@functools.cache
def good(name: str) -> bytes:
    return GOOD[name]()


def use_all(data: bytes) -> None:
    """Upload, decode and shrink; nothing but ImageError may escape, and an accepted upload must decode."""
    try:
        facts = inspect_image(data, LIMITS)
    except ImageError:
        facts = None
    try:
        image = decode_image(data, LIMITS, target_side=16)
        assert image.mode == "RGB"
        thumbnail(data, LIMITS, 16)
    except ImageError:
        assert facts is None, "an upload was accepted that cannot be decoded"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.floats(0, 1))
def test_a_picture_cut_anywhere_raises_nothing_but_image_error(name, where):
    data = good(name)
    use_all(data[: int(len(data) * where)])


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
    st.booleans(),
)
def test_a_picture_with_flipped_bytes_raises_nothing_but_image_error(name, flips, in_the_header):
    data = bytearray(good(name))
    span = min(len(data), 120) if in_the_header else len(data)
    for where, bits in flips:
        data[int(span * where)] ^= bits
    use_all(bytes(data))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b""]), st.binary()
)
def test_any_bytes_behind_any_signature_raise_nothing_but_image_error(signature, data):
    use_all(signature + data)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 255),
)
def test_every_mode_and_size_decodes_to_rgb_of_that_size(mode, width, height, value):
    format_ = "JPEG" if mode == "CMYK" else "PNG"
    data = pictures.saved(Image.new(mode, (width, height), value if len(mode) < 3 else None), format_)
    image = decode_image(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (width, height))
    facts = inspect_image(data, LIMITS)
    assert (facts.width, facts.height) == (width, height)


@functools.cache
def big_jpeg(width: int, height: int) -> bytes:
    return pictures.jpeg(width, height)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_a_reduced_jpeg_keeps_its_shape_and_the_target(width, height, target):
    if max(width, height) > LIMITS.max_aspect * min(width, height):
        with pytest.raises(ImageError):
            decode_image(big_jpeg(width, height), LIMITS, target_side=target)
        return
    image = decode_image(big_jpeg(width, height), LIMITS, target_side=target)
    assert min(image.size) >= min(target, width, height)
    scale = next(s for s in (1, 2, 4, 8) if -(-width // s) == image.width and -(-height // s) == image.height)
    assert scale == 1 or min(width, height) // scale >= target


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 300))
def test_a_thumbnail_fits_its_bounds(width, height, wanted):
    if max(width, height) > LIMITS.max_aspect * min(width, height):
        return
    # Rounding may leave a strip a little longer than its source: 228 × 3 becomes 101 × 1.
    image = decode_image(thumbnail(big_jpeg(width, height), LIMITS, wanted), ImageLimits(max_aspect=300))
    assert image.width <= min(wanted, width)
    assert image.height <= min(4 * wanted, height)
