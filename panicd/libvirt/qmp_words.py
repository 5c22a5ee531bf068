"""Translates libvirt's answers into QMP's words. Pure."""

import json
from collections.abc import Callable
from typing import Final

from panicd.libvirt import requests
from panicd.libvirt.errors import LibvirtError, LibvirtRefusedError
from panicd.libvirt.protocol import DomainRef
from panicd.libvirt.requests import Job, Request
from panicd.qemu.monitor_error import CommandError, NoReplyError
from panicd.rules.foreign_json import is_too_nested

# libvirt-domain.h, 'virDomainJobType' and 'virDomainJobOperation':
_ACTIVE: Final = frozenset({1, 2})  # its length is known, or not
_DUMP, _BACKUP = 8, 9


QEMU_EVENTS: Final = (
    *("GUEST_PANICKED", "GUEST_CRASHLOADED", "GUEST_PVSHUTDOWN"),
    *("STOP", "RESUME", "RESET", "SHUTDOWN"),
)
"""The QEMU events that panicd asks libvirt to pass on."""


ACTS: Final[dict[str, Callable[[DomainRef], Request[None]]]] = {
    "system_reset": requests.reset,
    "cont": requests.resume,
    "stop": requests.suspend,
    "quit": requests.destroy,
}
"""QMP's commands, as calls to libvirt."""


def failure(name: str, error: LibvirtError) -> Exception:
    """Return why there is no answer to a command."""
    if isinstance(error, LibvirtRefusedError):
        return CommandError("GenericError", str(error))
    return NoReplyError(f"{name}: {error}")


def data(details: str) -> object:
    """Return the data of a QEMU event, which libvirt passes on as text."""
    if not details or is_too_nested(details.encode()):
        return {}
    try:
        return json.loads(details)
    except ValueError:
        return {}


def _migration(job: Job) -> object:
    """Return any other job that is under way: to QEMU, saving and restoring are migrations."""
    moves = job.type in _ACTIVE and job.operation not in {_DUMP, _BACKUP}
    return {"status": "active" if moves else "none"}


def _block_jobs(job: Job) -> object:
    return [{"ready": False}] if job.type in _ACTIVE and job.operation == _BACKUP else []


def _dump(job: Job) -> object:
    return {"status": "active" if job.type in _ACTIVE and job.operation == _DUMP else "none"}


ABOUT_JOB: Final[dict[str, Callable[[Job], object]]] = {
    "query-migrate": _migration,
    "query-block-jobs": _block_jobs,
    "query-dump": _dump,
}
