"""Check the addresses that settings hold. A message never holds the address itself: it may hold a password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

__all__ = ["RedisAddress", "check_blob_url", "check_http_url", "parse_redis_url", "set_by_kubernetes"]

_FORMS = "redis://[:PASSWORD@]HOST[:PORT][/NUMBER], rediss://… or redis+socket:///PATH"
_ENCODE = "Write special characters of a user or a password in percent-encoding (@ is %40, # is %23, / is %2F)"
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_BLOB_SCHEMES = ("file", "local", "memory", "s3")
# Kubernetes puts such variables into every container of a namespace that has a service REVLN, REVLN-API, FLOWER …
_KUBERNETES_NAME = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_KUBERNETES_PORT = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
# As different clients spell the only two values that we take.
_CHECKED = {"ssl_cert_reqs": {"required", "cert_required"}, "ssl_check_hostname": {"true"}}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """``url`` has no query; ``number`` is the database's; ``tls_files`` are named as redis-py's arguments."""

    url: str
    scheme: str
    number: int
    tls_files: dict[str, str]


def parse_redis_url(url: str) -> RedisAddress:
    """Read REVLN_REDIS_URL. Raises ValueError."""
    scheme, _, _ = url.partition("://")
    if scheme not in ("redis", "rediss", "redis+socket"):
        raise ValueError(_not_a_redis_scheme(scheme if "://" in url else ""))
    parts = _split(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if scheme == "redis+socket":
        if not parts.path.strip("/"):
            raise ValueError("a socket reads redis+socket:///PATH")
        number = _number(query.pop("virtual_host", ""))
    else:
        if not parts.hostname:
            raise ValueError(f"it names no host; it reads {_FORMS}")
        number = _number(parts.path.removeprefix("/"))
    files = {name: query.pop(name) for name in _TLS_FILES if name in query and scheme == "rediss"}
    for name, values in _CHECKED.items():
        if name in query and query.pop(name).lower() not in values:
            raise ValueError(
                f"{name} may not be switched off: a certificate is always checked. REVLN_REDIS_CA_FILE names the CA"
            )
    if query:
        raise ValueError(f"it has the parameter {min(query)[:40]!r}; of a {scheme}:// URL revln reads {_known(scheme)}")
    return RedisAddress(url.partition("?")[0], scheme, number, files)


def set_by_kubernetes(name: str, value: str) -> bool:
    """Return whether a variable has the form of those that Kubernetes sets for a service."""
    if _KUBERNETES_NAME.search(name):
        return True
    return name.endswith("_PORT") and _KUBERNETES_PORT.fullmatch(value) is not None


def check_blob_url(url: str) -> str:
    """Raises ValueError."""
    scheme, found, rest = url.partition("://")
    if not url or (not found and ":" not in url):
        return url
    if "::" in url or not found or scheme not in _BLOB_SCHEMES:
        raise ValueError(f"it reads a path, file:///PATH or s3://BUCKET/PREFIX, not {scheme[:20]!r}")
    if scheme in ("file", "local") and not rest.startswith("/"):
        raise ValueError("the path of file:// begins with a third slash: file:///PATH")
    if scheme == "s3" and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,62}(/[^\s]*)?", rest):
        raise ValueError("it names no bucket: s3://BUCKET/PREFIX")
    return url


def check_http_url(url: str) -> str:
    """Return ``url`` if it is empty or a whole http(s) URL. Raises ValueError."""
    if url and (urlsplit(url).scheme not in ("http", "https") or not _split(url).hostname):
        raise ValueError("it is not a URL; one reads https://HOST[:PORT][/PATH]")
    return url


def _split(url: str) -> SplitResult:
    """Raises ValueError."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"it has a blank or a control character. {_ENCODE}")
    parts = urlsplit(url)
    if parts.fragment or parts.netloc.count("@") > 1:
        raise ValueError(f"it cannot be read. {_ENCODE}")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"its port is not a number up to 65535. {_ENCODE}") from None
    return parts


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{0,4}", text, re.ASCII):
        raise ValueError("the part after the host is the number of a database: 0, 1, 2 …")
    return int(text or 0)


def _known(scheme: str) -> str:
    return {"rediss": ", ".join(_TLS_FILES), "redis+socket": "virtual_host"}.get(scheme, "none")


def _not_a_redis_scheme(scheme: str) -> str:
    if scheme in ("sentinel", "rediss+sentinel", "redis+sentinel"):
        return "Sentinel is not spoken; name a host that always leads to the primary, such as a proxy's"
    if scheme in ("unix", "redis+unix"):
        return "a socket reads redis+socket:///PATH"
    return f"it reads {_FORMS}"
