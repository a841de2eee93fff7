"""Base64 in the forms that people send it in."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revln.encoded import from_base64

FORMS = {
    "plain": lambda text: text,
    "in lines": lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n",
    "in lines of a mail": lambda text: "\r\n".join(text[at : at + 64] for at in range(0, len(text), 64)),
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "unpadded": lambda text: text.rstrip("="),
    "a data URI": lambda text: "data:image/png;base64," + text,
    "a data URI with parameters": lambda text: "DATA:image/svg+xml;charset=utf-8;Base64," + text,
    "a data URI without a type": lambda text: "data:;base64," + text,
    "a data URI in percent codes": lambda text: "data:image/png;base64," + quote(text, safe=""),
}


@pytest.mark.parametrize("form", FORMS)
@given(st.binary(max_size=400))
def test_every_form_gives_the_bytes(form: str, data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert from_base64(FORMS[form](text)) == data
    assert from_base64(FORMS["unpadded"](FORMS["URL-safe"](FORMS[form](text)))) == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*", r"'\*' is no character"),
        ("é", "'é' is no character"),
        ("aGk=aGk=", "'=' is no character"),
        ("aGk\0", "is no character"),
        ("abcde", "5 characters are one too many or too few"),
        ("data:image/svg+xml,<svg/>", "not in base64"),
        ("data:image/png,aGk=", "not in base64"),
        ("http://a/b.png", "':' is no character"),
        ("data:" + ";" * 10_000, "not in base64"),
    ],
)
def test_anything_else_is_refused_saying_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_base64(text)
