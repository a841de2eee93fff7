"""What a text is called: by its characters, and for each tenant by itself."""

from __future__ import annotations

import hashlib

from revln.access import DEFAULT_TENANT
from worker.embedding import text_content


def test_two_spellings_are_one_text_and_two_tenants_have_two() -> None:
    assert text_content("e\u0301", "a").key == text_content("\u00e9", "a").key
    keys = {text_content("a dog", tenant).key for tenant in ("a", "b", DEFAULT_TENANT)}
    assert len(keys) == 3, "the time of a job would tell one what the other has embedded"
    assert text_content("a dog", DEFAULT_TENANT).key == "text:" + hashlib.sha256(b"a dog").hexdigest()
