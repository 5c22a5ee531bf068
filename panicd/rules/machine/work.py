"""QEMU's work that an action would cut off, as QEMU's own events tell of it.

QEMU 3.0 and later tell of each job by JOB_STATUS_CHANGE, and of a migration by MIGRATION if the
migration capability ``events`` is set. A dump has no such event. It stops the guest before it
begins, and QEMU refuses ``cont`` until it has ended: so none is under way in a guest that runs.
A guest that sleeps (ACPI S3) is the exception: a dump does not stop it, and it wakes up by itself.

Source: QAPI ``qapi/job.json``, ``qapi/migration.json``, ``qapi/dump.json``; QEMU ``job.c``
(``job_state_transition``), ``migration/migration.c`` (``migrate_set_state``), ``dump/dump.c``
(``dump_init``), ``monitor/qmp-cmds.c`` (``qmp_cont``).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from panicd.rules.qapi import (
    MAX_TEXT,
    JobStatusEvent,
    MigrationEvent,
    SuspendEvent,
    WorkEvent,
)

FOLLOWED_SINCE: Final = (3, 0, 0)  # JOB_STATUS_CHANGE and query-jobs; MIGRATION is of 2.4
JOBS_AT_MOST: Final = 64
JOB_IS_OVER: Final = "null"
NO_MIGRATION: Final = "none"

_NOT_MIGRATING: Final = frozenset({NO_MIGRATION, "completed", "failed", "cancelled"})
_NOT_DUMPING: Final = frozenset({"none", "completed", "failed"})


class Known(StrEnum):
    """What panicd knows of a QEMU's work without asking."""

    IDLE = "idle"
    BUSY = "busy"  # perhaps: QEMU is asked before an action
    UNKNOWN = "unknown"  # as its events do not tell: QEMU is asked before each action


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one QEMU.

    Attributes:
        jobs: ids of its jobs, of all that are not over.
        migration: status of its last migration (QAPI ``MigrationStatus``).
    """

    jobs: frozenset[str] = frozenset()
    migration: str = NO_MIGRATION

    @property
    def is_nothing(self) -> bool:
        """True if this proves that nothing is under way."""
        return not self.jobs and self.migration in _NOT_MIGRATING


def found_work(followed: object, migration: object, jobs: object, dump: object) -> Work | None:
    """Return a QEMU's work, to be followed from now on; None: it can't be.

    Args:
        followed: answer to ``migrate-set-capabilities`` with ``events``.
        migration: answer to ``query-migrate``.
        jobs: answer to ``query-jobs``.
        dump: answer to ``query-dump``.
    """
    if followed != {} or not isinstance(migration, dict) or not isinstance(jobs, list):
        return None
    ids = [job.get("id") if isinstance(job, dict) else None for job in jobs[: JOBS_AT_MOST + 1]]
    known = frozenset(each for each in ids if isinstance(each, str) and 0 < len(each) <= MAX_TEXT)
    if len(known) != len(jobs) or len(known) > JOBS_AT_MOST:
        return None
    if not isinstance(dump, dict) or dump.get("status") not in _NOT_DUMPING:
        return None
    status = migration.get("status", NO_MIGRATION)
    return Work(known, status[:MAX_TEXT]) if isinstance(status, str) else None


def known(work: Work | None) -> Known:
    """Return what is known of a QEMU's work; None: it is not followed."""
    if work is None:
        return Known.UNKNOWN
    return Known.IDLE if work.is_nothing else Known.BUSY


def after(work: Work, event: WorkEvent) -> Work | None:
    """Return the work after an event; None: it can't be followed any more."""
    match event:
        case JobStatusEvent(id=""):
            return None
        case JobStatusEvent(id=number, status=status):
            jobs = work.jobs - {number} if status == JOB_IS_OVER else work.jobs | {number}
            return replace(work, jobs=jobs) if len(jobs) <= JOBS_AT_MOST else None
        case MigrationEvent(status=status):
            return replace(work, migration=status)
        case SuspendEvent():
            return None
        case _:
            return work
