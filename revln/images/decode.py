"""What others ask of a picture: its facts, its pixels, a thumbnail."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from revln.errors import ItemInvalid
from revln.images.limits import MEDIA_TYPES, ImageLimits
from revln.images.opening import opened, refusal
from revln.images.orientation import SIDEWAYS, TRANSPOSE, orientation
from revln.images.pixels import to_rgb
from revln.images.signature import format_of

__all__ = [
    "THUMBNAIL_MEDIA_TYPE",
    "THUMBNAIL_WIDTHS",
    "ImageFacts",
    "decode_image",
    "inspect_image",
    "media_type_of",
    "thumbnail",
]

THUMBNAIL_MEDIA_TYPE = "image/jpeg"  # a tenth of WebP's encoding time at these sizes, and read by everything
THUMBNAIL_WIDTHS = (16, 2048)
_THUMBNAIL_QUALITY = 82
_INSPECTED_SIDE = 16  # nothing is looked at: as small as decoding comes cheapest
_THUMBNAIL_TALLEST = 4  # heights; a page-long screenshot would otherwise make a 2048 × 200,000 thumbnail


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """``width`` and ``height`` are those that a viewer sees: after the EXIF orientation."""

    media_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str


def inspect_image(data: bytes, limits: ImageLimits) -> ImageFacts:
    """Say what these bytes are, having decoded them once (JPEGs at an eighth), so that no later decoding can fail.

    Raises:
        ImageError: not an image of an allowed format, over a limit, or truncated.
    """
    with opened(data, limits, _INSPECTED_SIDE) as (name, width, height, image):
        to_rgb(image, _INSPECTED_SIDE)
        seen = (height, width) if orientation(image) in SIDEWAYS else (width, height)
    return ImageFacts(MEDIA_TYPES[name], *seen, len(data), hashlib.sha256(data).hexdigest())


def media_type_of(data: bytes) -> str:
    """Name the format that these bytes begin as; nothing is decoded. Raises ImageError if it is none that is read."""
    name = format_of(data)
    if name is None:
        raise refusal(data, None, tuple(MEDIA_TYPES))
    return MEDIA_TYPES[name]


def decode_image(data: bytes, limits: ImageLimits, target_side: int | None = None) -> Image.Image:
    """Decode the first frame: RGB in sRGB's colours, upright, without alpha and metadata, 16 bits scaled to 8.

    With ``target_side`` a big JPEG may come at 1/2, 1/4 or 1/8 of its size, its shorter side never below that (unless
    it was to begin with); another picture at any whole fraction, never below three times that. Thread-safe; large
    pictures wait for each other (`ImageLimits.memory_bytes`).

    Raises:
        ImageError: not an image of an allowed format, over a limit, or truncated.
    """
    with opened(data, limits, target_side) as (_, _, _, image):
        rgb = to_rgb(image, target_side)
        method = TRANSPOSE.get(orientation(image))
        upright = rgb.transpose(method) if method is not None else rgb
        if upright is image:  # an RGB file as it came; a copy leaves the file, its EXIF and its profile behind
            upright = image.copy()
        upright.info = {}
        return upright


def thumbnail(data: bytes, limits: ImageLimits, width: int) -> bytes:
    """Encode a JPEG (`THUMBNAIL_MEDIA_TYPE`) at most ``width`` pixels wide and four times as tall; never enlarged.

    Raises:
        ImageError: as for `decode_image`.
        ItemInvalid: ``width`` is outside 16 to 2048.
    """
    least, most = THUMBNAIL_WIDTHS
    if not least <= width <= most:
        raise ItemInvalid(f"A thumbnail {width} pixels wide cannot be made: ask for {least} to {most}.")
    # The shorter side of what is asked for is at most the width, whichever way round the picture turns out to be.
    rgb = decode_image(data, limits, target_side=width)
    rgb.thumbnail((width, width * _THUMBNAIL_TALLEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    rgb.save(out, "JPEG", quality=_THUMBNAIL_QUALITY)
    return out.getvalue()
