"""Colour profiles: what a picture's numbers mean, turned into what they mean in sRGB."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

__all__ = ["ToSrgb", "png_profile", "to_srgb"]

_PROFILE_BYTES = 4 * 2**20  # those of printing presses take 2.7 MB
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space, and Pillow's mode of it
_SAME = 2  # of 255: what two profiles of one space differ by, as the many that are called sRGB do
_SMALL = 16_384  # bytes of a profile that is remembered: sRGB's has 3,144 and stands in most photographs
_CHUNKS = 100  # of a PNG, before its pixels


@dataclass(frozen=True, slots=True)
class ToSrgb:
    """Turns pictures of ``mode`` (RGB, L or CMYK) into RGB. Not for two threads at once."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.transform.apply(image)


def to_srgb(profile: object) -> ToSrgb | None:
    """Read an ICC profile; None if it is sRGB's (then not a pixel changes), damaged, or of another colour space."""
    if not isinstance(profile, bytes) or not profile or len(profile) > _PROFILE_BYTES:
        return None
    if len(profile) <= _SMALL and _changes_nothing(profile):
        return None
    return _transform(profile)


@lru_cache(maxsize=64)
def _changes_nothing(profile: bytes) -> bool:
    turn = _transform(profile)
    if turn is None:
        return True
    if turn.mode == "CMYK":
        return False
    channels = 3 if turn.mode == "RGB" else 1
    steps = list(product(range(0, 256, 51), repeat=channels))
    sample = np.array(steps, np.uint8).reshape(1, -1, channels)
    seen = np.asarray(turn(Image.fromarray(sample if channels == 3 else sample[..., 0])), int)
    return bool(np.abs(seen - sample).max() <= _SAME)


def _transform(profile: bytes) -> ToSrgb | None:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(given.profile.xcolor_space.strip())
        if mode is None:
            return None
        return ToSrgb(mode, ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB"))
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged: as if there were none, which is what viewers do
        return None


def png_profile(data: bytes) -> bytes | None:
    """Unpack a PNG's profile, if it has one that is not too large: Pillow would refuse the picture for that."""
    at = 8
    for _ in range(_CHUNKS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"IDAT", b"IEND", b""):
            return None
        if kind == b"iCCP":
            packed = data[at + 8 : at + 8 + length].partition(b"\0")[2][1:]
            try:
                unpacked = zlib.decompressobj().decompress(packed, _PROFILE_BYTES + 1)
            except zlib.error:
                return None
            return unpacked if len(unpacked) <= _PROFILE_BYTES else None
        at += 12 + length
    return None
