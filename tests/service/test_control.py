import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.service import control, control_client
from panicd.service.control import AlreadyRunningError, ControlSocketError, PeerCredentials, Request
from panicd.service.control_client import DaemonUnreachableError, RefusedError
from tests.parts.patience import fail_after, patience

AT_ONCE = control.ENCODED_AT_ONCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def echo(request: Request) -> object:
    if request.command == "refuse":
        raise RefusedError("no-such-domain", "there is no db-9; did you mean db-1?")
    return {"command": request.command, "arguments": request.arguments}


@contextlib.asynccontextmanager
async def serving(path: Path, handler: control.Handler = echo) -> AsyncIterator[None]:
    """Serve for as long as the block runs, and never let a test hang."""
    with fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(control.serve, path, handler))
            yield
            nursery.cancel_scope.cancel()


async def call(path: Path, command: str, arguments: dict[str, object] | None = None) -> object:
    return await trio.to_thread.run_sync(control_client.call, path, command, arguments)


async def exchange(path: Path, data: bytes, *, eof: bool = False) -> dict[str, Any]:
    """Send raw bytes and return the reply."""
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        await stream.send_all(data)
        if eof:
            await stream.send_eof()
        return await reply_on(stream)


async def reply_on(stream: trio.SocketStream) -> dict[str, Any]:
    received = b""
    while not received.endswith(b"\n"):
        chunk = await stream.receive_some()
        assert chunk, received
        received += chunk
    reply = json.loads(received)
    assert isinstance(reply, dict)
    return reply


def files(directory: Path) -> dict[str, str]:
    """What is in a directory, by name, as `ls -l` shows its type and mode."""
    return {entry.name: stat.filemode(entry.lstat().st_mode) for entry in directory.iterdir()}


# Requests and replies


async def test_a_command_is_answered(path: Path) -> None:
    async with serving(path):
        assert await call(path, "hold", {"domain": "db-1", "for": 7200}) == {
            "command": "hold",
            "arguments": {"domain": "db-1", "for": 7200},
        }
        assert await call(path, "status") == {"command": "status", "arguments": {}}


async def test_a_refusal_reaches_the_client_as_such(path: Path) -> None:
    async with serving(path):
        with pytest.raises(RefusedError, match="did you mean db-1") as refused:
            await call(path, "refuse")
    assert refused.value.kind == "no-such-domain"


async def test_the_peer_is_whom_the_kernel_says(path: Path) -> None:
    peers: list[PeerCredentials] = []

    async def handler(request: Request) -> object:
        peers.append(request.peer)
        return None

    async with serving(path, handler):
        assert await call(path, "x") is None
    assert peers == [PeerCredentials(os.getpid(), os.getuid(), os.getgid())]


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"status\n",
        b"[]\n",
        b"{}\n",
        b'{"command": 1}\n',
        b'{"command": "x", "arguments": []}\n',
        b'{"command": "x", "arguments": null}\n',
        b'{"command": "x", "argument": {}}\n',
        b'{"command": "\xff"}\n',
        b'{"command": "x", "arguments": {"n": ' + b"1" * 10_000 + b"}}\n",
        b"[" * 60_000 + b"\n",
        b'{"command": "' + b"x" * control.REQUEST_LIMIT + b'"}\n',
        b"x" * (control.REQUEST_LIMIT + 1),
    ],
    ids=lambda line: repr(line[:40]),
)
async def test_what_is_no_request_is_refused(path: Path, request_line: bytes) -> None:
    async with serving(path):
        reply = await exchange(path, request_line)
        assert reply["error"]["kind"] == "bad-request"
        assert await call(path, "status")


async def test_half_a_request_is_refused(path: Path) -> None:
    async with serving(path):
        reply = await exchange(path, b'{"command": "status"}', eof=True)
    assert "line break" in reply["error"]["message"]


async def test_a_request_of_the_full_length_is_served(path: Path) -> None:
    line = b'{"command": "x"}'
    async with serving(path):
        reply = await exchange(path, line.rjust(control.REQUEST_LIMIT) + b"\n")
    assert reply == {"return": {"command": "x", "arguments": {}}}


