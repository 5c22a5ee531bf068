"""The troubles that make a real Linux guest panic; a module makes some of them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.parts.apt import Apt
from tests.parts.linux import Kernel, Trouble, one_at_a_time
from tests.parts.linux_module import built_module


@dataclass(frozen=True)
class Kind:
    """A kind of panic.

    Attributes:
        line: What the line that says why begins with.
        title: Of its signature.
        frame: The first of its functions; empty: whichever.
        then: As for ``Trouble``, as the rest.
    """

    line: str
    title: str
    frame: str = ""
    then: str = ""
    append: str = ""
    cpus: int = 1
    script: str = "init"


def _load(kind: str, *settings: str) -> str:
    written = [f"/bin/busybox sysctl -w {setting}" for setting in settings]
    return "\n".join([*written, f"/bin/busybox insmod /trouble.ko kind={kind}", _STAY])


_STAY = "while true; do /bin/busybox sleep 1; done"

KINDS = {
    "null": Kind(
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "NULL pointer dereference",
        "write_to_nowhere",
        _load("null", "kernel.panic_on_oops=1"),
    ),
    "bug": Kind(
        "kernel BUG at ",
        "kernel BUG at trouble.c",
        "meet_a_bug",
        _load("bug", "kernel.panic_on_oops=1"),
    ),
    "warn": Kind(
        "WARNING: CPU: 0 PID: ",
        "WARNING at trouble.c",
        "warn_of_something",
        _load("warn", "kernel.panic_on_warn=1"),
    ),
    "stuck": Kind(
        "watchdog: BUG: soft lockup - CPU#",
        "soft lockup",
        "never_give_way",
        _load(
            "stuck",
            "kernel.watchdog_thresh=2",
            "kernel.softlockup_all_cpu_backtrace=1",
            "kernel.softlockup_panic=1",
        ),
        cpus=4,
    ),
    "hung": Kind(
        "INFO: task waiter:",
        "hung task",
        "wait_for_ever",
        _load("hung", "kernel.hung_task_timeout_secs=2", "kernel.hung_task_panic=1"),
    ),
    "init": Kind("Kernel panic - not syncing: Attempted to kill init!", "init killed"),
    "memory": Kind(
        "Kernel panic - not syncing: Out of memory",
        "out of memory",
        then="\n".join(
            [
                "/bin/busybox sysctl -w vm.panic_on_oom=1",
                "/bin/busybox mount -t ramfs none /sbin",
                "/bin/busybox yes > /sbin/full",
                _STAY,
            ]
        ),
    ),
    "root": Kind(
        "Kernel panic - not syncing: VFS: Unable to mount root fs",
        "no root file system",
        # Its kernel runs this to find a module for the file system.
        append="root=/dev/nowhere rootfstype=nosuchfs",
        script="sbin/modprobe",
    ),
}


def make_trouble(kind: Kind, kernel: Kernel) -> Trouble:
    """How a guest comes to panic of a kind.

    Raises:
        MissingError: The module for it can't be had here; says why.
    """
    module = None
    if "trouble.ko" in kind.then:
        with one_at_a_time():
            module = built_module("trouble", kernel.image, Apt())
    return Trouble(kind.then, kind.append, kind.cpus, module, kind.script)
