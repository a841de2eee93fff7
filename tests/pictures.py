"""Functions that make pictures in memory, good ones and hostile ones, so that no binary file is committed."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

__all__ = [
    "animated_gif",
    "bmp",
    "bomb_png",
    "cmyk_jpeg",
    "exif",
    "exif_number",
    "gif",
    "gray16_png",
    "html",
    "icc_profile",
    "jpeg",
    "many_scans_jpeg",
    "mode_png",
    "not_an_image",
    "one_pixel_png",
    "palette_png",
    "png",
    "png_chunk",
    "png_of_size",
    "polyglot",
    "progressive_jpeg",
    "quadrants",
    "refining_scan",
    "rle_bmp",
    "rotated_jpeg",
    "scans_jpeg",
    "strip_png",
    "svg",
    "tiff",
    "transparent_png",
    "truncated_jpeg",
    "webp",
    "webp_of_groups",
    "webp_of_size",
    "wide_frame_gif",
]

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 200, 20), (20, 20, 220), (230, 220, 20)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """RGB, smooth enough that a JPEG of it stays close."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 16 + 1), max(1, width // 16 + 1), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red top left, green top right, blue bottom left, yellow bottom right: shows any turn or flip."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def jpeg(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "JPEG", quality=90)


def progressive_jpeg(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "JPEG", progressive=True)


def png(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "PNG")


def webp(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "WEBP")


def bmp(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "BMP")


def gif(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "GIF")


def tiff(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    return saved(noise(width, height, seed), "TIFF")


def exif(orientation: int, order: str = ">") -> bytes:
    """An EXIF block with an orientation and a description, in either byte order."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    about = b"a holiday at 52.5N 13.4E\0"
    entries = struct.pack(order + "HHII", 0x010E, 2, len(about), 38) + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    return b"Exif\0\0" + head + struct.pack(order + "H", 2) + entries + struct.pack(order + "I", 0) + about


def exif_number(kind: int, value: bytes, order: str = ">", count: int = 1) -> bytes:
    """An EXIF block whose orientation has any type (`kind`); a value of more than four bytes stands behind."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, count)
    field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", 26)
    return b"Exif\0\0" + head + field + struct.pack(order + "I", 0) + (value if len(value) > 4 else b"")


PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))


def icc_profile(gamma: float = 1.8, primaries: tuple[tuple[float, float, float], ...] = PROPHOTO) -> bytes:
    """A matrix profile (ICC version 2): ProPhoto, or with no ``primaries`` one of grey."""
    fixed = lambda *numbers: struct.pack(f">{len(numbers)}i", *(round(65_536 * one) for one in numbers))  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(256 * gamma), 0)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)}
    if primaries:
        tags |= {b"%cXYZ" % c: b"XYZ \0\0\0\0" + fixed(*one) for c, one in zip(b"rgb", primaries, strict=True)}
        tags |= {b"%cTRC" % c: curve for c in b"rgb"}
    else:
        tags[b"kTRC"] = curve
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ") + b"\0" * 12
    head += b"acsp" + b"\0" * 28 + fixed(0.9642, 1.0, 0.8249) + b"\0" * 48
    return head + table + body


