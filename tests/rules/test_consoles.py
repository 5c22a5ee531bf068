"""Where a guest's consoles are written to, and what they say of its panic."""

import pytest

from panicd.rules.consoles import console_files, console_panic_line

QEMU = "/usr/bin/qemu-system-x86_64"


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["-serial", "file:/var/log/vm.log"], ("/var/log/vm.log",)),
        (["--serial", "file:vm,1.log"], ("vm,1.log",)),
        (["-chardev", "file,id=s0,path=/a,,b,append=on", "-serial", "chardev:s0"], ("/a,b",)),
        (["-chardev", "pty,id=s0,logfile=/log", "-device", "isa-serial,chardev=s0"], ("/log",)),
        (["-chardev", "file,path=/a,id=s0", "-serial", "file:/a"], ("/a",)),
        (["-chardev", "socket,id=m,path=/qmp.sock,logfile=/m.log", "-mon", "chardev=m"], ()),
        (["-chardev", "file,id=m,path=/m.log", "-qmp", "chardev:m"], ()),
        (["-chardev", "file,id=m,path=/m.log", "-object", "monitor-qmp,id=q,chardev=m"], ()),
        (["-chardev", "socket,id=s0,path=/console.sock"], ()),
        (["-serial", "stdio", "-append", "-serial file:/etc/shadow"], ()),
        (["-serial", "mon:stdio"], ()),
        ([], ()),
    ],
)
def test_console_files(arguments: list[str], files: tuple[str, ...]) -> None:
    assert console_files([QEMU, *arguments]) == files


PANIC = b"[   12.345678] Kernel panic - not syncing: Attempted to kill init!\r\n"
WORDS = "Kernel panic - not syncing: Attempted to kill init!"


@pytest.mark.parametrize(
    "end",
    [
        PANIC,
        b"[   12.345678][    T1] " + PANIC[15:],
        b"half of a line\r\nlogin: \x1b[2J\r\n" + PANIC + b"[   12.345700] CPU: 0 PID: 1\r\n",
        b"[ 9999.000000] Kernel panic - not syncing: before\n[    0.000000] Linux version\n"
        + PANIC,
    ],
)
def test_panic_line_is_the_last_boot_s(end: bytes) -> None:
    assert console_panic_line(end) == WORDS


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"\x00\xff" * 1000,
        b"Kernel panic - not syncing: without the kernel's time\n",
        PANIC + b"[    0.000000] Linux version 6.1: the panic was in the boot before\n",
    ],
)
def test_what_is_no_panic_of_this_boot_says_nothing(end: bytes) -> None:
    assert console_panic_line(end) == ""


def test_what_a_guest_writes_is_bounded_and_printable() -> None:
    end = b"[    1.000000] Kernel panic - not syncing: \x1b[31m" + b"x" * 60_000
    line = console_panic_line(end)
    assert line.isprintable()
    assert len(line) <= 256
