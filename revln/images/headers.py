"""PNG, GIF and WebP read by hand before Pillow sees them: what a codec would spend time or memory on unasked."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from revln.errors import ImageError

__all__ = ["early_sizes", "essential_chunks", "first_frame", "webp_tables_bytes"]

# Encoders write chunks of 8 KiB. Each is a turn of a Python loop here and in Pillow, and 25 MB hold two million.
_CHUNKS_MAX = 100_000
_WEBP_CHUNKS_MAX = 100  # before the first frame's pixels
_BLOCKS_MAX = 100_000  # of a GIF before its first picture, of 255 bytes each: 25 MB
# Of lossless WebP: a block of 4 × 4 pixels may have a group of five Huffman codes of its own, 65,536 groups in all. A
# group takes 20 bits of the file and up to 12 kB of tables: 295 kB that are one megapixel took 364 MB (measured).
_GROUP_BITS, _GROUP_BYTES, _GROUPS_MAX, _BLOCK_PIXELS = 20, 12_000, 65_536, 16
_GIF_BLOCK = re.compile(rb"[!,;]")  # extension, frame, end


def early_sizes(name: str, data: bytes) -> Iterator[tuple[int, int]]:
    """Canvas sizes of a WebP or a GIF, read by hand; nothing where the header is not as it should be."""
    if name == "GIF" and len(data) >= 13:
        yield struct.unpack_from("<HH", data, 6)
        # How far the first frame reaches: it may be larger than the screen, and then the canvas grows to it.
        _, frame = _before_first_frame(data)
        if frame is not None and len(data) >= frame + 9:
            left, top, width, height = struct.unpack_from("<HHHH", data, frame + 1)
            yield left + width, top + height
    elif name == "WEBP" and len(data) >= 30:
        chunk = data[12:16]
        if chunk == b"VP8X":
            yield 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        elif chunk == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            yield 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            yield width & 0x3FFF, height & 0x3FFF


def webp_tables_bytes(data: bytes, pixels: int) -> int:
    """Bound what libwebp's tables take for the first frame's lossless data, its colours or its alpha."""
    at, packed = 12, 0
    for _ in range(_WEBP_CHUNKS_MAX):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"ANMF":  # a frame, which holds chunks again
            at += 24
            continue
        if kind in (b"VP8L", b"ALPH"):
            packed = max(packed, min(size, len(data)))
        if kind in (b"VP8L", b"VP8 "):
            break
        at += 8 + size + (size & 1)
    else:
        packed = len(data)
    return _GROUP_BYTES * min(_GROUPS_MAX, pixels // _BLOCK_PIXELS, packed * 8 // _GROUP_BITS)


def _before_first_frame(data: bytes) -> tuple[bytes, int | None]:
    """The graphic controls before a GIF's first frame, and where that begins; None: it has no frame."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    controls, blocks = [], 0
    # Pillow passes over stray bytes in between, so this does too.
    while (mark := _GIF_BLOCK.search(data, at)) and mark[0] == b"!":  # its kind, then blocks up to an empty one
        at = mark.end() + 1
        while data[at : at + 1] not in (b"", b"\0"):
            at += 1 + data[at]
            blocks += 1
            if blocks > _BLOCKS_MAX:
                raise ImageError(f"This GIF has over {_BLOCKS_MAX:,} blocks before its first picture. Save it again.")
        at += 1
        if data[mark.end()] == 0xF9:
            controls.append(data[mark.start() : at])
    return b"".join(controls), mark.start() if mark and mark[0] == b"," else None


def first_frame(data: bytes) -> bytes:
    """Leave out a GIF's comments, texts and application data; what follows the first frame is never read."""
    controls, frame = _before_first_frame(data)
    if frame is None:
        return data  # Pillow says what is wrong with it
    palette = 3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0
    return data[: 13 + palette] + controls + data[frame:]


def essential_chunks(data: bytes) -> bytes:
    """Keep a PNG's critical chunks, its transparency and its EXIF.

    The others are compressed texts and profiles (each a bomb of its own) and the frames of animations.
    """
    view, kept, at, chunks = memoryview(data), [data[:8]], 8, 0
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if not kind[0] & 0x20 or kind in (b"tRNS", b"eXIf"):
            kept.append(bytes(view[at:end]))
        at = end
        if kind == b"IEND":
            return b"".join(kept)
        chunks += 1
        if chunks > _CHUNKS_MAX:
            raise ImageError(f"This PNG has over {_CHUNKS_MAX:,} chunks, the most that revln reads. Save it again.")
    return b"".join(kept) + bytes(view[at:])