async def test_a_request_may_come_in_pieces(path: Path) -> None:
    async with serving(path), await trio.open_unix_socket(str(path)) as stream:
        for byte in b'{"command": "x"}\n':
            await stream.send_all(bytes([byte]))
        assert "return" in await reply_on(stream)


async def test_a_large_reply_is_whole(path: Path) -> None:
    async def handler(_request: Request) -> object:
        return ["domain"] * 500_000

    async with serving(path, handler):
        assert await call(path, "status") == ["domain"] * 500_000


@pytest.mark.parametrize("length", [0, 1, AT_ONCE, AT_ONCE + 1, 1000])
async def test_a_list_of_any_length_is_whole(path: Path, length: int) -> None:
    result: dict[str, object] = {
        "empty": {},
        "list": [{"n": [n, "[]"]} for n in range(length)],
        "none": None,
    }

    async def handler(_request: Request) -> dict[str, object]:
        return result

    async with serving(path, handler):
        assert await call(path, "status") == result


@pytest.mark.parametrize("length", [0, 1, 100])
async def test_a_list_may_be_made_as_it_is_written(path: Path, length: int) -> None:
    async def items() -> AsyncIterator[object]:
        for number in range(length):
            await trio.lowlevel.checkpoint()
            yield {"number": number}

    async def handler(_request: Request) -> dict[str, object]:
        return {"items": items()}

    async with serving(path, handler):
        answer = await call(path, "list")
    assert answer == {"items": [{"number": number} for number in range(length)]}


async def test_a_bug_in_a_handler_is_not_hidden(path: Path) -> None:
    async def handler(_request: Request) -> object:
        raise KeyError("bug")

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with serving(path, handler):
            with pytest.raises(DaemonUnreachableError, match="without a complete answer"):
                await call(path, "x")
            await trio.sleep_forever()


# Clients that hold things up


async def test_a_silent_client_is_told_and_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "IDLE_TIMEOUT", 0.01)
    async with serving(path):
        assert (await exchange(path, b""))["error"]["kind"] == "timeout"


async def test_a_client_that_does_not_read_holds_up_nobody(path: Path) -> None:
    async def handler(request: Request) -> object:
        return "x" * 10_000_000 if request.command == "large" else "small"

    async with serving(path, handler), await trio.open_unix_socket(str(path)) as reader:
        await reader.send_all(b'{"command": "large"}\n')
        first = await reader.receive_some(1)
        assert first == b"{"
        assert await call(path, "small") == "small"


async def test_a_client_that_does_not_read_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "IDLE_TIMEOUT", 0.05)
    monkeypatch.setattr(control, "CONNECTION_LIMIT", 1)

    async def handler(request: Request) -> object:
        return "x" * 10_000_000 if request.command == "large" else "small"

    async with serving(path, handler), await trio.open_unix_socket(str(path)) as reader:
        await reader.send_all(b'{"command": "large"}\n')
        assert await reader.receive_some(1) == b"{"
        reply: object = None
        while reply is None:  # the only place is taken until it is left
            with contextlib.suppress(RefusedError):
                reply = await call(path, "small")


async def test_one_too_many_is_told_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONNECTION_LIMIT", 2)
    entered = trio.Semaphore(0)
    finish = trio.Event()

    async def handler(_request: Request) -> object:
        entered.release()
        await finish.wait()
        return "done"

    results: list[object] = []

    async def client() -> None:
        results.append(await call(path, "x"))

    async with serving(path, handler):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(client)
                await entered.acquire()
            with pytest.raises(RefusedError, match="2 requests are under way") as refused:
                await call(path, "x")
            assert refused.value.kind == "busy"
            finish.set()
        assert results == ["done", "done"]
        assert await call(path, "x") == "done", "the places are free again"


