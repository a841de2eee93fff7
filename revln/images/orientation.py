"""Which way is up: the EXIF orientation, as Pillow's `exif_transpose` reads it."""

from __future__ import annotations

import re
import struct

from PIL import Image

__all__ = ["SIDEWAYS", "TRANSPOSE", "orientation"]

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}  # orientations that exchange width and height
_ORIENTATION = 0x0112
# EXIF's types of numbers. The standard has SHORT (3) for an orientation; some writers take LONG (4) and others.
_NUMBERS = {3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q"}
_XMP = re.compile(rb'tiff:Orientation(="|>)([1-8])')


def orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8; 1 where there is none or it is damaged.

    Read by hand from the first directory, and from XMP where that has none: Pillow parses the whole block, and warns or
    raises when another tag is odd. Call it after ``load``: a PNG may carry its EXIF behind the pixels.
    """
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    found = _from_exif(exif) if isinstance(exif, bytes) else None
    if found is None and isinstance(xmp, bytes) and (named := _XMP.search(xmp)):
        found = int(named[2])
    return found if found in TRANSPOSE else 1


def _from_exif(exif: bytes) -> int | None:
    """What the tag says, if it is there; 1 for what is no orientation."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    found = None
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            at = start + 2 + 12 * entry
            tag, kind, values = struct.unpack_from(order + "HHI", tiff, at)
            if tag == _ORIENTATION:  # the last one counts, if there are several
                found = _number(tiff, order, kind, at + 8) if values == 1 else 1
    except (struct.error, ValueError, OverflowError, ZeroDivisionError):
        pass
    return found


def _number(tiff: bytes, order: str, kind: int, at: int) -> int:
    """One value, which stands at ``at`` or, if it has more than four bytes, where that points."""
    form = order + _NUMBERS.get(kind, "")
    if struct.calcsize(form) > 4:
        (at,) = struct.unpack_from(order + "I", tiff, at)
    value, *divisor = struct.unpack_from(form, tiff, at) or (1,)
    whole = value / divisor[0] if divisor else value
    return int(whole) if whole == int(whole) else 1
