"""A model on a hub that does not answer: its entry says so within seconds, and nobody else waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

import huggingface_hub
import pytest

from revln.errors import ModelUnavailable, Unavailable
from revln.models.base import ModelInfo
from revln.models.looking import Looks
from revln.models.registry import BUILT_IN, ModelCatalog
from revln.settings import ModelSettings
from tests.stack import wait_until

INFO = ModelInfo("m", "fake", (), 1, "fake-1", 8)


class Hub:
    """Answers once it is let; each name is counted."""

    def __init__(self) -> None:
        self.open = Event()
        self.asked: list[str] = []
        self.fails: Exception | None = None

    def read(self, name: str) -> ModelInfo:
        self.asked.append(name)
        assert self.open.wait(30)
        if self.fails is not None:
            raise self.fails
        return INFO


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.open.set()


def test_a_hub_that_never_answers_is_waited_for_once_and_not_by_each_request(hub: Hub) -> None:
    looks = Looks(hub.read, patience_s=0.2)
    names = [f"m{n}" for n in range(20)]
    for name in names:
        looks.begin(name)
    began = time.monotonic()
    for name in names * 3:
        with pytest.raises(Unavailable, match=f"Model {name} is being fetched"):
            looks.describe(name)
    assert time.monotonic() - began < 2.0, "all of them together, not one after the other"
    assert sorted(hub.asked) == sorted(names)
    hub.open.set()
    wait_until(looks.begin("m0").future.done, what="the look that went on")
    assert looks.describe("m0") == INFO


def test_a_failed_look_is_remembered_for_a_while_and_then_done_again(hub: Hub) -> None:
    hub.open.set()
    hub.fails = ModelUnavailable("no")
    looks = Looks(hub.read, retry_s=0.0)
    with pytest.raises(ModelUnavailable, match="no"):
        looks.describe("m")
    hub.fails = None
    wait_until(lambda: looks.begin("m").future.exception(10) is None, what="another look")
    patient = Looks(hub.read, retry_s=60.0)
    hub.fails = RuntimeError("a fault of ours")
    for _ in range(3):
        with pytest.raises(ModelUnavailable, match="could not be described: RuntimeError"):
            patient.describe("m")
    assert len(hub.asked) <= 4


def test_one_unreachable_model_leaves_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProxyError(Exception):
        """As those of HTTP libraries are: no OSError."""

    def refuse(*_: object, **__: object) -> str:
        raise ProxyError("502 Bad Gateway\nfrom the proxy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    models = ModelCatalog({"away": ModelSettings(source="acme/away")})
    models.look()
    with pytest.raises(ModelUnavailable, match="acme/away could not be fetched: ProxyError: 502 Bad Gateway from the"):
        models.describe("away")
    assert models.describe(BUILT_IN).dim
