"""Whoever may use the control socket may send anything over it: he gets an answer, and no more."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from panicd.service.control_client import RefusedError
from tests.hostile.scale import whole
from tests.parts.daemon import DaemonInside, RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.patience import patience

COMMANDS = ["status", "explain", "incidents", "incident", "hold", "unhold", "release", "act", "ack"]
KEYS = ["domain", "incident", "why", "for", "action", "since", "until", "limit", "id", "open"]
ODD: list[Any] = [
    *[None, True, [], {}, "", "vm", "\x00", "\ud800", "x" * 60_000, "../../etc", "%s{}"],
    *[-1, 0, 1.5, 2**63, 10**400, -(10**30), 1e308, float("inf"), float("-inf"), float("nan")],
]
PLAIN = {"domain": "vm", "why": "x", "action": "preserve", "for": 60}


ENDED_PANICD = [
    ("incidents", "since", 2**63),
    ("hold", "for", float("inf")),
    ("ack", "why", "\ud800"),
]


def requests() -> list[bytes]:
    odd = list(itertools.product(COMMANDS, KEYS, ODD))
    return [
        json.dumps({"command": command, "arguments": {**PLAIN, key: value}}).encode() + b"\n"
        for command, key, value in ENDED_PANICD + odd[:: 1 if whole() else 16]
    ]


@pytest.mark.parametrize("panicked", [False, True])
async def test_every_request_is_answered(socket_dir: Path, *, panicked: bool) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", name="vm")
    async with RunningDaemon.start(socket_dir, time_limit=60) as daemon, vm.running():
        await daemon.wait_armed("vm")
        if panicked:
            vm.panic()
            await daemon.wait_incident("vm", state="preserved")
        for request in requests():
            answer = await trio.to_thread.run_sync(asked, daemon.control_socket, request)
            assert answer.keys() in ({"return"}, {"error"}), request[:200]
        await daemon.call("status")
        await daemon.terminate()
        await daemon.start_again()
        await daemon.call("status")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("hold", {"for": 0}),
        ("hold", {"for": -60}),
        ("hold", {"for": 1e11}),  # its end has no date, and could not be shown
        ("incidents", {"limit": -1}),
        ("incidents", {"limit": "all"}),
        ("panics", {"limit": 0}),
    ],
)
async def test_a_number_that_makes_no_sense_is_refused_and_changes_nothing(
    socket_dir: Path, command: str, arguments: dict[str, object]
) -> None:
    async with DaemonInside.start(socket_dir) as daemon:
        (name,) = arguments
        with pytest.raises(RefusedError, match=f"^{name}: expected"):
            await daemon.call(command, domain="vm", why="x", future=True, **arguments)
        assert not daemon.logged("operator asked")


def asked(path: Path, request: bytes) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience(10))
        sock.connect(str(path))
        sock.sendall(request)
        with sock.makefile("rb") as answer:
            line = answer.read()
    assert line, request[:300]
    return json.loads(line)
