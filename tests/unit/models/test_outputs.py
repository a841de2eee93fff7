"""What is made of a model's outputs before anybody keeps them."""

from __future__ import annotations

from typing import Any, cast

from revln.models.base import Caption, Model, Operation
from revln.models.outputs import finished


class Telling:
    def finish(self, operation: Operation, raw: Any) -> Any:
        return raw


def test_a_caption_with_a_nul_can_be_kept_by_any_database() -> None:
    given = (Caption("a\0dog", -1.0, 0.5), Caption("a cat", -2.0))
    kept = finished(cast(Model, Telling()), Operation.CAPTION, given)
    assert kept == (Caption("a\ufffddog", -1.0, 0.5), Caption("a cat", -2.0))
