"""Where a guest's consoles are written to, and what they say of its panic."""

import pytest

from panicd.rules.consoles import console_files
from panicd.rules.last_words import words_of_console


def panic_line(end: bytes) -> str:
    """What a console's end says of a panic."""
    return words_of_console(end).line


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
    assert panic_line(end) == WORDS


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"\x00\xff" * 1000,
        b"[1.000000] a\n[2.000000] b\n[3.000000] c\nKernel panic - not syncing: a user's words\n",
        PANIC + b"[    0.000000] Linux version 6.1: the panic was in the boot before\n",
    ],
)
def test_what_is_no_panic_of_this_boot_says_nothing(end: bytes) -> None:
    assert panic_line(end) == ""


@pytest.mark.parametrize(
    "before",
    [
        b"debian login: ",
        b"half of a user's li",
        b"\x1b[0;1;31m",
        b"\x1b]0;title\x07",
        b"<0>",
        b"[Tue Nov 24 10:11:12 2026] ",
        b"Nov 24 10:11:12 web-1 kernel: ",
        b"2026-11-24T10:11:12.123456+01:00 web-1 kernel: ",
    ],
)
def test_what_stands_before_the_kernel_s_time_is_left_out(before: bytes) -> None:
    end = b"[   12.000000] a\n[   12.100000] b\n" + before + PANIC
    assert panic_line(end) == WORDS


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"<0>",
        b"[Tue Nov 24 10:11:12 2026] ",
        b"Nov 24 10:11:12 web-1 kernel: ",
        b"2026-11-24T10:11:12,123456+01:00 ",
        b"[2026-11-24 10:11:12] ",
    ],
)
def test_a_console_need_not_have_the_kernel_s_time(before: bytes) -> None:
    lines = (b"EXT4-fs (vda1): mounted", WORDS.encode(), b"CPU: 0 PID: 1 Comm: init")
    assert panic_line(b"\r\n".join(before + line for line in lines)) == WORDS


def test_the_panic_of_the_boot_before_is_not_taken_though_the_new_one_is_quiet() -> None:
    before = b"BUG: kernel NULL pointer dereference, address: 0000000000000008\n"
    before += b"Kernel panic - not syncing: Fatal exception\nKernel Offset: disabled\n"
    over = b"---[ end Kernel panic - not syncing: Fatal exception ]---\n"
    assert panic_line(before + over) == before.splitlines()[0].decode()
    assert panic_line(before + over + b"login: \n" + WORDS.encode()) == WORDS
    reboots = b"Rebooting in 1 seconds..\n"
    assert panic_line(before + reboots + WORDS.encode()) == WORDS


def test_times_of_day_tell_what_is_near() -> None:
    oops = b"BUG: kernel NULL pointer dereference, address: 0000000000000008"
    fatal = b"Kernel panic - not syncing: Fatal exception"
    near = b"Nov 24 23:59:59 web-1 kernel: " + oops + b"\nNov 25 00:00:01 web-1 kernel: " + fatal
    assert panic_line(near) == oops.decode()
    assert panic_line(near.replace(b"23:59:59", b"23:49:59")) == fatal.decode()


@pytest.mark.parametrize(
    ("lines", "panic"),
    [
        (
            [
                "Fatal trap 12: page fault while in kernel mode",
                "fault virtual address\t= 0x8",
                "panic: page fault",
                "cpuid = 1",
            ],
            "panic: page fault",
        ),
        (
            ["OpenBSD 7.6 (GENERIC.MP) #338", 'panic: kernel diagnostic assertion "x" failed'],
            'panic: kernel diagnostic assertion "x" failed',
        ),
        (["[ 63.1234567] panic: trap", "[ 63.1234567] cpu0: Begin traceback..."], "panic: trap"),
        (
            ["panic[cpu0]/thread=fffffe0007a5dc20: BAD TRAP: type=e (#pf Page fault)"],
            "panic[cpu0]/thread=fffffe0007a5dc20: BAD TRAP: type=e (#pf Page fault)",
        ),
        (
            ['panic(cpu 2 caller 0xffffff80002d7b3a): "zone"@osfmk/kern/zalloc.c:1', "Backtrace"],
            'panic(cpu 2 caller 0xffffff80002d7b3a): "zone"@osfmk/kern/zalloc.c:1',
        ),
        (
            ["!!!! X64 Exception Type - 0E(#PF - Page-Fault)  CPU Apic ID - 00000000 !!!!"],
            "!!!! X64 Exception Type - 0E(#PF - Page-Fault)  CPU Apic ID - 00000000 !!!!",
        ),
        (
            ["ASSERT [PciBusDxe] MdeModulePkg/Bus/Pci/PciBusDxe/PciLib.c(512): Bridge != 0"],
            "ASSERT [PciBusDxe] MdeModulePkg/Bus/Pci/PciBusDxe/PciLib.c(512): Bridge != 0",
        ),
        (
            ["panic: runtime error: index out of range [5]", "", "goroutine 1 [running]:"],
            "panic: runtime error: index out of range [5]",
        ),
        (
            ["panic: of the boot before", "OpenBSD 7.6 (GENERIC.MP) #338", "all is well"],
            "",
        ),
        (["Linux version 6.1.0", "panic: of a program's", "Run /init as init process"], ""),
    ],
)
def test_other_systems_are_named_by_their_panic_line(lines: list[str], panic: str) -> None:
    assert panic_line("\r\n".join(lines).encode()) == panic


def test_what_a_guest_writes_is_bounded_and_printable() -> None:
    end = b"[    1.000000] Kernel panic - not syncing: \x1b[31m" + b"x" * 60_000
    line = panic_line(end)
    assert line.isprintable()
    assert len(line) <= 256
