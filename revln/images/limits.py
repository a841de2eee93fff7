"""What is read: the formats, and how large a picture may be."""

from __future__ import annotations

from dataclasses import dataclass

from revln.errors import ImageError

__all__ = ["MEDIA_TYPES", "ImageLimits", "check_size"]

# What cameras, phones, browsers and screenshots write. Not TIFF: libtiff is the codec with the longest list of security
# advisories, and a TIFF may hold anything. Not SVG, PDF or EPS: those are programs. Not AVIF: its plugin hands the
# whole file to the decoder before a size can be checked.
MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is read. ``max_pixels`` is `REVLN_MAX_IMAGE_PIXELS`: at 40 M one picture takes at most 160 MB a copy.

    It holds for what is unpacked: a larger JPEG is unpacked at 1/2, 1/4 or 1/8 of its size, if all that this takes
    (`revln.images.jpeg`) is within ``memory_bytes``.

    ``memory_bytes`` is `REVLN_IMAGE_MEMORY_BYTES`, for all that a process decodes at once; what needs more waits to be
    decoded alone.

    ``max_aspect`` is there for what follows the decoding: a model that brings the shorter side of a 1 × 65,000 strip to
    224 pixels would make a picture of 3 billion.

    ``decode_s`` is processor time, so that a busy machine refuses nothing. What holds first are the limits on what a
    file costs; this one is for what they do not foresee, and is looked at whenever a decoder asks for more bytes.
    """

    max_pixels: int = 40_000_000
    max_side: int = 32_768
    max_aspect: int = 100
    memory_bytes: int = 400_000_000
    decode_s: float = 10.0
    formats: tuple[str, ...] = tuple(MEDIA_TYPES)

    def __post_init__(self) -> None:
        unknown = set(self.formats) - set(MEDIA_TYPES)
        if unknown or not self.formats:
            raise ValueError(f"formats={self.formats!r} must be some of {', '.join(MEDIA_TYPES)}")


def check_size(width: int, height: int, limits: ImageLimits, reduction: int = 1) -> None:
    """Refuse, as an `ImageError`, what has no pixels or too many, a side too long, or sides too far apart.

    ``reduction``: by how much each side may be divided while the picture is unpacked.
    """
    size = f"This picture is {width:,} × {height:,}"
    if width < 1 or height < 1:
        raise ImageError(f"{size}: it has no pixels.")
    most = limits.max_pixels * reduction**2
    if width * height > most:
        raise ImageError(
            f"{size} = {width * height:,} pixels; the limit is {most:,} (REVLN_MAX_IMAGE_PIXELS). Send a smaller copy."
        )
    if max(width, height) > limits.max_side:
        raise ImageError(f"{size}; the limit is {limits.max_side:,} on the longer side. Send a smaller copy.")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(f"{size}; its sides may differ by {limits.max_aspect} times at most. Crop it.")
