"""Pictures from strangers: what they are, and their pixels, within limits.

Nothing here leans on Pillow's global switches (``MAX_IMAGE_PIXELS``, ``warnings``): other threads share those. The
bytes choose one of five plugins by their signature, the size is checked before any pixel is unpacked, and whatever
Pillow or a codec raises leaves as an `ImageError`.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from revln.errors import ImageError, ItemInvalid

__all__ = [
    "THUMBNAIL_MEDIA_TYPE",
    "THUMBNAIL_WIDTHS",
    "ImageFacts",
    "ImageLimits",
    "decode_image",
    "inspect_image",
    "thumbnail",
]

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
THUMBNAIL_MEDIA_TYPE = "image/jpeg"  # a tenth of WebP's encoding time at these sizes, and read by everything
THUMBNAIL_WIDTHS = (16, 2048)
_THUMBNAIL_QUALITY = 82
_THUMBNAIL_TALLEST = 4  # heights; a page-long screenshot would otherwise make a 2048 × 200,000 thumbnail

_WHITE = (255, 255, 255)
# A progressive JPEG has about ten scans. Each is a pass over every block: 82 bytes cost 21 ms at 36 megapixels
# (measured), and 25 MB hold 300,000 of them.
_SCANS_MAX = 64
_SEGMENTS_MAX = 10_000  # profiles and depth maps take hundreds, of 64 KiB each
_GIF_BLOCK = re.compile(rb"[!,;]")  # extension, frame, end
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # those that begin a segment, and the end of the picture

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {5, 6, 7, 8}  # orientations that exchange width and height

# For the message only: people send these and should read what they sent.
_NOT_READ = (
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"%pdf", "a PDF"),
    (b"ii*\0", "a TIFF"),
    (b"mm\0*", "a TIFF"),
    (b"8bps", "a Photoshop file"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x00\x00\x01\x00", "an ICO"),
    (b"\xff\x0a", "a JPEG XL"),
)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is read. ``max_pixels`` is `REVLN_MAX_IMAGE_PIXELS`: at 40 M one picture takes at most 160 MB a copy.

    ``max_aspect`` is there for what follows the decoding: a model that brings the shorter side of a 1 × 65,000 strip to
    224 pixels would make a picture of 3 billion.
    """

    max_pixels: int = 40_000_000
    max_side: int = 32_768
    max_aspect: int = 100
    formats: tuple[str, ...] = tuple(MEDIA_TYPES)

    def __post_init__(self) -> None:
        unknown = set(self.formats) - set(MEDIA_TYPES)
        if unknown or not self.formats:
            raise ValueError(f"formats={self.formats!r} must be some of {', '.join(MEDIA_TYPES)}")


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
    name, image = _open(data, limits)
    with _translated(name):
        width, height = image.size
        _draft(image, 1)
        _to_rgb(image)
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
    return ImageFacts(MEDIA_TYPES[name], width, height, len(data), hashlib.sha256(data).hexdigest())


def decode_image(data: bytes, limits: ImageLimits, target_side: int | None = None) -> Image.Image:
    """Decode the first frame: RGB, upright, alpha over white, 16 bits scaled to 8, without metadata.

    With ``target_side`` a big JPEG may come at 1/2, 1/4 or 1/8 of its size, its shorter side never below that (unless
    it was to begin with). Thread-safe.

    Raises:
        ImageError: not an image of an allowed format, over a limit, or truncated.
    """
    name, image = _open(data, limits)
    with _translated(name):
        _draft(image, target_side)
        rgb = _to_rgb(image)
        method = _TRANSPOSE.get(_orientation(image))
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
    name, image = _open(data, limits)
    shorter = min(image.size)
    # Not below the shorter side of what will be asked for, whichever way round the picture turns out to be.
    rgb = decode_image(data, limits, target_side=max(1, min(shorter, width)))
    with _translated(name):
        rgb.thumbnail((width, width * _THUMBNAIL_TALLEST), Image.Resampling.LANCZOS, reducing_gap=3.0)
        out = io.BytesIO()
        rgb.save(out, "JPEG", quality=_THUMBNAIL_QUALITY)
        return out.getvalue()


