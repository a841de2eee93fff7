"""The door: signature, size, and the one plugin that may read what came. No pixel is unpacked here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from revln.errors import ImageError
from revln.images.headers import check_scans, early_sizes, essential_chunks
from revln.images.limits import ImageLimits, check_size
from revln.images.signature import describe, format_of

__all__ = ["open_image", "translated"]


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


def open_image(data: bytes, limits: ImageLimits) -> tuple[str, ImageFile]:
    """Read the header with the one plugin that the signature names. No pixel is unpacked."""
    name = format_of(data)
    if name is None or name not in limits.formats:
        raise ImageError(
            f"These {len(data):,} bytes are {describe(data, name)}; revln reads {', '.join(limits.formats)}. "
            "Convert the picture to one of them."
        )
    with translated(name):
        # These two plugins allocate their canvas while they open, so their headers are read by hand before that.
        for width, height in early_sizes(name, data):
            check_size(width, height, limits)
        if name == "PNG":
            data = essential_chunks(data)
        elif name == "JPEG":
            check_scans(data)
        image = _PLUGINS[name](io.BytesIO(data))
        check_size(*image.size, limits)
        if name == "BMP" and any(tile.codec_name == "bmp_rle" for tile in image.tile):
            # Pillow unpacks these in a Python loop, a turn for each pixel: a 10 kB file holds a core for 10 s.
            raise ImageError("This BMP is run-length encoded, which revln does not read. Save it as PNG.")
    return name, image


@contextmanager
def translated(name: str) -> Iterator[None]:
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
