"""Settings are read once, and a wrong one stops start-up with a sentence that helps."""

from __future__ import annotations

import pytest

from revln.errors import SettingsError
from revln.settings import Settings


def test_an_unknown_name_stops_start_up_and_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="Did you mean REVLN_LEASE_S"):
        Settings.from_env({"REVLN_LEASES": "30"})


def test_a_wrong_value_names_its_variable_and_never_shows_a_secret() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"REVLN_API_PORT": "http", "REVLN_API_KEY": "s3cret"})
    assert "REVLN_API_PORT" in caught.value.message
    assert "s3cret" not in caught.value.message


def test_secrets_are_masked_in_repr() -> None:
    settings = Settings(api_key="s3cret", database_url="postgresql+psycopg://u:pw@h/d", redis_url="redis://:pw@h/0")
    assert "s3cret" not in repr(settings)
    assert "pw" not in repr(settings)


def test_a_child_process_sees_the_very_same_settings() -> None:
    settings = Settings(lease_s=60, models={"m": {"family": "revln", "source": "/x"}}, api_key="k", fetch_urls=True)
    assert Settings.from_env(settings.to_env()) == settings


def test_models_that_are_not_json_are_said_to_be_so() -> None:
    with pytest.raises(SettingsError, match="REVLN_MODELS"):
        Settings.from_env({"REVLN_MODELS": "{"})


@pytest.mark.parametrize(
    ("values", "what"),
    [({"lease_s": 10, "heartbeat_s": 5}, "a third"), ({"lease_s": 400, "stall_s": 300}, "stall_s")],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, float], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        Settings.from_env({}, **values)