# --- opening: signature, size, plugin ----------------------------------------------------------------------------


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's own, less the reading of the resolution from EXIF: that parses the whole block and warns when it is odd.

    Made directly, it also stays a JPEG where `Image.open` would turn a phone's picture into a multi-picture object.
    """

    def _read_dpi_from_exif(self) -> None:
        return


_PLUGINS: dict[str, type[ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}


def _open(data: bytes, limits: ImageLimits) -> tuple[str, ImageFile]:
    """Read the header with the one plugin that the signature names. No pixel is unpacked."""
    name = _sniff(data)
    if name is None or name not in limits.formats:
        raise ImageError(
            f"These {len(data):,} bytes are {_what(data, name)}; revln reads {', '.join(limits.formats)}. "
            "Convert the picture to one of them."
        )
    with _translated(name):
        # These two plugins allocate their canvas while they open, so their headers are read by hand before that.
        for width, height in _early_size(name, data):
            _check_size(width, height, limits)
        if name == "PNG":
            data = _essential_chunks(data)
        elif name == "JPEG":
            _check_scans(data)
        image = _PLUGINS[name](io.BytesIO(data))
        _check_size(*image.size, limits)
        if name == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
            # Pillow unpacks these in a Python loop, a turn for each pixel: a 10 kB file holds a core for 10 s.
            raise ImageError("This BMP is run-length encoded, which revln does not read. Save it as PNG.")
    return name, image


def _sniff(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def _what(data: bytes, name: str | None) -> str:
    """Name what was sent, for a message."""
    if name is not None:
        return f"a {name}, which is not among the formats allowed here"
    if not data:
        return "no picture at all"
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    head = data[:64].lower()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in _NOT_READ:
        if head.startswith(magic) or text.startswith(magic):
            return what
    return "not a picture that revln knows"


def _early_size(name: str, data: bytes) -> Iterator[tuple[int, int]]:
    """Canvas sizes of a WebP or a GIF, read by hand; nothing where the header is not as it should be."""
    if name == "GIF" and len(data) >= 13:
        yield struct.unpack_from("<HH", data, 6)
        yield from _gif_frame_size(data)
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


def _gif_frame_size(data: bytes) -> Iterator[tuple[int, int]]:
    """How far the first frame reaches: it may be larger than the screen, and then the canvas grows to it."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    # Pillow passes over stray bytes in between, so this does too.
    while (mark := _GIF_BLOCK.search(data, at)) and mark[0] == b"!":  # its kind, then blocks up to an empty one
        at = mark.end() + 1
        while data[at : at + 1] not in (b"", b"\0"):
            at += 1 + data[at]
        at += 1
    if mark and mark[0] == b"," and len(data) >= mark.end() + 8:
        left, top, width, height = struct.unpack_from("<HHHH", data, mark.end())
        yield left + width, top + height


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    size = f"This picture is {width:,} × {height:,}"
    if width < 1 or height < 1:
        raise ImageError(f"{size}: it has no pixels.")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{size} = {width * height:,} pixels; the limit is {limits.max_pixels:,} (REVLN_MAX_IMAGE_PIXELS). "
            "Send a smaller copy."
        )
    if max(width, height) > limits.max_side:
        raise ImageError(f"{size}; the limit is {limits.max_side:,} on the longer side. Send a smaller copy.")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(f"{size}; its sides may differ by {limits.max_aspect} times at most. Crop it.")


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG whose picture is cut into more scans than any encoder writes, before libjpeg makes them all."""
    scans, at = 0, 2
    for _ in range(_SEGMENTS_MAX):
        found = _JPEG_MARKER.search(data, at)
        if found is None or found[0] == b"\xff\xd9":  # the picture's end; thumbnails lie inside a segment, skipped
            return
        scans += found[0] == b"\xff\xda"
        if scans > _SCANS_MAX:
            raise ImageError(f"This JPEG has over {_SCANS_MAX} scans, the most that revln reads. Save it as baseline.")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise ImageError(f"This JPEG has over {_SEGMENTS_MAX:,} segments, the most that revln reads. Save it again.")


def _essential_chunks(data: bytes) -> bytes:
    """Keep a PNG's critical chunks, its transparency and its EXIF.

    The others are compressed texts and profiles (each a bomb of its own) and the frames of animations.
    """
    view, kept, at = memoryview(data), [data[:8]], 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if not kind[0] & 0x20 or kind in (b"tRNS", b"eXIf"):
            kept.append(bytes(view[at:end]))
        at = end
        if kind == b"IEND":
            return b"".join(kept)
    return b"".join(kept) + bytes(view[at:])


# --- pixels ------------------------------------------------------------------------------------------------------


def _draft(image: ImageFile, target_side: int | None) -> None:
    """Have libjpeg unpack 1/2, 1/4 or 1/8 of the size, in the cosine domain, where that leaves ``target_side``."""
    if target_side is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, (target_side, target_side))


def _to_rgb(image: ImageFile) -> Image.Image:
    """Unpack the first frame as RGB. May return the image itself."""
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _from_16_bits(image)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, _WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0…65,535 to 0…255. Pillow's own ``convert("RGB")`` would clip everything above 255 to white."""
    levels = np.asarray(image).clip(0, 65_535).astype(np.uint32)
    return Image.fromarray(((levels * 255 + 32_767) // 65_535).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it is damaged.

    Read by hand from the first directory: Pillow parses the whole block, and warns or raises when another tag is odd.
    Call it after ``load``: a PNG may carry its EXIF behind the pixels.
    """
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112:  # Orientation, a SHORT
                return int(value) if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn whatever Pillow and its codecs raise on bad bytes into an `ImageError`.

    Seen under fuzzing: OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, IndexError,
    OverflowError, MemoryError. The list is not closed, hence the broad except.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as err:
        reason = " ".join(str(err).split())[:160] or type(err).__name__
        raise ImageError(
            f"These bytes start as a {name} but cannot be decoded ({reason}). Send the whole, undamaged file."
        ) from err
