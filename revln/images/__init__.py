"""Pictures from strangers: what they are, and their pixels, within limits.

Nothing here leans on Pillow's global switches (``MAX_IMAGE_PIXELS``, ``warnings``): other threads share those. The
bytes choose one of five plugins by their signature, the size is checked before any pixel is unpacked, and whatever
Pillow or a codec raises leaves as an `ImageError`.
"""

from revln.images.decode import (
    THUMBNAIL_MEDIA_TYPE,
    THUMBNAIL_WIDTHS,
    ImageFacts,
    decode_image,
    inspect_image,
    media_type_of,
    thumbnail,
)
from revln.images.limits import ImageLimits

__all__ = [
    "THUMBNAIL_MEDIA_TYPE",
    "THUMBNAIL_WIDTHS",
    "ImageFacts",
    "ImageLimits",
    "decode_image",
    "inspect_image",
    "media_type_of",
    "thumbnail",
]
