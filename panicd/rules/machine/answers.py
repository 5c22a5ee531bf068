"""What QEMU's answers say. QEMU may lie: panicd ignores answers that make no sense.

Source: QAPI ``query-status`` (``qapi/run-state.json``), ``query-migrate``
(``qapi/migration.json``), ``query-block-jobs`` (``qapi/block-core.json``), ``query-dump``
(``qapi/dump.json``).
"""

from typing import Final

from panicd.rules.qapi import RunState

MIGRATING: Final = frozenset(
    {
        "setup",
        "active",
        "device",
        "pre-switchover",
        "postcopy-active",
        "postcopy-device",
        "postcopy-paused",
        "postcopy-recover",
        "cancelling",
        "wait-unplug",
    }
)


def run_state_of(answer: object) -> RunState:
    """Return the run state in an answer to ``query-status``."""
    return RunState.parse(_member(answer, "status"))


def work_in_progress(migration: object, jobs: object, dump: object = None) -> str:
    """Return the work of QEMU that an action on the guest would cut off; empty: none.

    Args:
        migration: answer to ``query-migrate`` (QAPI ``MigrationStatus``).
        jobs: answer to ``query-block-jobs``; a ready mirror only waits for the command to end.
        dump: answer to ``query-dump``.
    """
    if _member(migration, "status") in MIGRATING:
        return "a migration"
    entries = jobs if isinstance(jobs, list) else []
    if any(isinstance(job, dict) and job.get("ready") is not True for job in entries):
        return "a block job"
    return "a dump" if _member(dump, "status") == "active" else ""


def _member(answer: object, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, str) else ""
