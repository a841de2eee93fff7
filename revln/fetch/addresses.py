"""Which addresses are never dialled, and which only in a closed network."""

from __future__ import annotations

import ipaddress
from typing import Any

__all__ = ["Address", "address_refusal", "literal_address"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's special-purpose registries, written out: `is_global` says other things in other versions of Python.
_NEVER_V4 = {
    "0.0.0.0/8": "unspecified",
    "169.254.0.0/16": "link-local (cloud metadata lives there)",
    "100.100.100.200/32": "cloud metadata",
    "168.63.129.16/32": "cloud metadata",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "6to4 relay",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_PRIVATE_V4 = {
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared (carrier NAT)",
    "127.0.0.0/8": "loopback",
    "172.16.0.0/12": "private",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarking",
}
# Of IPv6 only 2000::/3 is public at all, so these are the exceptions inside it and the private ones outside.
_NEVER_V6 = {
    "2001::/23": "Teredo or reserved",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4 (an IPv4 address in disguise)",
    "3fff::/20": "documentation",
    "fd00:ec2::/32": "cloud metadata",
}
_PRIVATE_V6 = {"::1/128": "loopback", "fc00::/7": "private"}
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")


def _networks(table: dict[str, str]) -> tuple[tuple[Any, str], ...]:
    return tuple((ipaddress.ip_network(network), kind) for network, kind in table.items())


_NEVER = {4: _networks(_NEVER_V4), 6: _networks(_NEVER_V6)}
_PRIVATE = {4: _networks(_PRIVATE_V4), 6: _networks(_PRIVATE_V6)}


def address_refusal(address: Address, allow_private: bool = False) -> str | None:
    """Say what kind of address this is if it must not be dialled; None if it may."""
    for network, kind in _NEVER[address.version]:
        if address in network:
            return str(kind)
    for network, kind in _PRIVATE[address.version]:
        if address in network:
            return None if allow_private else str(kind)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "scoped"
        if address not in _PUBLIC_V6:  # mapped ::ffff:…, translated 64:ff9b::…, link-local, multicast, unassigned
            return "not public IPv6"
    return None


def literal_address(host: str) -> Address | None:
    """The address that a host spells out; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
