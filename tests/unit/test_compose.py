"""The deployment files agree with the code: read without an engine.

The files' own form was checked by hand with `npx dclint` (the compose specification's JSON schema).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from revln.cli.main import COMMANDS, cli
from revln.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "revln:" in service["image"]}
FILES = ("docker-compose.yml", ".env.example", "Dockerfile")
SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "REVLN_API_KEY", "REVLN_FLOWER_BASIC_AUTH"}


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


@pytest.mark.parametrize("file", FILES)
def test_every_setting_that_is_named_exists(file: str) -> None:
    named = set(re.findall(rf"{ENV_PREFIX}[A-Z0-9_]+", (ROOT / file).read_text()))
    assert named or file == "Dockerfile"
    unknown = {name for name in named if name.removeprefix(ENV_PREFIX).lower() not in Settings.model_fields}
    assert not unknown


@pytest.mark.parametrize("name", OURS)
def test_each_part_starts_with_the_settings_it_is_given(name: str) -> None:
    """With every variable filled in from .env, as compose does."""

    def fill(value: str) -> str:
        return re.sub(r"\$\{\w+(?::?([-?])([^}]*))?\}", lambda m: m[2] if m[1] == "-" else "user:secret", value)

    env = {key: fill(str(value)) for key, value in OURS[name]["environment"].items()}
    settings = Settings.from_env(env)
    assert settings.resolved_database_url.startswith("postgresql+psycopg://revln:")
    assert settings.resolved_redis_url.startswith("redis://:")


@pytest.mark.parametrize("name", OURS)
def test_each_part_runs_a_command_that_there_is(name: str) -> None:
    words = OURS[name]["command"]
    assert words[0] in COMMANDS
    command = cli.get_command(click.Context(cli), words[0])
    if len(words) > 1:
        assert isinstance(command, click.Group)
        assert words[1] in command.commands


def test_the_parts_of_a_large_deployment_are_there() -> None:
    assert set(SERVICES) == {"redis", "postgres", "migrate", "api", "worker", "worker-gpu", "flower"}
    assert SERVICES["migrate"]["restart"] == "no"
    assert all(service["restart"] == "unless-stopped" for name, service in SERVICES.items() if name != "migrate")


def test_every_lasting_service_has_a_health_check_and_starts_after_what_it_needs() -> None:
    for name, service in SERVICES.items():
        assert name == "migrate" or service["healthcheck"]["test"], name
        for other, condition in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "migrate" else "service_healthy"
            assert condition == {"condition": wanted}, (name, other)
    for name in ("api", "worker", "worker-gpu"):
        assert set(SERVICES[name]["depends_on"]) == {"migrate", "redis"}
    assert set(SERVICES["migrate"]["depends_on"]) == {"postgres"}


def test_redis_forgets_nothing_under_pressure_and_asks_for_a_password() -> None:
    words = SERVICES["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "REDIS_PASSWORD" in options["--requirepass"]


def test_a_gpu_is_reserved_in_its_profile_only() -> None:
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["environment"]["REVLN_DEVICE"] == "cuda"
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert not any("profiles" in service for name, service in SERVICES.items() if name != "worker-gpu")


def test_ports_are_bound_to_this_machine_unless_told_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in ports)


def test_a_worker_is_not_killed_before_its_own_grace_is_over() -> None:
    for name in ("worker", "worker-gpu"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > Settings().shutdown_grace_s


def test_every_volume_that_is_used_is_declared_and_the_pictures_are_shared() -> None:
    used = {
        name: {volume.partition(":")[0] for volume in service.get("volumes", [])} for name, service in SERVICES.items()
    }
    assert set().union(*used.values()) == set(COMPOSE["volumes"])
    assert used["api"] == used["worker"] == used["worker-gpu"] == {"data"}


def test_secrets_come_from_env_have_no_default_and_stand_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == SECRETS
    assert not any(example.values())
    for name in SECRETS:
        assert re.search(rf"\${{{name}:\?", text), name
        assert not re.search(rf"\${{{name}(:?-|}})", text), f"{name} has a default, or may be empty"


def test_every_variable_of_the_compose_file_is_explained_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text())) - {"IMAGE_TAG"}
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert wanted == explained


def test_the_image_is_built_from_the_lock_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes --requirement /src/requirements.lock" in text
    assert "requirements-dev" not in re.sub(r"#.*", "", text)
    assert re.search(r"^USER revln$", text, re.MULTILINE)
    assert text.index("USER revln") < text.index("ENTRYPOINT")
    assert not re.search(r"https?://|--(extra-)?index-url|--mirror", text)


def test_what_the_image_copies_is_sent_to_the_builder() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    names = {name for line in copied for name in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == allowed
    assert {"revln", "api", "worker", "migrations"} <= names
