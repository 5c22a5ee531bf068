"""Who may read over HTTP, and how it is encrypted: the web configuration file.

Its format is that of the Prometheus exporters
(https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md). If panicd
can't do what the file says, that is a mistake: panicd ignores nothing that concerns security.
"""

import re
import ssl
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from panicd.config.file import read_text
from panicd.config.mistakes import MistakeList, Position
from panicd.config.section import Section, Value
from panicd.config.values import boolean, one_of, text
from panicd.config.yaml_document import Mapping, read_document

COST_MIN: Final = 4
COST_MAX: Final = 14
"""bcrypt's cost: 14 takes a second of a CPU or more, and each step doubles that."""

_HASH: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")


class ClientAuth(StrEnum):
    """Whether clients need a certificate; those of Go's names that OpenSSL can do."""

    NONE = "NoClientCert"
    IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRED = "RequireAndVerifyClientCert"


class TlsVersion(StrEnum):
    """The versions of TLS that are still fit for use (RFC 8996)."""

    TLS12 = "TLS12"
    TLS13 = "TLS13"


_VERIFY: Final = {
    ClientAuth.NONE: ssl.CERT_NONE,
    ClientAuth.IF_GIVEN: ssl.CERT_OPTIONAL,
    ClientAuth.REQUIRED: ssl.CERT_REQUIRED,
}
_VERSIONS: Final = {
    TlsVersion.TLS12: ssl.TLSVersion.TLSv1_2,
    TlsVersion.TLS13: ssl.TLSVersion.TLSv1_3,
}


@dataclass(frozen=True, eq=False)
class WebConfig:
    """How HTTP is served; by default without encryption, to everybody.

    Attributes:
        tls: encrypts; None: nothing does.
        clients_verified: every client has shown a certificate that was verified.
        users: bcrypt hashes of passwords, by name; without any, no password is needed.
        operators: those users who may act on domains.
    """

    tls: ssl.SSLContext | None = None
    clients_verified: bool = False
    users: Map[str, bytes] = field(default_factory=dict)
    operators: frozenset[str] = frozenset()


def load_web_config(path: Path, *, beyond_loopback: bool = False) -> WebConfig:
    """Read a web configuration file, with the certificates that it names.

    Args:
        path: the file.
        beyond_loopback: other hosts can reach panicd, so operators need TLS.

    Raises:
        ConfigError: it can't be read, or something is wrong with it.
    """
    content = read_text(path)
    mistakes = MistakeList(str(path))
    start = Position(1, 1)
    root = read_document(content, mistakes) or Mapping(start, {})
    with Value(root, "", start, mistakes).section() as keys:
        tls = keys["tls_server_config"]
        context, clients_verified = _tls(tls, path.parent) if tls.given else (None, False)
        with keys["http_server_config"].section() as http:
            http["http2"].read(boolean, True)  # it allows HTTP/2, and panicd speaks HTTP/1.1
        users = {name: _password_hash(value) for name, value in keys["basic_auth_users"].entries()}
        operators = _operators(keys["operators"], users, in_clear=beyond_loopback and not context)
    if mistakes:
        raise mistakes.error()
    return WebConfig(context, clients_verified, users, operators)


def _tls(value: Value, directory: Path) -> tuple[ssl.SSLContext, bool]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with value.section() as keys:
        cert, key, client_ca = keys["cert_file"], keys["key_file"], keys["client_ca_file"]
        client_auth = keys["client_auth_type"]
        wanted = client_auth.read(one_of(*ClientAuth), ClientAuth.NONE)
        prefer_own = keys["prefer_server_cipher_suites"].read(boolean, True)
        _set_versions(context, keys)
        for file in (cert, key):
            if not file.given:
                file.wrong("a file, in PEM")
        if wanted is not ClientAuth.NONE and not client_ca.given:
            client_ca.wrong(f"a file, in PEM, as client_auth_type is {wanted}")
        if wanted is ClientAuth.NONE and client_ca.given:
            client_auth.wrong(
                f"one of {ClientAuth.IF_GIVEN}, {ClientAuth.REQUIRED}, because there"
                " is a client_ca_file"
            )
        cert_file, key_file = cert.read(text, ""), key.read(text, "")
        if cert_file and key_file:
            try:
                # For an encrypted key OpenSSL would ask on the terminal.
                context.load_cert_chain(
                    directory / cert_file, directory / key_file, password=lambda: b""
                )
            except OSError as error:
                cert.wrong("a certificate that can be read, with its key", str(error))
        client_ca_file = client_ca.read(text, "")
        if client_ca_file:
            try:
                context.load_verify_locations(directory / client_ca_file)
            except OSError as error:
                client_ca.wrong("certificates that can be read", str(error))
    if not prefer_own:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.verify_mode = _VERIFY[wanted]
    context.set_alpn_protocols(["http/1.1"])
    return context, wanted is ClientAuth.REQUIRED


def _operators(value: Value, users: Map[str, bytes], *, in_clear: bool) -> frozenset[str]:
    names = {item: item.read(text, "") for item in value.items()}
    for item, name in names.items():
        if name not in users:
            item.wrong("a name of basic_auth_users", name)
    if names and in_clear:
        value.wrong("tls_server_config too, as metrics.listen is not on loopback")
    return frozenset(names.values())


def _set_versions(context: ssl.SSLContext, keys: Section) -> None:
    lowest, highest = keys["min_version"], keys["max_version"]
    least = lowest.read(one_of(*TlsVersion), TlsVersion.TLS12)
    most = highest.read(one_of(*TlsVersion), TlsVersion.TLS13)
    if least > most:
        highest.wrong(f"at least min_version, {least}")
    context.minimum_version, context.maximum_version = _VERSIONS[least], _VERSIONS[most]


def _password_hash(value: Value) -> bytes:
    """Read a hash. If it is none, it may be a password, and is not repeated."""
    written = value.read(text, "")
    match = _HASH.fullmatch(written)
    if not match:
        if written:
            value.wrong("a bcrypt hash, such as htpasswd -nBC 10 NAME prints", "something else")
        return b""
    if not COST_MIN <= int(match[1]) <= COST_MAX:
        value.wrong(f"a bcrypt hash with a cost from {COST_MIN} to {COST_MAX}", match[1])
    return written.encode()
