"""Bytes kept under the name of their SHA-256, in a folder or in any store that fsspec speaks to.

Layout: ``<root>/<prefix>/ab/cd/<sha256>``. A name never changes its meaning, so a put may be repeated and raced.
Nothing is believed on reading: `BlobStore.get` hashes what it read, and sets a damaged file aside.
"""

from revln.blobs.store import BlobInfo, BlobStore
from revln.blobs.writer import BlobWriter

__all__ = ["BlobInfo", "BlobStore", "BlobWriter"]
