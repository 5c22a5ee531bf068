"""A session of panicd's own with a fake QEMU, without the daemon around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from panicd.fleet.connector import connect
from panicd.qemu.event_outlet import Heard
from panicd.qemu.monitor import event_loop, open_monitor
from panicd.qemu.probe import probe
from panicd.qemu.process import Peer
from panicd.qemu.session import Listener, Session
from tests.parts.fake import FakeQemu
from tests.parts.patience import fail_after

TIME_LIMIT = 10.0
"""Seconds for everything inside one session."""


def ignore(_heard: Heard) -> None:
    """Listen to nothing."""


def nobody() -> None:
    """Tell nobody of the end."""


@asynccontextmanager
async def open_session(vm: FakeQemu, listener: Listener = ignore) -> AsyncIterator[Session]:
    """Run a fake QEMU and open a session with it, armed as the daemon's are.

    Args:
        vm: The fake, not yet running.
        listener: Told of every event.
    """
    with fail_after(TIME_LIMIT):
        async with vm.running(), event_loop():
            sock = await connect(vm.socket)
            with Peer.of(sock) as peer:
                async with open_monitor(sock, timeout=TIME_LIMIT) as monitor:
                    answers = await probe(monitor, None, timeout=TIME_LIMIT)
                    session = Session.from_probe(monitor, peer, answers)
                    session.listen(listener, nobody)
                    yield session
