"""The door: signature, size, the one plugin that may read what came, and memory for it. No pixel is unpacked here."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from revln.errors import ImageError
from revln.images.budget import held
from revln.images.colour import png_profile
from revln.images.headers import early_sizes, essential_chunks, first_frame, webp_tables_bytes
from revln.images.jpeg import Frame, read_frame
from revln.images.limits import ImageLimits, check_size
from revln.images.signature import describe, format_of

__all__ = ["Opened", "opened", "refusal"]

# Bytes that a pixel takes while it is unpacked (measured). WebP: libwebp's two canvases, and a copy of one. JPEG: the
# picture is unpacked at its final size, brought into sRGB and turned.
_PIXEL_BYTES = {"JPEG": 12, "PNG": 4, "WEBP": 12, "GIF": 4, "BMP": 4}
_REDUCTIONS = (1, 2, 4, 8)  # that libjpeg unpacks at, in the cosine domain


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's own, less the reading of the resolution from EXIF: that parses the whole block and warns when it is odd.

    Made directly, it also stays a JPEG where `Image.open` would turn a phone's picture into a multi-picture object.
    """

    def _read_dpi_from_exif(self) -> None:
        return


class _Webp(WebPImagePlugin.WebPImageFile):
    """Pillow's own, but the first frame's pixels are libwebp's bytes as they came, and libwebp is let go of at once.

    Pillow keeps both beside a copy of its own: 46 bytes that say 6,300 × 6,300 took 794 MB so, and take 450.
    """

    def load(self) -> Any:
        if self._im is None:
            data = self._get_next()[0]
            self._decoder = None
            mode = "RGBA" if self.mode == "RGBA" else "RGBX"
            self.im = Image.frombuffer(mode, self.size, data, "raw", mode, 0, 1).im
            self._mode = mode
        return Image.Image.load(self)


_PLUGINS: dict[str, type[ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": _Webp,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}


class Opened(NamedTuple):
    """``width`` and ``height`` are the file's; a JPEG's image may be smaller."""

    name: str
    width: int
    height: int
    image: ImageFile


@contextmanager
def opened(data: bytes, limits: ImageLimits, target_side: int | None) -> Iterator[Opened]:
    """Read the header with the one plugin that the signature names, and wait for memory. No pixel is unpacked.

    A big JPEG is set to come smaller, not below ``target_side``. What is raised inside leaves as an `ImageError`.
    """
    name = format_of(data)
    if name is None or name not in limits.formats:
        raise refusal(data, name, limits.formats)
    with _translated(name), ExitStack() as memory:
        if name == "JPEG":
            frame = read_frame(data)
            reduction, size_bytes = _reduction(frame, limits, target_side)
            image = _jpeg(_Watched(data, limits), frame, reduction)
            memory.enter_context(held(size_bytes, limits.memory_bytes))
            yield Opened(name, frame.width, frame.height, image)
            return
        # These two plugins allocate their canvas while they open, so their headers are read by hand before that.
        early = list(early_sizes(name, data))
        for width, height in early:
            check_size(width, height, limits)
        if early:
            canvas = max(width for width, _ in early), max(height for _, height in early)
            tables = webp_tables_bytes(data, canvas[0] * canvas[1]) if name == "WEBP" else 0
            memory.enter_context(held(_bytes_of(name, canvas, target_side) + tables, limits.memory_bytes))
        profile = png_profile(data) if name == "PNG" else None
        if name == "PNG":
            data = essential_chunks(data)
        elif name == "GIF":
            data = first_frame(data)
        image = _PLUGINS[name](_Watched(data, limits))
        check_size(*image.size, limits)
        if name == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
            # Pillow unpacks these in a Python loop, a turn for each pixel: a 10 kB file holds a core for 10 s.
            raise ImageError("This BMP is run-length encoded, which revln does not read. Save it as PNG.")
        if not early:
            memory.enter_context(held(_bytes_of(name, image.size, target_side), limits.memory_bytes))
        if profile is not None:
            image.info["icc_profile"] = profile
        yield Opened(name, *image.size, image)


def refusal(data: bytes, name: str | None, formats: tuple[str, ...]) -> ImageError:
    """Say what was sent instead of what is read."""
    return ImageError(
        f"These {len(data):,} bytes are {describe(data, name)}; revln reads {', '.join(formats)}. Convert the picture "
        "to one of them."
    )


class _Watched(io.BytesIO):
    """The bytes for a decoder, until it has taken all the processor time that it may."""

    def __init__(self, data: bytes, limits: ImageLimits) -> None:
        super().__init__(data)
        self._limit_s = limits.decode_s
        self._until = time.thread_time() + limits.decode_s

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._until:
            raise ImageError(
                f"This picture took more than {self._limit_s:g} s of a processor to decode. Save it as baseline JPEG."
            )
        return super().read(size)


def _reduction(frame: Frame, limits: ImageLimits, target_side: int | None) -> tuple[int, int]:
    """By how much each side of a JPEG is divided, and the bytes that this takes.

    Not below ``target_side``; but a picture of more than ``max_pixels`` as far as the limits demand. Raises ImageError.
    """
    width, height = frame.width, frame.height
    check_size(width, height, limits, _REDUCTIONS[-1])
    wanted = min(width, height) // target_side if target_side else 1
    least = max(one for one in _REDUCTIONS if one <= max(1, wanted))
    for reduction in _REDUCTIONS[_REDUCTIONS.index(least) :]:
        size = -(-width // reduction), -(-height // reduction)
        size_bytes = _bytes_of("JPEG", size, target_side) + frame.coefficient_bytes
        if width * height <= limits.max_pixels:  # as ever: what needs more than the budget is decoded alone
            return reduction, size_bytes
        if size[0] * size[1] <= limits.max_pixels and size_bytes <= limits.memory_bytes:
            return reduction, size_bytes
    raise ImageError(
        f"This JPEG is {width:,} × {height:,} in {frame.scans} scans: even at an eighth of its size it takes "
        f"{size_bytes:,} bytes to decode; the limit is {limits.memory_bytes:,} (REVLN_IMAGE_MEMORY_BYTES). Save it as "
        "baseline, or send a smaller copy."
    )


def _jpeg(file: _Watched, frame: Frame, reduction: int) -> ImageFile:
    image = _Jpeg(file)
    if image.size != (frame.width, frame.height):  # what was checked must be what is decoded
        raise ImageError("This JPEG says two different sizes. Save it again.")
    if reduction > 1:
        image.draft(None, (frame.width // reduction, frame.height // reduction))
    return image


def _bytes_of(name: str, size: tuple[int, int], target_side: int | None) -> int:
    return size[0] * size[1] * (_PIXEL_BYTES[name] + (4 if target_side is None else 0))


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
