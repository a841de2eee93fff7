"""An opened picture's pixels: RGB, alpha over white, and which way is up."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

__all__ = ["SIDEWAYS", "TRANSPOSE", "orientation", "to_rgb"]

_WHITE = (255, 255, 255)
_STRIP_PIXELS = 2**20
_REDUCING_GAP = 3  # what is left to a resampling with antialiasing; with 3 it is as good as one from full size (Pillow)
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


def to_rgb(image: ImageFile, target_side: int | None) -> Image.Image:
    """Unpack the first frame as RGB. May return the image itself.

    Strip by strip, so that a large one is never in memory twice; with ``target_side``, each strip is averaged down as
    far as leaves three times that, but for a JPEG, which comes smaller by itself.
    """
    image.load()
    factor = 1
    if target_side is not None and not isinstance(image, JpegImagePlugin.JpegImageFile):
        factor = max(1, min(image.size) // (_REDUCING_GAP * target_side))
    if image.mode == "RGB" and "transparency" not in image.info and factor == 1:
        return image
    width, height = image.size
    rgb = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    for top in range(0, height, rows):
        strip = _as_rgb(image.crop((0, top, width, min(height, top + rows))))
        rgb.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return rgb


def _as_rgb(image: Image.Image) -> Image.Image:
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


def orientation(image: Image.Image) -> int:
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
