"""What the kernel tells of a process by its pidfd."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from panicd.qemu import pidfd_info
from panicd.qemu.process_identity import uids_of

USERS = {0, 65_532, 65_533}
BECOMES_THEM = f"""
import os, sys
os.setresgid(1, 2, 3)
os.setresuid(*{sorted(USERS)[1:]}, 0)
print("now", flush=True)
sys.stdin.read()
"""


def told() -> bool:
    """Tell whether this kernel tells anything (Linux 6.13)."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        return pidfd_info.users(pidfd) is not None
    finally:
        os.close(pidfd)


@pytest.mark.skipif(not told(), reason="before Linux 6.13")
@pytest.mark.skipif(os.getuid() != 0, reason="only root may be several users")
def test_all_users_that_a_process_may_become_are_told() -> None:
    command = [sys.executable, "-c", BECOMES_THEM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        assert pidfd_info.users(pidfd) == uids_of(child.pid) == USERS
        child.communicate()
    assert pidfd_info.users(pidfd) is None  # it was reaped
    os.close(pidfd)


def test_an_older_kernel_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(25, os.strerror(25))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    pidfd = os.pidfd_open(os.getpid())
    assert pidfd_info.users(pidfd) is None
    assert pidfd_info.exit_status(pidfd) is None
    os.close(pidfd)
