"""A corpus of pictures that mean harm, or came to it, made here so that no such file is committed.

Run as a module, ``python -m tests.hostile_pictures``, it reads all of them in eight threads, as an API does that is
given them at once, and prints what became of each and what memory that took. It is a process of its own because a
peak can only be measured in one.
"""

from __future__ import annotations

import functools
import json
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFile

from revln.errors import ImageError
from revln.images import ImageLimits, decode_image, inspect_image, thumbnail
from revln.models.memory import give_back_large_blocks
from tests import pictures
from tests.memory import COUNTED, begin_peak, peak_mb

__all__ = ["LISTED", "MEDIA_TYPES", "Hostile", "corpus"]

LISTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MEDIA_TYPES = tuple(f"image/{name.lower()}" for name in LISTED)
_SEED = 20_260
_BIG = 6_300  # a side: 39.7 megapixels, just under the limit


@dataclass(frozen=True, slots=True)
class Hostile:
    """``wanted``: "error", the size as "W×H" where it must be read, or "either"."""

    name: str
    data: bytes
    wanted: str


GOOD: dict[str, Callable[[], bytes]] = {
    make.__name__: make
    for make in (
        pictures.jpeg, pictures.progressive_jpeg, pictures.rotated_jpeg, pictures.cmyk_jpeg, pictures.png,
        pictures.palette_png, pictures.transparent_png, pictures.gray16_png, pictures.webp, pictures.gif,
        pictures.animated_gif, pictures.bmp,
    )
}  # fmt: skip


def corpus() -> Iterator[Hostile]:
    """All of them, the same every time; small ones only (`heavy` has the rest)."""
    for part in (_other_formats, _cut, _flipped, _sizes, _bombs, _polyglots, _odd_but_good, _metadata, _damaged):
        yield from part()


# --- formats that are not on the list -----------------------------------------------------------------------------

# How files of formats begin that Pillow opens but cannot write.
_MAGIC: dict[str, bytes] = {
    "CUR": b"\0\0\2\0\1\0\x10\x10\0\0\1\0\x04\0", "DCX": b"\xb1\x68\xde\x3a",
    "FITS": b"SIMPLE  =                    T", "FLI": b"\x80\0\0\0\x11\xaf\1\0",
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FTEX": b"FTEX", "GBR": b"\0\0\0\x20\0\0\0\2",
    "GRIB": b"GRIB\0\0\0\1", "HDF5": b"\x89HDF\r\n\x1a\n", "BUFR": b"BUFR", "IPTC": b"\x1c\1\x5a",
    "MCIDAS": b"\0\0\0\0\0\0\0\4", "MIC": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "MPEG": b"\0\0\1\xb3", "PCD": b"PCD_",
    "PIXAR": b"\x80\xe8\0\0", "PSD": b"8BPS\0\1" + b"\0" * 6 + b"\0\3" + b"\0\1\0\0" * 2 + b"\0\x08\0\3",
    "QOI": b"qoif", "SUN": b"\x59\xa6\x6a\x95", "WMF": b"\xd7\xcd\xc6\x9a", "EMF": b"\1\0\0\0", "XPM": b"/* XPM */",
    "XVTHUMB": b"P7 332", "DIB": b"\x28\0\0\0", "SVG": pictures.svg(), "PDF": b"%PDF-1.7\n",
    "PS": b"%!PS-Adobe-3.0 EPSF-3.0\n(id) system\n", "HEIC": b"\0\0\0\x1cftypheic", "AVIF": b"\0\0\0\x1cftypavif",
    "JXL": b"\xff\x0a", "ZIP": b"PK\3\4", "GZIP": b"\x1f\x8b\x08", "ELF": b"\x7fELF", "HTML": pictures.html(),
    "PICKLE": b"\x80\4cos\nsystem\n", "MVG": b"push graphic-context\nimage over 0,0 0,0 'http://a'",
}  # fmt: skip


