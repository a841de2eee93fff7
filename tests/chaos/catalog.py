"""Imports every module that has experiments, so that they are in the list."""

from tests.chaos import (
    accepting,
    doorbell,
    files,
    killing,
    leaving,
    sharing,
    soaking,
    storage,
    store_machine,
    strangers,
)

__all__ = [
    "accepting",
    "doorbell",
    "files",
    "killing",
    "leaving",
    "sharing",
    "soaking",
    "storage",
    "store_machine",
    "strangers",
]
