"""From what the operator wrote to files on this machine: a folder, a weights file, or a repository of a model hub.

The hub is reached through huggingface_hub alone, which honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN. Everything that
can go wrong becomes one ModelUnavailable with one sentence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from revln.errors import ModelUnavailable
from revln.models.checkpoint import Checkpoint, StatedFile

__all__ = ["fetch", "is_on_hub", "locate"]

# What describes a model. Weights come apart, once they are needed; other forms of weights never.
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
_OTHER_FORMS = ["onnx/*", "openvino/*", "coreml/*", "*/checkpoint-*/*", "checkpoint-*/*", "runs/*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_on_hub(source: str) -> bool:
    """Whether it is a hub id and no path here, so that to read it may take as long as a network does."""
    return bool(_HUB_ID.fullmatch(source)) and not Path(source).expanduser().exists()


def locate(source: str, revision: str | None) -> Checkpoint:
    """The files that describe a model; of a hub repository without its weights.

    Raises:
        ModelUnavailable: it is missing, gated, or not cached while offline; or it has no safetensors.
    """
    found = _local(source)
    if found is not None:
        return found
    found = _snapshot(source, revision, _SMALL)
    # The hub states the SHA-256 of what it keeps apart (LFS). What it does not is small: fetched, it can be hashed.
    unknown = [name for name in found.all_weights() if not found.here(name) and found.stated[name].sha256 is None]
    return _snapshot(source, revision, [*_SMALL, *unknown]) if unknown else found


def fetch(source: str, revision: str | None) -> Checkpoint:
    """All that loading a model needs, weights included: downloaded now if they are not cached.

    Raises:
        ModelUnavailable: as `locate`.
    """
    found = locate(source, revision)
    absent = [name for name in found.all_weights() if not found.here(name)] if found.stated else []
    return _snapshot(source, revision, [*_SMALL, *found.all_weights()]) if absent else found


def _local(source: str) -> Checkpoint | None:
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelUnavailable(
                f"{source} is not a .safetensors file; other forms of weights can run code when they are read."
            )
        return Checkpoint(source, path.resolve().parent, only=path.name)
    if path.is_dir():
        return Checkpoint(source, path.resolve())
    if not _HUB_ID.fullmatch(source):
        raise ModelUnavailable(f"There is no folder {source}; give one that exists on every machine, or a hub id.")
    return None


def _snapshot(source: str, revision: str | None, patterns: list[str]) -> Checkpoint:
    from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    what = f"{source}{at}"
    try:
        folder = Path(
            snapshot_download(source, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMS)
        )
    except errors.GatedRepoError as err:
        raise ModelUnavailable(
            f"{source} is gated: accept its terms on its page at the hub, and set HF_TOKEN to a token of that account."
        ) from err
    except errors.RevisionNotFoundError as err:
        raise ModelUnavailable(f"The hub has {source}, but no revision {revision!r} of it.") from err
    except errors.RepositoryNotFoundError as err:
        raise ModelUnavailable(
            f"There is no folder {source!r} here, and no such model on the hub (or it is private: set HF_TOKEN)."
        ) from err
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as err:
        raise ModelUnavailable(_not_cached(what)) from err
    except errors.HFValidationError as err:
        raise ModelUnavailable(f"There is no folder {source!r} here, and it is not a hub id either.") from err
    except Exception as err:  # of every kind: what breaks in an HTTP library on the way is no OSError
        said = " ".join(str(err).split())[:200]
        raise ModelUnavailable(f"{what} could not be fetched: {type(err).__name__}: {said}") from err
    try:
        tree = get_cached_repo_tree(source, revision=folder.name)
    except errors.CachedRepoTreeNotFoundError:
        # Downloaded by a library that kept no listing: what is in the folder is what there is.
        return Checkpoint(what, folder)
    return Checkpoint(what, folder, stated={entry.path: _stated(entry) for entry in tree})


def _stated(entry: Any) -> StatedFile:
    return StatedFile(entry.lfs.sha256 if entry.lfs is not None else None, entry.size)


def _not_cached(what: str) -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return (
            f"{what} is neither a folder here nor in the hub's cache, and HF_HUB_OFFLINE is set: fetch it once with "
            "the network on, or give a folder."
        )
    return f"{what} is neither a folder here nor in the hub's cache, and the hub does not answer; give a folder."