def _other_formats() -> Iterator[Hostile]:
    Image.init()
    image = pictures.noise(32, 32)
    for name in sorted(set(Image.SAVE) - set(LISTED)):
        for mode in ("RGB", "L", "1"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # Pillow means to drop some of them
                    data = pictures.saved(image.convert(mode), name)
            except (OSError, ValueError, KeyError, AttributeError):
                continue  # another mode, or a format that needs a program beside Pillow
            # A multi-picture object is a JPEG with others behind it, and is read as that JPEG.
            yield Hostile(f"saved as {name}", data, "32×32" if name == "MPO" else "error")
            break
    for name, magic in _MAGIC.items():
        yield Hostile(f"{name} by its first bytes", magic.ljust(2_048, b"\0"), "error")


# --- damage -------------------------------------------------------------------------------------------------------


def _cut() -> Iterator[Hostile]:
    for name, make in GOOD.items():
        data = make()
        for at in (4, 16, len(data) // 4, len(data) // 2, len(data) * 9 // 10):
            # Behind the middle all pixels may have been there: an animation's first, or a small PNG's.
            sure = at <= len(data) // 2 and "animated" not in name
            yield Hostile(f"{name} cut at {at}", data[:at], "error" if sure else "either")
        yield Hostile(f"{name} less its last byte", data[:-1], "either")


def _flipped() -> Iterator[Hostile]:
    draw = random.Random(_SEED)
    for name, make in GOOD.items():
        for number in range(4):
            data = bytearray(make())
            span = min(len(data), 100) if number % 2 else len(data)  # every other time only in the header
            for _ in range(1 + number):
                data[draw.randrange(span)] ^= 1 << draw.randrange(8)
            yield Hostile(f"{name} with {1 + number} bits flipped", bytes(data), "either")


def _damaged() -> Iterator[Hostile]:
    png = pictures.png()
    wrong = bytearray(png)
    wrong[29] ^= 1
    yield Hostile("a PNG whose header's checksum is wrong", bytes(wrong), "error")
    yield Hostile("a PNG without pixels", png[:33] + png[-12:], "error")
    yield Hostile("a PNG without header", png[:8] + png[33:], "error")
    yield Hostile("a PNG with two headers", png[:33] + png[8:], "either")
    yield Hostile("a PNG of colour type 7", _png(8, 8, colour=7), "error")
    yield Hostile("a PNG of 3 bits", _png(8, 8, depth=3), "error")
    long = pictures.png_chunk(b"PLTE", b"a" * 3_000)
    yield Hostile("a PNG with a palette of 1,000", _png(8, 8, colour=3, extra=long), "either")
    yield Hostile("a PNG whose chunk is 4 GB long", png[:33] + b"\xff\xff\xff\xffIDAT" + png[41:], "either")
    yield Hostile("a JPEG of nothing but markers", b"\xff\xd8" + b"\xff\xe0\0\2" * 50, "error")
    yield Hostile("a JPEG whose segment has no length", b"\xff\xd8\xff\xe1\0\0" + pictures.jpeg()[2:], "either")
    yield Hostile("a GIF without a picture", b"GIF89a\1\0\1\0\0\0\0;", "error")
    yield Hostile("a GIF whose code is 255 bits", b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\xff\1a\0;", "error")
    yield Hostile("a WebP of no chunks", b"RIFF\4\0\0\0WEBP", "error")
    yield Hostile("a BMP whose pixels begin past its end", _patched(pictures.bmp(), 10, "<I", 2**31), "error")
    yield Hostile("a BMP of 3 bits", _patched(pictures.bmp(), 28, "<H", 3), "error")
    yield Hostile("a BMP with a JPEG in it", _patched(pictures.bmp(), 30, "<I", 4), "error")
    yield Hostile("a run-length encoded BMP", pictures.rle_bmp(), "error")


def _patched(data: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


# --- sizes and bombs ----------------------------------------------------------------------------------------------


def _png(
    width: int, height: int, colour: int = 0, depth: int = 8, extra: bytes = b"", rows: bytes | None = None
) -> bytes:
    header = pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = zlib.compress(bytes(min(1 + width, 10**5)) * min(height, 64)) if rows is None else rows
    return (
        b"\x89PNG\r\n\x1a\n" + header + extra + pictures.png_chunk(b"IDAT", pixels) + pictures.png_chunk(b"IEND", b"")
    )


def _sizes() -> Iterator[Hostile]:
    jpeg, gif, bmp = pictures.jpeg(), pictures.gif(), pictures.bmp()
    frame = jpeg.index(b"\xff\xc0")
    for width, height in (
        (1, 65_000),
        (65_000, 1),
        (0, 0),
        (0, 40),
        (40, 0),
        (65_535, 65_535),
        (1, 65_535),
        (8_000, 8_000),
    ):
        yield Hostile(f"a PNG of {width} × {height}", _png(width, height), "error")
        # A JPEG alone can be unpacked at an eighth of what it says.
        yield Hostile(f"a JPEG of {width} × {height}", _patched(jpeg, frame + 5, ">I", height << 16 | width),
                      "8000×8000" if width == height == 8_000 else "error")  # fmt: skip
        yield Hostile(f"a GIF of {width} × {height}", _patched(gif, 6, "<I", width | height << 16), "error")
        yield Hostile(
            f"a BMP of {width} × {height}", _patched(_patched(bmp, 18, "<i", width), 22, "<i", height), "error"
        )
    yield Hostile("a PNG of 2³¹ × 2³¹", _png(2**31 - 1, 2**31 - 1), "error")
    yield Hostile("a BMP of −1 × 2³¹", _patched(_patched(bmp, 18, "<i", -1), 22, "<i", -(2**31)), "error")
    yield Hostile("a WebP of 2²⁴ × 2²⁴", pictures.webp_of_size(2**24, 2**24), "error")
    yield Hostile("a PNG of 1 × 65,000, whole", pictures.strip_png(), "error")
    yield Hostile("a PNG of 1 × 1", pictures.one_pixel_png(), "1×1")


def _bombs() -> Iterator[Hostile]:
    yield Hostile("18 kB that say 144 megapixels", pictures.bomb_png(), "error")
    yield Hostile("a GIF whose frame is 60,000 wide", pictures.wide_frame_gif(), "error")
    yield Hostile("a JPEG of 200 scans", pictures.many_scans_jpeg(), "error")
    for behind in (b"\xff\x02", b"\xff\x01", b"\xff\xff\xbf", b"\xff\xd5\xff\x4f"):
        scans = behind + b"\xff\xff" + pictures.refining_scan(3) * 1_000
        hidden = pictures.scans_jpeg(_BIG, scans, components=3)
        yield Hostile(f"a JPEG whose scans are hidden behind {behind.hex()}", hidden, "error")
    for components in (1, 3, 4) * 3:
        progressive = pictures.scans_jpeg(_BIG, components=components)
        yield Hostile(f"a progressive JPEG of one scan, {components} components", progressive, f"{_BIG}×{_BIG}")
    for first in (1, 2) * 3:
        partial = pictures.scans_jpeg(_BIG, components=3, first=first, frame=0xC0)
        yield Hostile(f"a baseline JPEG whose first scan has {first} of 3 components", partial, f"{_BIG}×{_BIG}")
    tables = pictures.webp_of_groups()
    for number in range(6):
        yield Hostile(f"a WebP of 65,536 groups of Huffman codes, again {number}", tables, "1024×1024")
    yield Hostile("102 megapixels of JPEG", pictures.scans_jpeg(10_100, components=3, frame=0xC0), "10100×10100")
    packed = zlib.compress(bytes(50 * 2**20), 9)
    for kind in (b"zTXt", b"iCCP"):
        yield Hostile(f"a PNG with 50 MB of {kind.decode()}",
                      _png(64, 48, extra=pictures.png_chunk(kind, b"a\0\0" + packed)), "64×48")  # fmt: skip
    yield Hostile(
        "a PNG with 50 MB of iTXt", _png(64, 48, extra=pictures.png_chunk(b"iTXt", b"a\0\1\0\0\0" + packed)), "64×48"
    )
    yield Hostile("a PNG whose pixels go on for 50 MB", _png(64, 48, rows=packed), "64×48")
    yield Hostile("a PNG that compresses twice", _png(64, 48, rows=zlib.compress(packed)), "error")
    for name in ("RGBA", "P", "I;16"):
        yield Hostile(f"a PNG of 40 megapixels, {name}", big_png(name), f"{_BIG}×{_BIG}")
    yield Hostile("46 bytes of WebP that are 40 megapixels", _big("RGBA", "WEBP", lossless=True, quality=0, method=0),
                  f"{_BIG}×{_BIG}")  # fmt: skip
    yield Hostile("a progressive CMYK JPEG of 40 megapixels", _big("CMYK", "JPEG", quality=30, progressive=True),
                  f"{_BIG}×{_BIG}")  # fmt: skip
    yield Hostile("a GIF of 40 megapixels", _big("P", "GIF", transparency=3), f"{_BIG}×{_BIG}")


@functools.cache
def big_png(mode: str, side: int = _BIG) -> bytes:
    colour, depth = {
        "L": (0, 8),
        "1": (0, 1),
        "I;16": (0, 16),
        "RGB": (2, 8),
        "P": (3, 8),
        "LA": (4, 8),
        "RGBA": (6, 8),
    }[mode]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    squeeze, row = zlib.compressobj(9), bytes(1 + (side * bits + 7) // 8)
    rows = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    palette = pictures.png_chunk(b"PLTE", bytes(768)) + pictures.png_chunk(b"tRNS", bytes(256)) if mode == "P" else b""
    return _png(side, side, colour, depth, palette, rows)


@functools.cache
def _big(mode: str, format_: str, **options: Any) -> bytes:
    return pictures.saved(Image.new(mode, (_BIG, _BIG)), format_, **options)


# --- more than it seems -------------------------------------------------------------------------------------------

_SCRIPT = b"<html><script>alert(document.cookie)</script></html>"
_ZIP = b"PK\5\6" + b"\0" * 18


def _polyglots() -> Iterator[Hostile]:
    for name in ("jpeg", "png", "webp", "gif", "bmp"):
        for what, tail in (
            ("a page", _SCRIPT),
            ("a ZIP", _ZIP),
            ("a script", b"*/=1;alert(1)//"),
            ("a PE file", b"MZ\x90\0PE\0\0"),
        ):
            yield Hostile(f"a {name} with {what} behind it", GOOD[name]() + tail, "64×48")
    # GIF89a/*…*/=1 is also JavaScript: its width is the comment's beginning.
    yield Hostile("a GIF that is JavaScript", b"GIF89a/*" + pictures.gif()[8:] + b"*/=1;alert(1)", "error")
    yield Hostile(
        "a PNG with a page in a comment", _png(64, 48, extra=pictures.png_chunk(b"tEXt", b"a\0" + _SCRIPT)), "64×48"
    )
    yield Hostile(
        "a JPEG with a page as comment", pictures.saved(pictures.noise(64, 48), "JPEG", comment=_SCRIPT), "64×48"
    )
    yield Hostile("a page with a PNG behind it", _SCRIPT + pictures.png(), "error")
    yield Hostile("a ZIP with a JPEG in it", b"PK\3\4" + pictures.jpeg(), "error")
    yield Hostile("a line feed before a JPEG", b"\n" + pictures.jpeg(), "error")
    yield Hostile("a JPEG with a PNG's name", pictures.jpeg(), "64×48")


def _odd_but_good() -> Iterator[Hostile]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield Hostile(f"a PNG of mode {mode}", pictures.mode_png(mode), "32×24")
    yield Hostile("16 bits, RGBA", _png(16, 16, 6, 16, rows=zlib.compress(bytes((1 + 16 * 8) * 16))), "16×16")
    yield Hostile("a CMYK JPEG", pictures.cmyk_jpeg(), "64×48")
    yield Hostile("16 bits of grey", pictures.gray16_png(256, 4), "256×4")
    frames = [Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(200)]
    for format_ in ("GIF", "PNG", "WEBP"):
        data = pictures.saved(frames[0], format_, save_all=True, append_images=frames[1:])
        yield Hostile(f"200 frames of {format_}", data, "16×16")
    for turn in range(10):
        wanted = "48×64" if turn in (5, 6, 7, 8) else "64×48"
        data = pictures.saved(pictures.noise(64, 48), "JPEG", exif=pictures.exif(turn))
        yield Hostile(f"orientation {turn}", data, wanted)


def _metadata() -> Iterator[Hostile]:
    image = pictures.noise(64, 48)
    yield Hostile(
        "64 kB of EXIF", pictures.saved(image, "JPEG", exif=(b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 65_000)), "64×48"
    )
    loop = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08"
    yield Hostile("EXIF that points at itself", pictures.saved(image, "JPEG", exif=loop), "64×48")
    yield Hostile("2 MB of ICC profile", pictures.saved(image, "JPEG", icc_profile=bytes(2_000_000)), "64×48")
    jpeg, part = pictures.jpeg(), b"\xff\xe2\0\x12ICC_PROFILE\0\1\xff\0\0"
    yield Hostile("a JPEG whose ICC profile has no end", jpeg[:2] + part + jpeg[2:], "64×48")
    text = pictures.png_chunk(b"tEXt", b"a\0" + b"b" * 1_000)
    yield Hostile("a PNG with 500 texts", _png(64, 48, extra=text * 500), "64×48")
    yield Hostile(
        "a PNG with 1 MB of iTXt",
        _png(64, 48, extra=pictures.png_chunk(b"iTXt", b"a\0\0\0\0\0" + b"\xff" * 10**6)),
        "64×48",
    )
    comment = b"!\xfe" + b"\xff" + b"c" * 255 + b"\0"
    gif = pictures.gif()
    palette = 13 + (3 << (gif[10] & 7) + 1)
    yield Hostile("a GIF with 500 comments", gif[:palette] + comment * 500 + gif[palette:], "64×48")


def heavy() -> Iterator[Hostile]:
    """As large as an upload may be: what costs time or memory by its mere length."""
    size = 25 * 2**20
    empty = pictures.png_chunk(b"IDAT", b"")
    png, gif = pictures.png(), pictures.gif()
    yield Hostile("25 MB of empty IDAT", png[:33] + empty * (size // len(empty)) + png[33:], "error")
    note = pictures.png_chunk(b"tEXt", b"")
    yield Hostile("25 MB of empty texts", png[:33] + note * (size // len(note)) + png[33:], "error")
    palette = 13 + (3 << (gif[10] & 7) + 1)
    yield Hostile("25 MB of comments of one byte", gif[:palette] + b"!\xfe\1c\0" * (size // 5) + gif[palette:], "error")
    yield Hostile(
        "25 MB of one comment", gif[:palette] + b"!\xfe" + b"\1c" * (size // 2) + b"\0" + gif[palette:], "error"
    )
    yield Hostile("25 MB of stray bytes in a GIF", gif[:palette] + b"x" * size + gif[palette:], "64×48")
    yield Hostile("25 MB of segments", b"\xff\xd8" + b"\xff\xfe\0\2" * (size // 4), "error")
    yield Hostile("25 MB of fill bytes", b"\xff\xd8" + b"\xff" * size, "error")
    yield Hostile("25 MB of restart markers", pictures.jpeg()[:-2] + b"\xff\xd0" * (size // 2) + b"\xff\xd9", "either")
    yield Hostile("25 MB of zeros behind a WebP", pictures.webp() + bytes(size), "either")


# --- the process that reads them ----------------------------------------------------------------------------------


def _read(hostile: Hostile, limits: ImageLimits) -> dict[str, str]:
    """What came of an upload, of a model that looks at it, of a thumbnail."""
    came = {}
    for use, call in {
        "inspect": lambda data: (facts := inspect_image(data, limits)) and f"{facts.width}×{facts.height}",
        "decode": lambda data: decode_image(data, limits, target_side=224).mode,
        "thumbnail": lambda data: thumbnail(data, limits, 256)[:2].hex(),
    }.items():
        try:
            came[use] = call(hostile.data)
        except ImageError as err:
            came[use] = "error: " + err.message
        except BaseException as err:
            came[use] = f"{type(err).__name__}: {err}"
    return came


def _main() -> None:
    give_back_large_blocks()  # as the API does, first of all
    plugins: set[str] = set()
    begin = ImageFile.ImageFile.__init__
    every = [*corpus(), *heavy()]

    def seen(self: ImageFile.ImageFile, *args: Any, **more: Any) -> None:
        plugins.add(self.format or "")
        begin(self, *args, **more)

    ImageFile.ImageFile.__init__ = seen  # type: ignore[method-assign]
    limits = ImageLimits()
    _read(Hostile("warm", pictures.jpeg(), ""), limits)
    before = begin_peak() if COUNTED else 0.0  # that of making them does not count
    came = []
    # The heavy ones by themselves: what they cost is copies of their own bytes, which no budget of pixels holds.
    for light in (True, False):
        with ThreadPoolExecutor(8) as pool:
            part = [one for one in every if (len(one.data) < 2**20) is light]
            came += zip(part, pool.map(lambda one: _read(one, limits), part), strict=True)
    json.dump(
        {
            "read": [{"name": one.name, "wanted": one.wanted, **what} for one, what in came],
            "plugins": sorted(plugins),
            "grown_mb": peak_mb() - before if COUNTED else 0.0,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    _main()
