"""An opened picture's pixels: RGB in sRGB's colours, without alpha."""

from __future__ import annotations

import numpy as np
from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

from revln.images.colour import ToSrgb, to_srgb

__all__ = ["to_rgb"]

_STRIP_PIXELS = 2**20
_REDUCING_GAP = 3  # what is left to a resampling with antialiasing; with 3 it is as good as one from full size (Pillow)
# What transparent pictures are laid over: white, unless more than a tenth of what is visible would vanish there, as
# white shapes do; then the first on which less vanishes.
_BACKGROUNDS = (255, 0, 128)
_VANISHES = 0.1
_NEAR = 64  # of 255, in each channel
_SAMPLE_SIDE = 256
_WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")


def to_rgb(image: ImageFile, target_side: int | None) -> Image.Image:
    """Unpack the first frame as RGB in sRGB's colours. May return the image itself.

    Strip by strip, so that a large one is never in memory twice; with ``target_side``, each strip is averaged down as
    far as leaves three times that, but for a JPEG, which comes smaller by itself.
    """
    image.load()
    factor = 1
    if target_side is not None and not isinstance(image, JpegImagePlugin.JpegImageFile):
        factor = max(1, min(image.size) // (_REDUCING_GAP * target_side))
    srgb = to_srgb(image.info.get("icc_profile"))
    if image.mode == "RGB" and not _has_alpha(image) and factor == 1 and srgb is None:
        return image
    background = _background(image) if _has_alpha(image) else 255
    width, height = image.size
    rgb = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    for top in range(0, height, rows):
        strip = _as_rgb(image.crop((0, top, width, min(height, top + rows))), srgb, background)
        rgb.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return rgb


def _has_alpha(image: Image.Image) -> bool:
    return not _is_deep(image) and ("transparency" in image.info or image.mode in _WITH_ALPHA)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _as_rgb(image: Image.Image, srgb: ToSrgb | None, background: int) -> Image.Image:
    if _is_deep(image):
        return _in_srgb(_from_16_bits(image), srgb)
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        colours = image.getchannel("L") if image.mode == "LA" else rgba.convert("RGB")
        flat = Image.new("RGB", rgba.size, (background,) * 3)
        flat.paste(_in_srgb(colours, srgb), mask=rgba.getchannel("A"))
        return flat
    return _in_srgb(image, srgb)


def _in_srgb(image: Image.Image, srgb: ToSrgb | None) -> Image.Image:
    """Convert any mode to RGB; by the profile, unless that is of a space which these pixels are not in."""
    grey = "L" if image.mode in ("1", "L") else image.mode
    if srgb is not None and srgb.mode == grey:
        return srgb(image.convert(grey))
    rgb = image.convert("RGB")
    return srgb(rgb) if srgb is not None and srgb.mode == "RGB" and image.mode != "CMYK" else rgb


def _background(image: Image.Image) -> int:
    """Choose the grey level to lay a transparent picture over, by a sample of its pixels."""
    size = min(image.width, _SAMPLE_SIDE), min(image.height, _SAMPLE_SIDE)
    sample = np.asarray(image.resize(size, Image.Resampling.NEAREST).convert("RGBA")).astype(int)
    alpha = sample[..., 3]
    visible = max(1, alpha.sum())
    vanishing = {level: alpha[(abs(sample[..., :3] - level) <= _NEAR).all(-1)].sum() for level in _BACKGROUNDS}
    few = (level for level in _BACKGROUNDS if vanishing[level] <= _VANISHES * visible)
    return next(few, min(_BACKGROUNDS, key=lambda level: vanishing[level]))


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0…65,535 to 0…255. Pillow's own ``convert("RGB")`` would clip everything above 255 to white."""
    levels = np.asarray(image).clip(0, 65_535).astype(np.uint32)
    return Image.fromarray(((levels * 255 + 32_767) // 65_535).astype(np.uint8))
