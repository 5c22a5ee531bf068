"""The web configuration file: what is taken, and what is a mistake in it."""

import ssl
from pathlib import Path

import pytest

from panicd.config.config import ConfigError, load
from panicd.config.web import load_web_config

TLS = Path(__file__).parents[1] / "parts/tls"
HASH = "$2b$04$" + "x" * 53


def mistakes(tmp_path: Path, content: str) -> list[str]:
    """Return what is wrong with a file, without its name."""
    path = tmp_path / "web.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_web_config(path)
    return [str(mistake).removeprefix(f"{path}:") for mistake in caught.value.mistakes]


def test_everything_at_once(tmp_path: Path) -> None:
    for file in TLS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "web.yaml"
    path.write_text(f"""
tls_server_config:
  cert_file: server.crt
  key_file: {TLS / "server.key"}
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS13
  prefer_server_cipher_suites: false
http_server_config: {{http2: false}}
basic_auth_users:
  alice: {HASH}
  bob: {HASH.replace("2b", "2y")}
""")
    web = load_web_config(path)
    assert web.tls is not None
    assert web.tls.verify_mode == ssl.CERT_REQUIRED
    assert web.tls.minimum_version == ssl.TLSVersion.TLSv1_3
    assert web.clients_verified
    assert set(web.users) == {"alice", "bob"}


@pytest.mark.parametrize("content", ["", "basic_auth_users: {}\n", "# nothing\n"])
def test_without_anything_everybody_reads_in_clear(tmp_path: Path, content: str) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(content)
    web = load_web_config(path)
    assert (web.tls, web.users, web.clients_verified) == (None, {}, False)


def test_certificates_that_may_be_given_let_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(
        f"tls_server_config: {{cert_file: {TLS}/server.crt, key_file: {TLS}/server.key,"
        f" client_ca_file: {TLS}/ca.crt, client_auth_type: VerifyClientCertIfGiven}}"
    )
    web = load_web_config(path)
    assert web.tls is not None
    assert web.tls.verify_mode == ssl.CERT_OPTIONAL
    assert not web.clients_verified


PAIR = f"cert_file: {TLS}/server.crt, key_file: {TLS}/server.key"
REQUIRED = ", client_auth_type: RequireAndVerifyClientCert"


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("tls_server_config: {}", ["cert_file: expected a file", "key_file: expected a file"]),
        ("tls_server_config: yes", ["expected a mapping of keys"]),
        ("tls_server_config: {cert_file: /no, key_file: /no}", ["with its key (got [Errno 2]"]),
        (
            f"tls_server_config: {{cert_file: {TLS}/server.crt, key_file: {TLS}/client.key}}",
            ["with its key (got [X509: KEY_VALUES_MISMATCH]"],
        ),
        (
            f"tls_server_config: {{cert_file: {TLS}/server.crt, key_file: {TLS}/locked.key}}",
            ["with its key (got "],
        ),
        (
            f"tls_server_config: {{{PAIR}{REQUIRED}, client_ca_file: {TLS}/server.key}}",
            ["client_ca_file: expected certificates"],
        ),
        (
            f"tls_server_config: {{{PAIR}{REQUIRED}}}",
            ["client_ca_file: expected a file, in PEM, as client_auth_type is Require"],
        ),
        (
            f"tls_server_config: {{{PAIR}, client_ca_file: {TLS}/ca.crt}}",
            ["client_auth_type: expected one of VerifyClientCertIfGiven"],
        ),
        (
            f"tls_server_config: {{{PAIR}, client_auth_type: RequireAnyClientCert}}",
            ["expected one of NoClientCert, VerifyClientCertIfGiven, RequireAndVerify"],
        ),
        (
            f"tls_server_config: {{{PAIR}, min_version: TLS13, max_version: TLS12}}",
            ["max_version: expected at least min_version, TLS13"],
        ),
        (f"tls_server_config: {{{PAIR}, min_version: TLS10}}", ["expected one of TLS12, TLS13"]),
        (f"tls_server_config: {{{PAIR}, cipher_suites: [x]}}", ['(got "cipher_suites"; did']),
        ("basic_auth_users: [alice]", ["expected a mapping of keys to values"]),
        ("basic_auth_users: {alice: $2b$31$" + "x" * 53 + "}", ["a cost from 4 to 14 (got 31)"]),
        ("basic_auth_user: {}", ['did you mean "basic_auth_users"?']),
        ("]", ["expected"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, content: str, wrong: list[str]) -> None:
    found = mistakes(tmp_path, content)
    assert len(found) == len(wrong)
    for message, expected in zip(found, wrong, strict=True):
        assert expected in message


def test_a_password_in_clear_is_not_repeated(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, "basic_auth_users: {alice: hunter2}")
    assert found.startswith("1:27: basic_auth_users.alice: expected a bcrypt hash")
    assert "hunter2" not in found


def test_it_is_read_with_the_configuration(tmp_path: Path) -> None:
    config, web = tmp_path / "panicd.yaml", tmp_path / "web.yaml"
    config.write_text(f"{{monitors: [{{glob: /run/*.qmp}}], metrics: {{web_config: {web}}}}}")
    with pytest.raises(ConfigError, match=r"web\.yaml: expected a readable file"):
        load(config)
    web.write_text(f"basic_auth_users: {{alice: {HASH}}}")
    assert load(config).web.users == {"alice": HASH.encode()}
