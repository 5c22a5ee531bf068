import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from panicd.host import sdnotify


def listener(address: str) -> socket.socket:
    """A service manager's socket that fails instead of waiting for ever."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address)
    manager.settimeout(5)
    return manager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listener(path) as receiver:
        yield receiver


def test_fields_arrive_as_lines(manager: socket.socket) -> None:
    assert sdnotify.notify(READY=1, STATUS="4 domains, 1 held")
    assert manager.recv(1024) == b"READY=1\nSTATUS=4 domains, 1 held"


def test_a_value_cannot_start_a_field_of_its_own(manager: socket.socket) -> None:
    assert sdnotify.notify(STATUS="db\nSTOPPING=1\r\u2028READY=1", WATCHDOG=1)
    assert manager.recv(1024) == b"STATUS=db STOPPING=1 READY=1\nWATCHDOG=1"


def test_text_that_is_not_utf8_is_sent_all_the_same(manager: socket.socket) -> None:
    assert sdnotify.notify(STATUS="\udc80")
    assert manager.recv(1024) == b"STATUS=?"


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"panicd-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with listener(f"\0{name}") as manager:
        assert sdnotify.notify(READY=1)
        assert manager.recv(1024) == b"READY=1"


@pytest.mark.parametrize("value", [None, "", "relative/path", "vsock:2:1234"])
def test_without_a_socket_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert not sdnotify.notify(READY=1)


def test_a_manager_that_is_gone_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not sdnotify.notify(READY=1)


def test_a_manager_that_does_not_read_is_not_waited_for(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdnotify, "SEND_TIMEOUT", 0.01)
    queued = 0
    while sdnotify.notify(STATUS=queued):
        queued += 1
    assert manager.recv(1024) == b"STATUS=0"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 15.0),
        ("1", None, 0.5e-6),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),
        ("30000000", "x", None),
        ("0", None, None),
        ("", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("\u0663", None, None),
        (None, None, None),
    ],
)
def test_watchdog_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    for name, value in {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert sdnotify.watchdog_interval() == seconds
