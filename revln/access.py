"""Who asks, and what they may do: tenants, scopes, and the form of an API key.

A key reads ``rvl_<id>_<secret>``. The id finds its row (`revln.db.access.keys`), which holds the SHA-256 of the secret:
32 random bytes need no slow hash. What a key makes of a request is a `Caller`, and everything that a caller does,
reads or names is of the caller's tenant.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_address

from revln.errors import Forbidden, InsufficientScope

__all__ = [
    "ALL_SCOPES",
    "DEFAULT_TENANT",
    "OWNER",
    "TENANT_PATTERN",
    "Caller",
    "Scope",
    "format_key",
    "hash_secret",
    "is_loopback",
    "new_key_id",
    "new_secret",
    "parse_key",
    "same_secret",
]

# Whose everything is that was there before there were tenants; also the operator's own.
DEFAULT_TENANT = "default"
TENANT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

_KEY = re.compile(r"rvl_([0-9a-f]{16})_([0-9a-f]{64})")


class Scope(StrEnum):
    SUBMIT = "submit"  # whatever changes something of the tenant's
    READ = "read"
    ADMIN = "admin"  # both, and the tenant's keys and audit log


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """``who`` stands in the audit log: a key's id, or in words who acts without one. Quotas of None: the settings'."""

    tenant: str
    who: str
    scopes: frozenset[Scope]
    key_id: str | None = None
    address: str | None = None
    max_queued_items: int | None = None
    max_queued_bytes: int | None = None
    requests_per_s: float | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def demand(self, scope: Scope) -> None:
        """Raises InsufficientScope."""
        if not self.may(scope):
            has = ", ".join(sorted(self.scopes))
            raise InsufficientScope(f"This needs a key with the scope {scope}; key {self.key_id} has {has}.", scope)

    @property
    def is_operator(self) -> bool:
        """Whoever runs the house: what is no tenant's (models, every tenant's keys) is theirs."""
        return self.tenant == DEFAULT_TENANT and Scope.ADMIN in self.scopes

    def demand_operator(self) -> None:
        """Raises InsufficientScope, Forbidden."""
        self.demand(Scope.ADMIN)
        if not self.is_operator:
            raise Forbidden(f"This is for an admin key of the tenant {DEFAULT_TENANT}; key {self.key_id} is not one.")

    def at(self, address: str | None) -> Caller:
        return replace(self, address=address)


# Whoever has the machine itself: the caller of an API that listens on loopback while there is no key.
OWNER = Caller(DEFAULT_TENANT, "owner", ALL_SCOPES)


def new_key_id() -> str:
    return secrets.token_hex(8)


def new_secret() -> str:
    return secrets.token_hex(32)


def format_key(key_id: str, secret: str) -> str:
    return f"rvl_{key_id}_{secret}"


def parse_key(given: str) -> tuple[str, str] | None:
    """The id and the secret, or None for what is no key of ours."""
    found = _KEY.fullmatch(given)
    return (found[1], found[2]) if found else None


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def same_secret(secret: str, sha256: str) -> bool:
    return hmac.compare_digest(hash_secret(secret), sha256)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
