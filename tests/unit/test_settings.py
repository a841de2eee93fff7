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


KUBERNETES = {
    "REVLN_SERVICE_HOST": "10.0.0.7", "REVLN_SERVICE_PORT": "8000", "REVLN_SERVICE_PORT_HTTP": "8000",
    "REVLN_PORT": "tcp://10.0.0.7:8000", "REVLN_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "REVLN_PORT_8000_TCP_PROTO": "tcp", "REVLN_PORT_8000_TCP_PORT": "8000", "REVLN_PORT_8000_TCP_ADDR": "10.0.0.7",
    "REVLN_API_SERVICE_HOST": "fd00::7", "REVLN_API_PORT": "tcp://[fd00::7]:8000", "REVLN_FLOWER_PORT": "tcp://10.0.0.8:5555",
    "REVLN_REDIS_PORT_6379_TCP": "tcp://10.0.0.9:6379", "REVLN_POSTGRES_PORT_53_UDP_ADDR": "10.0.0.9",
}  # fmt: skip


def test_what_kubernetes_sets_for_services_of_our_name_is_no_setting() -> None:
    assert Settings.from_env(KUBERNETES) == Settings()


@pytest.mark.parametrize("name", ["REVLN_API_PORTS", "REVLN_PORT", "REVLN_SERVICE", "REVLN_PORT_TCP"])
def test_what_only_resembles_it_is_still_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting"):
        Settings.from_env({name: "8000"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("REDIS_URL", url) for url in (
            "", "nonsense", "redis://", "redis:///0", "redis://:s3cret@h:abc/0", "redis://:s3cret@h:99999", "redis://h/zero",
            "redis://h/-1", "redis://:s3cret@ss@h/0", "redis://:s3cret#x@h/0", "redis://:s3cret x@h", "redis://h/0?s3cret=1",
            "sentinel://:s3cret@h:26379/0", "unix:///tmp/x", "redis+socket://", "http://h", "redis+socket:///x?virtual_host=a",
            "rediss://h/0?ssl_ca_certs=/no/such/file", "redis://:s3cret@[::1/0",
        )),
        *(("BLOB_URL", url) for url in (
            "s3://", "s3:///x", "s3:bucket", "http://h/x", "abc://x", "file://relative/x",
            "simplecache::s3://b/x", "s3://a b",
        )),
        *(("PUBLIC_URL", url) for url in ("nonsense", "//h", "ftp://h", "http://", "http://h:abc", "http://h h")),
        ("FLOWER_URL", "javascript:alert(1)"),
        *(("API_KEY", key) for key in ("schlüssel-s3cret", "s3cret key", "s3cret\n", "s3cret\x00")),
        *(("TRUSTED_PROXIES", value) for value in ("*", "proxy.example.org", "10.0.0.0/40", "10.0.0.1,,x")),
        ("REDIS_CA_FILE", "/no/such/file"),
        *(("REDIS_PREFIX", value) for value in ("a*", "[a]", "a b", "ü:", "a?", "a\n", "a\\", "x" * 65)),
    ],
)  # fmt: skip
def test_a_malformed_address_or_key_is_one_sentence_that_names_it_and_shows_no_secret(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"REVLN_{name}: ") as caught:
        Settings.from_env({f"REVLN_{name}": value})
    assert "s3cret" not in caught.value.message.replace("'s3cret'", "the name of a parameter")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "redis://h"), ("REDIS_URL", "redis://user:p%40ss@h:6379/3"), ("REDIS_URL", "rediss://[::1]:6379/0"),
        ("REDIS_URL", "redis+socket:///tmp/a%20b.sock?virtual_host=3"), ("BLOB_URL", "s3://bucket"),
        ("BLOB_URL", "s3://my.bucket/a/b"), ("BLOB_URL", "file:///srv/x"), ("BLOB_URL", "/srv/x"), ("BLOB_URL", "memory://x"),
        ("PUBLIC_URL", "https://h/prefix"), ("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8,::1"),
        ("REDIS_PREFIX", ""), ("REDIS_PREFIX", "photos:"), ("REDIS_PREFIX", "a.b-c_1"),
    ],
)  # fmt: skip
def test_a_good_one_is_taken(name: str, value: str) -> None:
    Settings.from_env({f"REVLN_{name}": value})
