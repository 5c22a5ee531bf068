import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from panicd.host import sdnotify
from panicd.host.sdnotify import ServiceManager
from tests.parts.patience import patience


def listener(address: str) -> socket.socket:
    """A service manager's socket that fails instead of waiting for ever."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address)
    manager.settimeout(patience(5))
    return manager


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    with listener(address) as receiver:
        yield receiver


@pytest.fixture
def notify(address: str) -> Callable[..., bool]:
    return at(address).notify


def at(address: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": address})


def test_fields_arrive_as_lines(manager: socket.socket, notify: Callable[..., bool]) -> None:
    assert notify(READY=1, STATUS="4 domains, 1 held")
    assert manager.recv(1024) == b"READY=1\nSTATUS=4 domains, 1 held"


def test_a_value_cannot_start_a_field_of_its_own(
    manager: socket.socket, notify: Callable[..., bool]
) -> None:
    assert notify(STATUS="db\nSTOPPING=1\r\u2028READY=1", WATCHDOG=1)
    assert manager.recv(1024) == b"STATUS=db STOPPING=1 READY=1\nWATCHDOG=1"


def test_text_that_is_not_utf8_is_sent_all_the_same(
    manager: socket.socket, notify: Callable[..., bool]
) -> None:
    assert notify(STATUS="\udc80")
    assert manager.recv(1024) == b"STATUS=?"


def test_an_abstract_socket_is_reached() -> None:
    name = f"panicd-test-{os.getpid()}"
    with listener(f"\0{name}") as manager:
        assert at(f"@{name}").notify(READY=1)
        assert manager.recv(1024) == b"READY=1"


@pytest.mark.parametrize("value", ["", "relative/path", "vsock:2:1234"])
def test_without_a_socket_nothing_is_sent(value: str) -> None:
    assert not ServiceManager({}).notify(READY=1)
    assert not at(value).notify(READY=1)


def test_a_manager_that_is_gone_is_said_so(notify: Callable[..., bool]) -> None:
    assert not notify(READY=1)


def test_a_manager_that_does_not_read_is_not_waited_for(
    manager: socket.socket, notify: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdnotify, "SEND_TIMEOUT", 0.01)
    queued = 0
    while notify(STATUS=queued):
        queued += 1
    assert manager.recv(1024) == b"STATUS=0"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 15.0),
        ("1", None, 0.5e-6),
        pytest.param("30000000", str(os.getpid()), 15.0, id="this-process"),
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
def test_watchdog_interval(usec: str | None, pid: str | None, seconds: float | None) -> None:
    given = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    said = {name: value for name, value in given.items() if value is not None}
    assert ServiceManager(said).watchdog_interval() == seconds


# systemd.exec(5), "Environment Variables Set or Propagated by the Service Manager".
SAID_TO_ONE_PROCESS = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "MAINPID",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
)


def test_what_is_said_to_one_process_is_taken_from_its_environment(
    address: str, manager: socket.socket
) -> None:
    of_the_unit = {"INVOCATION_ID": "1", "RUNTIME_DIRECTORY": "/run/panicd", "PATH": "/bin"}
    environment = dict.fromkeys(SAID_TO_ONE_PROCESS, "1") | of_the_unit
    environment["NOTIFY_SOCKET"] = address
    taken = ServiceManager.take(environment)
    assert environment == of_the_unit
    assert taken.notify(READY=1)
    assert manager.recv(1024) == b"READY=1"


def test_a_host_without_a_descriptor_left_is_no_reason_to_stop(
    manager: socket.socket, notify: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none_left)
        assert not notify(WATCHDOG=1)
    assert notify(WATCHDOG=1)
    assert manager.recv(1024) == b"WATCHDOG=1"
