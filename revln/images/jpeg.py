"""A JPEG's markers, read as libjpeg reads them: what the file will cost, before libjpeg sees a byte of it.

Where a restart marker is due, libjpeg skips an unknown marker by its two bytes alone and takes whatever marker comes
next. A reader that skips that segment by its length misses the scans inside it (`jpeg_resync_to_restart` and
`next_marker` in jdmarker.c, `read_markers` for what lies between two scans).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from revln.errors import ImageError

__all__ = ["Frame", "read_frame"]

# A progressive JPEG has about ten scans, and each is a pass over every block: 82 bytes cost 21 ms at 36 megapixels
# (measured), and 25 MB hold 300,000 of them.
_SCANS_MAX = 64
# Pixels × (scans + _READING): ten scans of 76 megapixels, one of 250. What costs most of it took 1.0 s (measured).
_WORK_MAX = 1_000_000_000
_READING = 3  # what reading takes besides its scans: unpacking, colours, the picture itself
_SEGMENTS_MAX = 10_000  # profiles and depth maps take hundreds, of 64 KiB each
_FILL_MAX = 100_000  # bytes between two segments: Pillow reads them one by one, 25 MB in 15 s
# Before the first scan: every marker that libjpeg does not skip by its two bytes.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
# Inside a scan: those that end it. The others (reserved ones below C0, restarts) are skipped by their two bytes.
# Between two scans libjpeg refuses those; to skip them there too counts only scans that it never reads.
_END_OF_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_EOI, _SOS = 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: Huffman-coded all
_OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PROGRESSIVE = 0xC2
_WITH_LENGTH = (0xC4, 0xCC, *range(0xDB, 0xDE), *range(0xE0, 0xF0), 0xFE)  # tables, DNL, DRI, APPn, comments
_COEFFICIENT_BYTES = 128  # of a block of 8 × 8


@dataclass(frozen=True, slots=True)
class Frame:
    """``coefficient_bytes``: what libjpeg keeps of a picture in several scans, at full size however small it comes."""

    width: int
    height: int
    scans: int
    coefficient_bytes: int


def read_frame(data: bytes) -> Frame:
    """Read a JPEG's size and count its scans.

    Raises:
        ImageError: it has none, more than any encoder writes, or is in a coding that is not read.
    """
    frame, marker, scans, in_first, at = b"", 0, 0, 0, 2
    for _ in range(_SEGMENTS_MAX):
        found = (_END_OF_SCAN if scans else _MARKER).search(data, at)
        if not scans and (found.start() if found else len(data)) - at > _FILL_MAX:
            raise ImageError(f"This JPEG has over {_FILL_MAX:,} stray bytes before its picture. Save it again.")
        if found is None:
            break
        kind, start = found[0][1], found.end()
        if kind == _EOI:
            if scans:
                break
            at = start  # tables alone: libjpeg goes on to the picture
            continue
        at = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        if kind in _FRAMES:
            if frame:
                raise ImageError("This JPEG has two frame headers, and only one can hold. Save it again.")
            frame, marker = data[start:at], kind
        elif kind == _SOS:
            in_first = in_first or (data[start + 2] if start + 2 < len(data) else 0)
            scans += 1
            if scans > _SCANS_MAX:
                raise ImageError(
                    f"This JPEG has over {_SCANS_MAX} scans, the most that revln reads. Save it as baseline."
                )
        elif kind not in _WITH_LENGTH:
            raise ImageError(_unread(kind))
    else:
        raise ImageError(f"This JPEG has over {_SEGMENTS_MAX:,} segments, the most that revln reads. Save it again.")
    return _frame(frame, scans, in_first, progressive=marker == _PROGRESSIVE)


def _unread(kind: int) -> str:
    if kind in _OTHER_FRAMES:
        return (
            "This JPEG is arithmetic-coded, lossless or hierarchical, which browsers do not read. Save it as baseline."
        )
    return f"This JPEG cannot be decoded: it has a marker FF {kind:02X}, which is reserved. Save it again."


def _frame(header: bytes, scans: int, in_first: int, *, progressive: bool) -> Frame:
    """Check a frame's header, which begins with its length, against what its scans cost."""
    try:
        _, _, height, width, count = struct.unpack_from(">HBHHB", header)
        sampling = [(header[9 + 3 * n] >> 4, header[9 + 3 * n] & 15) for n in range(count)]
        widest, tallest = max(h for h, _ in sampling), max(v for _, v in sampling)
        blocks = sum(_blocks(width, h, widest) * _blocks(height, v, tallest) for h, v in sampling)
    except (struct.error, IndexError, ValueError, ZeroDivisionError):
        raise ImageError(
            "This JPEG cannot be decoded: it has no frame, or a damaged one. Send the whole file."
        ) from None
    if width * height * (scans + _READING) > _WORK_MAX:
        raise ImageError(
            f"This JPEG is {width:,} × {height:,} in {scans} scans: each is a pass over all of it, and pixels × "
            f"(scans + {_READING}) may be {_WORK_MAX:,} at most. Save it as baseline, or send a smaller copy."
        )
    kept = progressive or in_first < count  # libjpeg's has_multiple_scans
    return Frame(width, height, scans, blocks * _COEFFICIENT_BYTES if kept else 0)


def _blocks(side: int, factor: int, largest: int) -> int:
    """Blocks of a component on one side, as many as fill whole units of its sampling factor."""
    whole = -(-side * factor // (largest * 8))
    return -(-whole // factor) * factor