def rotated_jpeg(orientation: int = 6, width: int = 64, height: int = 48, order: str = ">") -> bytes:
    """Stored so that a viewer who follows the orientation sees `quadrants(width, height)`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = quadrants(width, height)
    if orientation in undo:
        image = image.transpose(undo[orientation])
    return saved(image, "JPEG", quality=95, exif=exif(orientation, order))


def cmyk_jpeg(width: int = 64, height: int = 48) -> bytes:
    return saved(quadrants(width, height).convert("CMYK"), "JPEG", quality=95)


def gray16_png(width: int = 256, height: int = 4) -> bytes:
    """A ramp from 0 to 65,535, left to right."""
    ramp = np.linspace(0, 65_535, width).round().astype(np.uint16)
    return saved(Image.fromarray(np.tile(ramp, (height, 1))), "PNG")


def transparent_png(width: int = 64, height: int = 48) -> bytes:
    """Red; the left half fully transparent."""
    image = Image.new("RGBA", (width, height), (*RED, 255))
    image.paste((*RED, 0), (0, 0, width // 2, height))
    return saved(image, "PNG")


def palette_png(width: int = 64, height: int = 48) -> bytes:
    """Quadrants with a palette; red is transparent (one alpha byte for each colour, not only an index)."""
    image = quadrants(width, height).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    red = image.getpixel((0, 0))
    return saved(image, "PNG", transparency=bytes(0 if index == red else 255 for index in range(4)))


def mode_png(mode: str, width: int = 32, height: int = 24) -> bytes:
    """A PNG in any of the modes that PNG can hold: 1, L, LA, P, RGB, RGBA, I;16."""
    if mode == "I;16":
        return gray16_png(width, height)
    return saved(quadrants(width, height).convert(mode), "PNG")


def animated_gif(width: int = 64, height: int = 48) -> bytes:
    """Three frames: red, green, blue."""
    frames = [Image.new("RGB", (width, height), colour) for colour in (RED, GREEN, BLUE)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def one_pixel_png() -> bytes:
    return saved(Image.new("RGB", (1, 1), RED), "PNG")


def truncated_jpeg(keep: float = 0.6) -> bytes:
    data = jpeg(320, 240)
    return data[: int(len(data) * keep)]


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png_of_size(width: int, height: int, extra: bytes = b"") -> bytes:
    """A whole 1-bit grey PNG that is small however large it says it is; ``extra`` chunks stand before the pixels."""
    squeeze = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)
    rows = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def bomb_png() -> bytes:
    """About 20 kB that would unpack to 144 million pixels."""
    return png_of_size(12_000, 12_000)


def strip_png() -> bytes:
    """1 × 65,000."""
    return png_of_size(1, 65_000)


def webp_of_size(width: int, height: int) -> bytes:
    """Only a header, which says that the canvas is this large (up to 2^24 a side)."""
    body = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def webp_of_groups(side: int = 1_024, groups: int = 65_536) -> bytes:
    """A lossless WebP whose blocks of 4 × 4 pixels have Huffman codes of their own: tables take most of its memory."""
    bits: list[tuple[int, int]] = []

    def put(*pairs: tuple[int, int]) -> None:
        bits.extend(pairs)

    simple = [(1, 1), (0, 1), (0, 1), (0, 1)]  # one symbol, which takes no bit
    every = [(0, 1), (8, 4), *[(0, 3)] * 11, (1, 3), (1, 1), (3, 3), (254, 8)]  # 256 symbols of 8 bits
    put((0x2F, 8), (side - 1, 14), (side - 1, 14), (1, 1), (0, 3))
    put((0, 1), (0, 1), (1, 1), (0, 3))  # no transforms, no cache, groups by blocks of 4 × 4
    put((0, 1), *every, *every, *simple * 3)
    for block in range((-(-side // 4)) ** 2):
        number = block % groups
        put((int(f"{number & 255:08b}"[::-1], 2), 8), (int(f"{number >> 8:08b}"[::-1], 2), 8))
    put(*simple * 5 * groups, (0, 64))
    text = "".join(format(value, f"0{size}b")[::-1] for value, size in bits)
    text += "0" * (-len(text) % 16)
    body = int(text[::-1], 2).to_bytes(len(text) // 8, "little")
    chunk = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk


def wide_frame_gif(side: int = 60_000) -> bytes:
    """A small screen with a vast first frame, which is to be cleared: Pillow allocates that while it opens."""
    control = b"!\xf9\x04" + bytes((2 << 2, 0, 0, 0)) + b"\0"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
        + b"\0"
        + control
        + b"\0,"
        + struct.pack("<HHHHB", 0, 0, side, side, 0)
    )


def many_scans_jpeg(scans: int = 200) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition costs a pass over the whole picture."""
    data = saved(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xc4") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(payload)) + payload


def refining_scan(components: int = 1) -> bytes:
    """A scan that needs no table: one more bit of every block's mean. Ten bytes that are a pass over the picture."""
    which = b"".join(bytes((1 + n, 0)) for n in range(components))
    return _segment(0xDA, bytes((components,)) + which + b"\0\0\x10")


def scans_jpeg(
    side: int, more: bytes = b"", *, components: int = 1, first: int = 0, frame: int = 0xC2, width: int = 0
) -> bytes:
    """A JPEG by hand, grey all over, with restart markers due at every block.

    ``more`` stands behind the data of its only scan, in which ``first`` components are (0: all). ``frame`` is its
    coding's marker; C2 is progressive. ``width`` of 0 is ``side``.
    """
    first, is_first = first or components, frame == 0xC2
    scan = b"".join(bytes((1 + n, 0)) for n in range(first)) + (b"\0\0\1" if is_first else b"\0\x3f\0")
    layers = b"".join(bytes((1 + n, 0x11, 0)) for n in range(components))
    table = bytes((1, *[0] * 15, 0))  # one code, of one bit, for nothing
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xDB, b"\0" + b"\x10" * 64),
            _segment(frame, struct.pack(">BHHB", 8, side, width or side, components) + layers),
            _segment(0xC4, b"\0" + table + b"\x10" + table),
            _segment(0xDD, b"\0\1"),
            _segment(0xDA, bytes((first,)) + scan) + b"\0",
            more + b"\xff\xd9",
        )
    )


def rle_bmp(width: int = 16, height: int = 16) -> bytes:
    """A run-length encoded BMP, which Pillow unpacks one pixel at a time, in Python."""
    palette = b"".join(bytes((index, 0, 255 - index, 0)) for index in range(256))
    pixels = (bytes((width, 7)) + b"\0\0") * height + b"\0\1"
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + info + palette + pixels


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'


def html() -> bytes:
    return b"\n<!DOCTYPE html><html><body>404 not found</body></html>"


def polyglot() -> bytes:
    """A good JPEG with a page and a ZIP archive behind it."""
    return jpeg() + b"<html><script>alert(1)</script></html>" + b"PK\x05\x06" + b"\0" * 18


def not_an_image() -> bytes:
    return bytes(np.random.default_rng(7).integers(0, 256, 4096, dtype=np.uint8))
