"""What the contract tests ask a monitor, and give it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts.qmp import QmpClient, QmpCommandError
from tests.parts.wire import Message


async def status(qmp: QmpClient) -> str:
    return str((await qmp.execute("query-status"))["status"])


async def refusal(
    qmp: QmpClient, command: str, arguments: Message | None = None
) -> tuple[str, str]:
    with pytest.raises(QmpCommandError) as caught:
        await qmp.execute(command, arguments)
    return caught.value.error_class, caught.value.desc


async def end_of(qmp: QmpClient, command: str, since: int) -> set[str]:
    """What comes from a QEMU that ``command`` ends: its reply may get lost, or come before."""
    await qmp.send(command)
    await qmp.wait_closed()
    return set(qmp.sequence(since))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor to write to."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)
