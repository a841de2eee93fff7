"""What bytes are, by the first of them: never by a name or a content type."""

from __future__ import annotations

__all__ = ["describe", "format_of"]

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


def format_of(data: bytes) -> str | None:
    """The format's name, as `MEDIA_TYPES` has it; None for what revln does not read."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def describe(data: bytes, name: str | None) -> str:
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
