"""QEMU's view of its guest: in which order it is asked for, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from panicd.evidence.qemu_view import BLOCK_QUERY, QUERIES, QemuView
from panicd.host.timers import Timers
from panicd.qemu.monitor import Command, SessionLostError
from panicd.qemu.pending import Question
from panicd.rules.capability import Capability

Done = Callable[[list[object]], None]


class Monitor:
    """A monitor that notes what it is asked.

    Args:
        told: what happens, in order.
        lost: the session has ended: it says so at once.
    """

    def __init__(self, told: list[str], *, lost: bool) -> None:
        self._told = told
        self._lost = lost
        self.questions: list[Question] = []

    def ask_with_fd(self, command: Command, fd: int, done: Done, *, timeout: float) -> Question:
        os.fstat(fd)
        return self.ask([command], done, timeout=timeout)

    def ask(self, commands: Sequence[Command], done: Done, *, timeout: float) -> Question:
        self._told.extend(name for name, _ in commands)
        question = Question([name for name, _ in commands], timeout, done)
        self.questions.append(question)
        for index in range(len(commands)) if self._lost else ():
            question.put(index, SessionLostError("it has ended"))
        return question


class Session:
    """A session with that monitor."""

    capability = Capability((7, 2, 0))

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = self.qmp = monitor


def view_of(told: list[str], *, lost: bool) -> tuple[QemuView, Monitor]:
    """Return a view that has begun, and its monitor."""
    monitor = Monitor(told, lost=lost)
    view = QemuView(
        cast("Any", Session(monitor)),
        Timers(),
        asked=lambda: told.append("asked"),
        done=lambda: told.append("done"),
    )
    view.begin(3.0)
    return view, monitor


def open_files() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_everything_is_asked_for_before_that_is_said() -> None:
    told: list[str] = []
    view, monitor = view_of(told, lost=False)
    assert told == ["add-fd"]
    monitor.questions[0].put(0, {"fd": 20, "fdset-id": 1})
    state = ["human-monitor-command", *QUERIES, BLOCK_QUERY]
    assert told == ["add-fd", "screendump", "remove-fd", *state, "asked"]
    for index in range(len(state) + 2):
        monitor.questions[1].put(index, {})
    assert told[-1] == "done"
    assert str(view.picture) == "what QEMU wrote is no picture"


async def test_a_session_that_has_ended_is_said_after_it_was_asked() -> None:
    told: list[str] = []
    view, _ = view_of(told, lost=True)
    assert told[-2:] == ["asked", "done"]
    assert isinstance(view.picture, SessionLostError)
    assert isinstance(view.registers, SessionLostError)


@pytest.mark.parametrize("answered", [0, 1])
async def test_what_does_not_come_is_given_up(answered: int) -> None:
    told: list[str] = []
    before = open_files()
    view, monitor = view_of(told, lost=False)
    for question in monitor.questions[:answered]:
        question.put(0, {"fd": 20, "fdset-id": 1})
    view.give_up()
    assert told[-1] == "done"
    assert told.count("asked") == told.count("done") == 1
    assert "no answer in 3 s" in str(view.picture)
    assert open_files() == before