async def test_a_handler_finishes_when_its_client_has_left(path: Path) -> None:
    entered, left, finished = trio.Event(), trio.Event(), trio.Event()

    async def handler(_request: Request) -> object:
        entered.set()
        await left.wait()
        finished.set()
        return "x" * 1_000_000

    async with serving(path, handler):
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b'{"command": "x"}\n')
        await entered.wait()
        await stream.aclose()
        left.set()
        await finished.wait()
        assert await call(path, "x"), "and the daemon goes on"


async def test_a_client_that_leaves_without_a_word_is_nothing(path: Path) -> None:
    async with serving(path):
        await (await trio.open_unix_socket(str(path))).aclose()
        assert await call(path, "x")


# The socket's file


async def test_the_socket_is_for_owner_and_group(path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(path):
            assert files(path.parent) == {path.name: "srw-rw----"}
    finally:
        os.umask(before)


async def test_its_directory_is_made(path: Path) -> None:
    async with serving(path.parent / "made" / path.name):
        assert await trio.Path(path.parent / "made" / path.name).is_socket()


async def test_the_socket_is_removed_at_the_end(path: Path) -> None:
    async with serving(path):
        assert files(path.parent)
    assert not files(path.parent)


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path):
        assert await call(path, "x")


async def test_a_second_daemon_is_refused_and_the_first_goes_on(path: Path) -> None:
    async with serving(path):
        with pytest.raises(AlreadyRunningError, match=str(path)):
            await control.serve(path, echo)
        assert await call(path, "x")


async def test_a_successor_keeps_its_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as successor:
        async with serving(path):
            await trio.Path(path).unlink()
            successor.bind(str(path))
        assert files(path.parent)


async def test_a_file_is_not_taken_for_a_stale_socket(path: Path) -> None:
    file = trio.Path(path)
    await file.write_text("precious")
    with pytest.raises(ControlSocketError, match="it is not a socket"):
        await control.serve(path, echo)
    assert await file.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/too/control.sock", "No such file"), ("c" * 120, "may have 107")],
)
async def test_a_socket_that_cannot_be_made_is_named(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(ControlSocketError, match=reason) as failed:
        await control.serve(tmp_path / name, echo)
    assert str(tmp_path / name) in str(failed.value)
    assert not files(tmp_path)


# The client, on its own


def test_without_a_daemon_the_message_says_what_to_do(path: Path) -> None:
    with pytest.raises(DaemonUnreachableError, match="is panicd running") as missing:
        control_client.call(path, "x")
    assert str(path) in str(missing.value)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(DaemonUnreachableError, match="is panicd running"):
        control_client.call(path, "x")


def test_without_the_right_the_message_says_whose_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", denied)
    with pytest.raises(DaemonUnreachableError, match="as root or in the group"):
        control_client.call(path, "x")


def answering(path: Path, answer: Callable[[socket.socket], None]) -> threading.Thread:
    """Something else than panicd, for one connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(1024)
            answer(connection)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "without a complete answer"),
        (b'{"return"', "without a complete answer"),
        (b"220 mail ESMTP\n", "is not panicd"),
        (b"[]\n", "is not panicd"),
        (b'{"error": "x"}\n', "is not panicd"),
        (b"[" * 100_000 + b"\n", "is not panicd"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_does_not_answer_as_panicd_is_said_so(path: Path, data: bytes, message: str) -> None:
    other = answering(path, lambda connection: connection.sendall(data))
    with pytest.raises(DaemonUnreachableError, match=message):
        control_client.call(path, "x")
    other.join()


def test_a_daemon_that_says_nothing_is_not_waited_for(path: Path) -> None:
    done = threading.Event()

    def say_nothing(_connection: socket.socket) -> None:
        done.wait(patience(10))

    other = answering(path, say_nothing)
    with pytest.raises(DaemonUnreachableError, match=r"no answer within 0\.05 seconds"):
        control_client.call(path, "x", timeout=0.05)
    done.set()
    other.join()


def test_a_daemon_that_trickles_is_not_waited_for(path: Path) -> None:
    def trickle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b" ")

    other = answering(path, trickle)
    with pytest.raises(DaemonUnreachableError):
        control_client.call(path, "x", timeout=0.05)
    other.join()
