"""What a JPEG will cost, read off its markers as libjpeg reads them."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from revln.errors import ImageError
from revln.images import ImageLimits, budget, decode_image, inspect_image, opening
from revln.images.jpeg import read_frame
from tests import pictures

LIMITS = ImageLimits()
BIG = 6_300
# What libjpeg passes over by two bytes where a restart marker is due, and revln took for a segment with a length.
PASSED_OVER = [b"\xff\x02", b"\xff\x01", b"\xff\xbf", b"\xff\xff\x02", b"\xff\x02\xff\x03", b"\xff\xd5\xff\x4f"]


def hidden(scan: bytes, times: int, behind: bytes = b"\xff\x02", length: int = 0xFFFF) -> bytes:
    return behind + struct.pack(">H", length) + scan * times


@pytest.mark.parametrize("behind", PASSED_OVER)
def test_scans_hidden_behind_a_marker_that_libjpeg_passes_over_are_counted(behind):
    # This scan makes the first block lighter: that the picture changes is libjpeg's word that it is read.
    bits = pictures.refining_scan() + b"\x80"
    plain, seen = pictures.scans_jpeg(64), pictures.scans_jpeg(64, hidden(bits, 1, behind))
    assert decode_image(plain, LIMITS).tobytes() != decode_image(seen, LIMITS).tobytes()
    assert (read_frame(plain).scans, read_frame(seen).scans) == (1, 2)
    for times in (64, 250, 3_000):
        with pytest.raises(ImageError, match="over 64 scans"):
            read_frame(pictures.scans_jpeg(64, hidden(pictures.refining_scan(), times, behind)))


@pytest.mark.parametrize("length", [0, 2, 12, 0xFFFF])
@pytest.mark.parametrize("components", [1, 3, 4])
@pytest.mark.parametrize("side", [2_000, BIG, 8_000])
def test_a_few_kilobytes_of_hidden_scans_are_refused_at_once(side, components, length):
    data = pictures.scans_jpeg(
        side, hidden(pictures.refining_scan(components), 500, length=length), components=components
    )
    assert len(data) < 9_000
    start = time.monotonic()
    with pytest.raises(ImageError, match="scans"):
        inspect_image(data, LIMITS)
    assert time.monotonic() - start < 1  # a deadline for hangs: it took 4 to 13 s


def test_scans_are_charged_by_the_pixels_that_they_pass_over():
    scans = pictures.refining_scan() * 30
    assert inspect_image(pictures.scans_jpeg(5_000, scans), LIMITS).width == 5_000
    with pytest.raises(ImageError, match=r"6,300 × 6,300 in 31 scans: .* 1,000,000,000 at most"):
        inspect_image(pictures.scans_jpeg(BIG, scans), LIMITS)


def test_a_segments_own_bytes_are_no_markers_and_what_is_behind_the_end_is_not_read():
    thumbnail = pictures.progressive_jpeg(32, 32)
    with_thumbnail = pictures.saved(pictures.noise(64, 48), "JPEG", comment=thumbnail * 20)
    assert read_frame(with_thumbnail).scans == 1
    assert read_frame(pictures.jpeg() + thumbnail * 20).scans == 1
    assert read_frame(thumbnail).scans == 10


@pytest.mark.parametrize(
    ("data", "components"),
    [
        (pictures.scans_jpeg(BIG), 1),
        (pictures.scans_jpeg(BIG, components=3), 3),
        (pictures.scans_jpeg(BIG, components=4), 4),
        (pictures.scans_jpeg(BIG, components=3, first=1, frame=0xC0), 3),
        (pictures.scans_jpeg(BIG, components=3, first=2, frame=0xC1), 3),
    ],
    ids=["progressive of one scan", "colour", "CMYK", "baseline whose first scan lacks two", "extended that lacks one"],
)
def test_what_libjpeg_keeps_of_a_picture_is_charged_whatever_the_number_of_its_scans(data, components, monkeypatch):
    charged = []
    monkeypatch.setattr(opening, "held", lambda size, most: charged.append(size) or budget.held(size, most))
    inspect_image(data, LIMITS)
    assert charged[0] > 2 * components * BIG**2
    with pytest.raises(ImageError, match="REVLN_IMAGE_MEMORY_BYTES"):  # the larger ones are not decoded for it at all
        inspect_image(data, ImageLimits(max_pixels=BIG**2 - 1, memory_bytes=2 * components * BIG**2))


def test_a_whole_baseline_picture_is_charged_no_coefficients():
    assert read_frame(pictures.scans_jpeg(BIG, components=3, frame=0xC0)).coefficient_bytes == 0
    assert read_frame(pictures.jpeg(640, 480)).coefficient_bytes == 0


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_coefficients_are_counted_by_the_components_own_sizes(subsampling):
    data = pictures.saved(pictures.noise(1_000, 600), "JPEG", progressive=True, subsampling=subsampling)
    blocks = {0: 3 * 125 * 75, 1: 126 * 75 + 2 * 63 * 75, 2: 126 * 76 + 2 * 63 * 38}[subsampling]
    assert read_frame(data).coefficient_bytes == 128 * blocks


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCF])
def test_codings_that_nobody_reads_are_refused_by_name(frame):
    with pytest.raises(ImageError, match="arithmetic-coded, lossless or hierarchical"):
        inspect_image(pictures.scans_jpeg(64, frame=frame), LIMITS)


def test_two_sizes_in_one_file_are_refused():
    small, large = pictures.scans_jpeg(64), pictures.scans_jpeg(3_000)
    frame = large[large.index(b"\xff\xc2") : large.index(b"\xff\xc4")]
    at = small.index(b"\xff\xc4")
    with pytest.raises(ImageError, match="two frame headers"):
        inspect_image(small[:at] + frame + small[at:], LIMITS)


@pytest.mark.parametrize(("width", "height"), [(8_064, 6_048), (9_504, 6_336), (6_336, 9_504), (11_264, 8_448)])
def test_photographs_of_48_to_95_megapixels_are_read_at_a_reduced_size(width, height):
    data = pictures.scans_jpeg(height, components=3, frame=0xC0, width=width)
    facts = inspect_image(data, LIMITS)
    assert (facts.width, facts.height) == (width, height)
    whole = decode_image(data, LIMITS)
    assert whole.size == (width // 2, height // 2)
    assert decode_image(data, LIMITS, target_side=700).size == (width // 8, height // 8)


def test_a_reduced_photograph_is_the_picture_and_stays_within_the_budget(monkeypatch):
    charged = []
    monkeypatch.setattr(opening, "held", lambda size, most: charged.append(size) or budget.held(size, most))
    limits = ImageLimits(max_pixels=200_000, memory_bytes=4_000_000)
    for progressive in (False, True):
        image = pictures.quadrants(800, 600)
        data = pictures.saved(image, "JPEG", quality=95, progressive=progressive, exif=pictures.exif(6))
        got = decode_image(data, limits)
        assert got.size == (300, 400)
        wanted = np.asarray(image.transpose(Image.Transpose.ROTATE_270).resize(got.size), int)
        assert np.abs(np.asarray(got, int) - wanted).mean() < 3
        assert max(charged) <= limits.memory_bytes


def test_a_photograph_that_costs_too_much_is_refused_with_the_way_out():
    with pytest.raises(ImageError, match=r"in 1 scans: .*Save it as baseline"):
        inspect_image(pictures.scans_jpeg(11_000, components=4), LIMITS)
    with pytest.raises(ImageError, match="in 1 scans"):
        inspect_image(pictures.scans_jpeg(16_000, components=3, frame=0xC0), LIMITS)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF"])
def test_a_decoder_that_asks_for_more_after_its_time_is_stopped(format_):
    data = io.BytesIO()
    Image.effect_noise((1_500, 1_500), 100).convert("RGB").save(data, format_)
    assert inspect_image(data.getvalue(), LIMITS).width == 1_500
    with pytest.raises(ImageError, match=r"took more than 0\.0001 s"):
        inspect_image(data.getvalue(), ImageLimits(decode_s=1e-4))
