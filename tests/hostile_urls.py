"""URLs by which a stranger would have us reach what only we can; for whatever here goes to a stranger's URL.

``{port}`` stands for that of a server to which nothing may ever connect (`tests.receivers` has one).
"""

from __future__ import annotations

__all__ = ["ADDRESSES", "BY_NAME", "BY_TEXT", "HOSTILE", "SECRET", "at_port", "inside"]

SECRET = "hunter2secret"

_LOOPBACK = [
    "http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "http://127.0.0.1.:{port}/", "http://127.0.0.1..:{port}/",
    "http://127.255.255.254:{port}/", "HTTP://127.0.0.1:{port}/", "http://0.0.0.0:{port}/", "http://0:{port}/",
    "http://[::1]:{port}/", "http://[::]:{port}/", "http://[0:0:0:0:0:0:0:1]:{port}/", "http://[::0001]:{port}/",
]  # fmt: skip
# 127.0.0.1 and 169.254.169.254 as some resolver or other reads them.
_ODD_NUMBERS = [
    "http://127.1:{port}/", "http://127.0.1:{port}/", "http://2130706433:{port}/", "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://0177.0.0.1:{port}/", "http://017700000001:{port}/",
    "http://0000177.0.0.1:{port}/", "http://127.0.0.01:{port}/", "http://127.0.0x1:{port}/", "http://4294967297:{port}/",
    "http://2852039166:{port}/", "http://0xa9fea9fe:{port}/", "http://0251.0376.0251.0376:{port}/",
    "http://169.254.43518:{port}/", "http://0xa9.0xfe.0xa9.0xfe:{port}/", "http://425.510.425.510:{port}/",
]  # fmt: skip
_DISGUISES = [
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/", "http://[64:ff9b::7f00:1]:{port}/", "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/", "http://[2002:7f00:1::]:{port}/", "http://[2002:a9fe:a9fe::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/", "http://[::ffff:169.254.169.254]:{port}/", "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[fe80::1%25lo]:{port}/", "http://[::1%25lo]:{port}/", "http://[::1%lo]:{port}/", "http://[fe80::1%251]:{port}/",
]  # fmt: skip
_INSIDE = [
    "http://10.0.0.1:{port}/", "http://172.16.0.1:{port}/", "http://192.168.0.1:{port}/", "http://100.64.0.1:{port}/",
    "http://169.254.169.254/latest/meta-data/", "http://169.254.170.2/v2/credentials", "http://100.100.100.200/",
    "http://168.63.129.16/", "http://[fd00:ec2::254]/latest/meta-data/", "http://[fe80::a9fe:a9fe]:{port}/",
    "http://[fc00::1]:{port}/", "http://[fec0::1]:{port}/", "http://224.0.0.1:{port}/", "http://239.255.255.250:1900/",
    "http://255.255.255.255:{port}/", "http://240.0.0.1:{port}/", "http://198.18.0.1:{port}/", "http://192.0.0.192/",
    "http://[ff02::1]:{port}/", "http://[100::1]:{port}/", "http://[2001:db8::1]:{port}/", "http://[5f00::1]:{port}/",
]  # fmt: skip
_LETTERS = [
    "http://①②⑦.⓪.⓪.①:{port}/", "http://１２７.０.０.１:{port}/", "http://١٢٧.٠.٠.١:{port}/",
    "http://127。0。0。1:{port}/", "http://127．0．0．1:{port}/", "http://127｡0｡0｡1:{port}/",
    "http://\u202elocalhost:{port}/", "http://%31%32%37.0.0.1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/", "http://\ud800:{port}/", "http://xn--:{port}/", "http://xn--\x00:{port}/",
]  # fmt: skip
_READ_IN_TWO_WAYS = [
    "http://user@127.0.0.1:{port}/", "http://@127.0.0.1:{port}/", "http://:@127.0.0.1:{port}/",
    f"http://user:{SECRET}@example.com@127.0.0.1:{{port}}/", "http://example.com@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/", "http://127.0.0.1:{port}@example.com/", "http://example.com＠127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/", "http://127.0.0.1\\.example.com:{port}/", "http:\\\\127.0.0.1:{port}\\",
    "http://127.0.0.1:{port}:80/", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://127.0.0.1:-1/",
    "http://127.0.0.1:0/", "http://127.0.0.1:+80/", "http://127.0.0.1: {port}/", "http://[127.0.0.1]:{port}/",
    "http://[::1:{port}/", "http://[::1]x:{port}/", "http://[::1].example.com:{port}/", "http://[v1.fe80::a]:{port}/",
    "http://::1:{port}/", "http://:{port}/", "http:///127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http://",
    "http:127.0.0.1:{port}/", "//127.0.0.1:{port}/", "127.0.0.1:{port}/", "localhost:{port}", "/etc/passwd", "",
    "http://a..b:{port}/", "http://-a:{port}/", "http://a-:{port}/", "http://*:{port}/", "http://127.0.0.1;a:{port}/",
]  # fmt: skip
_CONTROL = [
    "http://127.0.0.1 :{port}/", "http://127.0.0.1:{port}/\r\nHost: x", "http://127.0.0.1:{port}/ HTTP/1.1\r\nX: a",
    "http://127.0.0.1:{port}\t/", " http://127.0.0.1:{port}/", "ht\ntp://127.0.0.1:{port}/", "http://127.0.0.1:{port}/\x00",
    "http://127.0.0.1\x00.example.com:{port}/", "http://127.0.0.1:{port}/\x7f", "\x00http://127.0.0.1:{port}/",
]  # fmt: skip
_SCHEMES = [
    "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "gopher://127.0.0.1:{port}/_x",
    "data:image/png;base64,AAAA", "javascript:alert(1)", "dict://127.0.0.1:{port}/info", "ldap://127.0.0.1:{port}/",
    "sftp://127.0.0.1:{port}/", "tftp://127.0.0.1:{port}/", "jar:http://127.0.0.1:{port}/!/", "ws://127.0.0.1:{port}/",
    "unix:///var/run/docker.sock", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "redis://127.0.0.1:{port}/", "blob:http://a/",
]  # fmt: skip
_LONG = [
    "http://" + "a" * 64 + ".test:{port}/", "http://" + "a." * 130 + "test:{port}/",
    "http://" + "a" * 10_000 + ":{port}/",
    "http://127.0.0.1:{port}/" + "a" * 9_000, "http://127.0.0.1:" + "0" * 1_000 + "{port}/",
]  # fmt: skip
# Refused as they stand, by whoever reads them.
BY_TEXT = [
    *_LOOPBACK, *_ODD_NUMBERS, *_DISGUISES, *_INSIDE, *_LETTERS, *_READ_IN_TWO_WAYS, *_CONTROL, *_SCHEMES, *_LONG,
]  # fmt: skip
# Good names, until somebody asks where they lead.
BY_NAME = [
    "http://ⓛocalhost:{port}/", "http://loc\u00adalhost:{port}/", "http://local\u200bhost:{port}/",
    "http://localhost:{port}/", "http://localhost.:{port}/", "http://LOCALHOST:{port}/", "http://localhost.localdomain:{port}/",
    "http://ip6-localhost:{port}/", "http://127.0.0.1.nip.io:{port}/", "http://localtest.me:{port}/",
    "http://metadata.google.internal:{port}/computeMetadata/v1/", "http://xn--80ak6aa92e.example:{port}/",
    "http://bücher.example:{port}/", "http://kubernetes.default.svc:{port}/", "http://_dns.example:{port}/",
    "http://example.com:{port}#@127.0.0.1/", "http://example.com:{port}?@127.0.0.1/", "http://example.com:{port}/@127.0.0.1",
]  # fmt: skip
HOSTILE = [*BY_TEXT, *BY_NAME]
# What a hostile name server answers: one address inside is enough, whatever stands beside it.
ADDRESSES = [
    ["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["127.0.0.1", "93.184.216.34"], ["::1"], ["::ffff:127.0.0.1"],
    ["10.1.2.3"], ["169.254.169.254"], ["fe80::1%lo"], ["fd00:ec2::254"], ["0.0.0.0"], ["::"], ["100.64.0.1"],
    ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["255.255.255.255"], ["224.0.0.1"],
]  # fmt: skip


def at_port(url: str, port: int) -> str:
    return url.replace("{port}", str(port))


def inside(host: str, port: int) -> list[str]:
    """A resolver to which every name is this very machine."""
    return ["127.0.0.1"]
