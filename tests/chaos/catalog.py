"""Imports every module that has experiments, so that they are in the list."""

from tests.chaos import killing

__all__ = ["killing"]
