"""What a sentence encoder puts before a text: a prompt for texts that are asked with, one for those that are found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Prompts", "QueryText", "marked"]

# The first that a checkpoint names, as sentence-transformers' encode_document takes it.
_OF_DOCUMENTS = ("document", "passage", "corpus")


class QueryText(str):
    """A text that is asked with. To a model without prompts it is a text like any other."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Prompts:
    """``default`` is what sentence-transformers' ``encode`` takes where nothing is said of a text."""

    query: str = ""
    document: str = ""
    default: str = ""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Prompts:
        """Of config_sentence_transformers.json: a use that has no prompt of its own takes the default one."""
        said = settings.get("prompts") or {}
        default = said.get(settings.get("default_prompt_name") or "") or ""

        def first(*names: str) -> str:
            return str(next((said[name] for name in names if said.get(name) is not None), default))

        return cls(first("query"), first(*_OF_DOCUMENTS), str(default))

    def overridden(self, query: str | None, document: str | None) -> Prompts:
        """As the operator says; None leaves the checkpoint's own."""
        return replace(
            self,
            query=self.query if query is None else query,
            document=self.document if document is None else document,
        )

    @property
    def differ(self) -> bool:
        return self.query != self.document

    def before(self, text: str) -> str:
        """The prompt of this text."""
        return self.query if isinstance(text, QueryText) else self.document

    def fingerprint(self, of_files: str) -> str:
        """Of the whole model. With the default prompt alone it is that of the files, as before there were two."""
        plain = self.query == self.document == self.default
        return of_files if plain else marked(of_files, self.query, self.document)

    def joint_fingerprint(self, of_files: str) -> str:
        """Of what a collection holds: another prompt of queries makes none of its vectors void."""
        return of_files if self.document == self.default else marked(of_files, self.document)


def marked(fingerprint: str, *said: str) -> str:
    """The fingerprint of a model that is used in another way than its files alone say."""
    digest = hashlib.sha256("\0".join((fingerprint, *said)).encode()).hexdigest()
    return f"{fingerprint.rpartition('-')[0]}-{digest[:16]}"
