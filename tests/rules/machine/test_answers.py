"""What QEMU's answers say, and what those say that make no sense."""

from __future__ import annotations

import pytest

from panicd.rules.machine.answers import run_state_of, work_in_progress
from panicd.rules.qapi import RunState


@pytest.mark.parametrize(
    ("migration", "jobs", "dump", "busy"),
    [
        ({}, [], {"status": "none"}, ""),
        ({"status": "completed"}, [], {"status": "completed"}, ""),
        ({"status": "active"}, [], None, "a migration"),
        ({"status": "none"}, [{"type": "mirror", "ready": False}], None, "a block job"),
        ({"status": "none"}, [{"type": "mirror", "ready": True}], None, ""),
        ({"status": "none"}, [], {"status": "active"}, "a dump"),
        ("nonsense", 7, [], ""),
    ],
)
def test_work_in_progress(migration: object, jobs: object, dump: object, busy: str) -> None:
    assert work_in_progress(migration, jobs, dump) == busy


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({"status": "running"}, RunState.RUNNING),
        ({"status": "of the union"}, RunState.UNKNOWN),
        ({"status": ["running"]}, RunState.UNKNOWN),
        ([], RunState.UNKNOWN),
    ],
)
def test_run_state(answer: object, state: RunState) -> None:
    assert run_state_of(answer) is state
