"""Whether what listens off loopback is kept by a secret worth the name."""

from __future__ import annotations

from revln.access import is_loopback
from revln.errors import SettingsError
from revln.settings import Settings

__all__ = ["require_api_key", "require_flower_login"]

# Whoever can reach a port can try thousands of secrets a second, for as long as they like.
LEAST_CHARACTERS = 16
LEAST_DIFFERENT = 6
_MAKE = "`openssl rand -hex 32` makes one"


def require_api_key(settings: Settings) -> None:
    """Raises SettingsError: other machines could use the API without a key, or with one that is soon guessed."""
    host, key = settings.api_host, settings.api_key.get_secret_value()
    if is_loopback(host):
        return
    if not key:
        raise SettingsError(
            f"REVLN_API_HOST={host} is reachable from other machines: set REVLN_API_KEY, or listen on 127.0.0.1."
        )
    if _guessable(key):
        raise SettingsError(f"REVLN_API_HOST={host} is reachable from other machines: {_too_short('REVLN_API_KEY')}")


def require_flower_login(settings: Settings) -> None:
    """Raises SettingsError: other machines could use Flower without a password, or with one that is soon guessed."""
    host, login = settings.flower_host, settings.flower_basic_auth.get_secret_value()
    user, colon, password = login.partition(":")
    if (login and not (user and colon and password)) or "," in login:  # Flower reads several, with commas between
        raise SettingsError("REVLN_FLOWER_BASIC_AUTH must read user:password, without a comma.")
    if is_loopback(host):
        return
    if not login:
        raise SettingsError(
            f"Flower on {host} could be reached from other machines: set REVLN_FLOWER_BASIC_AUTH to user:password, or "
            "listen on 127.0.0.1."
        )
    if _guessable(password):
        what = _too_short("the password of REVLN_FLOWER_BASIC_AUTH")
        raise SettingsError(f"Flower on {host} could be reached from other machines: {what}")


def _guessable(secret: str) -> bool:
    return len(secret) < LEAST_CHARACTERS or len(set(secret)) < LEAST_DIFFERENT


def _too_short(name: str) -> str:
    return f"{name} needs at least {LEAST_CHARACTERS} characters, {LEAST_DIFFERENT} of them different. {_MAKE}."
