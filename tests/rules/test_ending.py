import signal

import pytest

from panicd.rules.ending import Cause, cause_of_end
from panicd.rules.qapi import ShutdownEvent

EXIT_0, EXIT_1 = 0, 1 << 8  # as wait(2) gives them


def shutdown(reason: str, *, guest: bool = False) -> ShutdownEvent:
    return ShutdownEvent(0.0, guest, reason)


@pytest.mark.parametrize(
    ("event", "gone", "status", "expected"),
    [
        (None, False, None, Cause.DISCONNECTED),
        (shutdown("host-qmp-quit"), False, None, Cause.DISCONNECTED),
        (None, True, None, Cause.GONE),
        (None, True, EXIT_0, Cause.QEMU_EXITED),
        (None, True, EXIT_1, Cause.QEMU_ERROR),
        (None, True, signal.SIGKILL, Cause.HOST_KILLED),
        (None, True, signal.SIGSEGV, Cause.QEMU_CRASHED),
        (None, True, signal.SIGABRT | 0x80, Cause.QEMU_CRASHED),  # it left a core file
        (shutdown("guest-panic", guest=True), True, EXIT_0, Cause.GUEST_PANIC),
        (shutdown("guest-panic", guest=True), True, None, Cause.GUEST_PANIC),
        (shutdown("guest-shutdown", guest=True), True, EXIT_0, Cause.GUEST_SHUTDOWN),
        (shutdown("guest-reset", guest=True), True, EXIT_0, Cause.GUEST_RESET),
        (shutdown("host-qmp-quit"), True, EXIT_0, Cause.HOST_QUIT),
        (shutdown("host-signal"), True, EXIT_0, Cause.HOST_QUIT),
        (shutdown("host-qmp-quit"), True, signal.SIGKILL, Cause.HOST_KILLED),
        (shutdown("", guest=True), True, None, Cause.GUEST_SHUTDOWN),  # a QEMU before 4.0
        (shutdown(""), True, EXIT_0, Cause.QEMU_EXITED),
        (shutdown("host-error"), True, None, Cause.QEMU_ERROR),
    ],
)
def test_endings_are_told_apart(
    event: ShutdownEvent | None, gone: bool, status: int | None, expected: Cause
) -> None:
    assert cause_of_end(event, gone, status) is expected
