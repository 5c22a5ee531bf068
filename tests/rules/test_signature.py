"""What a panic is known by: its title, its functions, and when nothing is to be said."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import pytest

from panicd.rules.last_words import LastWords, words_of_console, words_of_log
from panicd.rules.panic_text.cause import Worth
from panicd.rules.panic_text.line import LogLine
from panicd.rules.panic_text.trace import FRAMES
from panicd.rules.qapi import PanicInformation
from panicd.rules.signature import Signature, signature_of_payload

OOPS = """\
BUG: kernel NULL pointer dereference, address: 0000000000000008
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 3 PID: 4711 Comm: nginx Not tainted 6.1.0-56-cloud-amd64 #1
RIP: 0010:queue_put.isra.0+0x12/0x40 [vendor]
Code: 48 3d 01 f0 ff ff 73 01 c3
Call Trace:
 <TASK>
 ? __die+0x1f/0x70
 ? page_fault_oops+0x174/0x530
 ? asm_exc_page_fault+0x22/0x30
 memcpy_erms+0x6/0x10
 queue_flush.cold+0x1a/0x60 [vendor]
 vendor_ioctl+0x9b/0x1e0 [vendor]
 __x64_sys_ioctl+0x8d/0xd0
 do_syscall_64+0x3b/0x90
RIP: 0033:0x7f2d6b8a7e9b
---[ end trace 0000000000000000 ]---
Kernel panic - not syncing: Fatal exception
"""
ARM = """\
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008
Mem abort info:
Internal error: Oops: 0000000096000044 [#1] SMP
pc : queue_put+0x10/0x30 [vendor]
lr : queue_flush+0x1c/0x60 [vendor]
Call trace:
 queue_put+0x10/0x30 [vendor]
 queue_flush+0x1c/0x60 [vendor]
 vendor_ioctl+0x98/0x1d0 [vendor]
Kernel panic - not syncing: Oops: Fatal exception
"""
STALL = """\
rcu: INFO: rcu_preempt self-detected stall on CPU
rcu: \t2-....: (5249 ticks this GP) idle=1a3/1/0x4000000000000000
rcu: rcu_preempt kthread starved for 5250 jiffies! g1 f0x0
rcu: RCU grace-period kthread stack dump:
Call Trace:
 __schedule+0x34d/0xa00
 schedule+0x5a/0xd0
 rcu_gp_kthread+0x1f/0x30
 kthread+0xda/0x100
NMI backtrace for cpu 2
Call Trace:
 <IRQ>
 rcu_dump_cpu_stacks+0x10/0x20
 hrtimer_interrupt+0x10/0x20
 asm_sysvec_apic_timer_interrupt+0x1a/0x20
 </IRQ>
RIP: 0010:list_walk_{inner}+0x5/0x10
 list_walk+0x5/0x10
 vendor_ioctl+0x9b/0x1e0 [vendor]
 __x64_sys_ioctl+0x8d/0xd0
 do_syscall_64+0x3b/0x90
Kernel panic - not syncing: RCU Stall
"""
HUNG = """\
INFO: task postgres:9112 blocked for more than 120 seconds.
      Not tainted 6.1.0-56-cloud-amd64 #1
task:postgres        state:D stack:0     pid:9112  ppid:1      flags:0x00000002
Call Trace:
 __schedule+0x34d/0xa00
 schedule+0x5a/0xd0
 io_schedule+0x46/0x70
 wait_for_vendor_queue+0x10/0x20 [vendor]
 submit_bio_wait+0x5b/0x80
INFO: task jbd2/vda1-8:133 blocked for more than 121 seconds.
Kernel panic - not syncing: hung_task: blocked tasks
"""
WARNED_OLD_KERNEL = """\
WARNING: CPU: 0 PID: 98 at /home/me/build/drivers/vendor.c:28 queue_check+0xa0/0x140
Kernel panic - not syncing: panic_on_warn set ...
CPU: 0 PID: 98 Comm: nginx Not tainted 4.4.0 #1
Call Trace:
 [<ffffffff81d94b69>] dump_stack+0xc1/0x128
 [<ffffffff8142f46a>] panic+0x1bc/0x3a8
 [<ffffffff812c1d8c>] ? queue_size+0x5/0x10
 [<ffffffff812c1d8b>] queue_flush+0x1b/0x60
"""
WARNED_IN_A_HELPER = """\
WARNING: CPU: 0 PID: 98 at kernel/sched/core.c:6136 __might_sleep+0x13a/0x190
Kernel panic - not syncing: panic_on_warn set ...
CPU: 0 PID: 98 Comm: nginx Not tainted 5.1.0 #6
Call Trace:
 panic+0x29d/0x5f2
 invalid_op+0x14/0x20
RIP: 0010:__might_sleep+0x13a/0x190
Code: 65 48 8b 1c 25 00 ee 01 00 48 8d 7b 10
RSP: 0018:ffff8880ad007b48 EFLAGS: 00010286
 __mutex_lock+0xcd/0x12b0
 queue_flush+0x1b/0x60
 vendor_ioctl+0x9b/0x1e0
RIP: 0033:0x7f2d6b8a7e9b
 queue_size+0x5/0x10
"""


def log(text: str, caller: str = "T4711") -> list[LogLine]:
    return [LogLine(n, n / 1000, 4, caller, line) for n, line in enumerate(text.splitlines())]


def words(text: str) -> LastWords:
    return words_of_log(log(text))


def known(text: str) -> Signature:
    signature = words(text).signature
    assert signature is not None
    return signature


@pytest.mark.parametrize(
    ("text", "title", "frames"),
    [
        (OOPS, "NULL pointer dereference", ("queue_put", "queue_flush", "vendor_ioctl")),
        (ARM, "NULL pointer dereference", ("queue_put", "queue_flush", "vendor_ioctl")),
        (
            STALL.format(inner="a"),
            "RCU stall",
            ("vendor_ioctl", "list_walk", "list_walk_a"),
        ),
        (HUNG, "hung task", ("wait_for_vendor_queue", "submit_bio_wait")),
        (WARNED_OLD_KERNEL, "WARNING at vendor.c", ("queue_check", "queue_flush")),
        (
            WARNED_IN_A_HELPER,
            "WARNING at kernel/sched/core.c",
            ("queue_flush", "vendor_ioctl"),
        ),
        (
            "BUG: KASAN: slab-use-after-free in queue_put+0x12/0x40\nWrite of size 8 at addr ff\n",
            "KASAN: use-after-free (write)",
            ("queue_put",),
        ),
        (
            "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(8,1)",
            "no root file system",
            (),
        ),
        (
            'Kernel panic - not syncing: vendor: queue 7 of "disk 3" at ffff8880 is gone',
            "panic: vendor: queue # of # at # is gone",
            (),
        ),
    ],
)
def test_a_panic_is_known_by_its_title_and_functions(
    text: str, title: str, frames: tuple[str, ...]
) -> None:
    text = text if "Kernel panic" in text else f"{text}{PANIC_ON_WARN}"
    signature = known(text)
    assert (signature.title, signature.frames) == (title, frames)
    assert re.fullmatch(r"1-[0-9a-f]{10}", signature.hash)


PANIC_ON_WARN = "Kernel panic - not syncing: kernel: panic_on_warn set ..."


def another(pattern: str, make: Callable[[random.Random], str]) -> Callable[[str, int], str]:
    def change(text: str, seed: int) -> str:
        numbers = random.Random(seed)  # noqa: S311 - nothing is kept secret by it
        return re.sub(pattern, lambda _: make(numbers), text)

    return change


CHANGES = [
    another(r"\+0x[0-9a-f]+/0x[0-9a-f]+", lambda r: f"+{r.randrange(1, 4096):#x}/0x1000"),
    another(r"CPU: \d+ PID: \d+", lambda r: f"CPU: {r.randrange(64)} PID: {r.randrange(9999)}"),
    another(r"Comm: \S+", lambda r: f"Comm: worker-{r.randrange(9)}"),
    another(r"[0-9a-f]{16}", lambda r: f"{r.getrandbits(64):016x}"),
    another(r"postgres:\d+", lambda r: f"mysqld:{r.randrange(9999)}"),
    another(r"more than \d+", lambda r: f"more than {r.randrange(120, 999)}"),
]


@pytest.mark.parametrize("text", [OOPS, ARM, STALL.format(inner="a"), HUNG, WARNED_OLD_KERNEL])
@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_of_another_guest_change_nothing(text: str, seed: int) -> None:
    changed = text
    for change in CHANGES:
        changed = change(changed, seed)
    assert known(changed) == known(text)


def test_one_kind_is_one_whatever_the_architecture_and_the_way_there() -> None:
    assert known(OOPS).hash == known(ARM).hash
    elsewhere = OOPS.replace("queue_flush.cold", "queue_reset")
    assert known(elsewhere).hash == known(OOPS).hash
    assert known(elsewhere).frames != known(OOPS).frames
    assert known(OOPS.replace("queue_put", "queue_get")).hash != known(OOPS).hash


@pytest.mark.parametrize(
    "trace",
    [
        " panic+0x184/0x364\n vendor_next+0x0/0xa0\n vendor_stop+0x90/0x19c",
        (
            "dump_stack from panic+0x184/0x364\npanic from vendor_next+0x0/0xa0\n"
            "vendor_next from vendor_stop+0x90/0x19c"
        ),
    ],
)
def test_no_call_returns_to_a_function_s_beginning(trace: str) -> None:
    text = f"Kernel panic - not syncing: sysrq triggered crash\nCall trace:\n{trace}"
    assert known(text).frames == ("vendor_stop",)


def test_where_a_stall_was_come_upon_is_chance() -> None:
    assert known(STALL.format(inner="b")).hash == known(STALL.format(inner="a")).hash


def test_another_caller_s_trace_is_not_taken() -> None:
    lines = log(OOPS)
    between = log("RIP: 0010:somewhere_else+0x1/0x2\nCall Trace:\n other_cpu+0x1/0x2", "C3")
    assert words_of_log([*lines[:4], *between, *lines[4:]]).signature == known(OOPS)


@pytest.mark.parametrize(
    "text",
    [
        "Oops: 0002 [#1] SMP\nKernel panic - not syncing: Fatal exception",
        "WARNING: the sky falls\nKernel panic - not syncing: kernel: panic_on_warn set ...",
        # It begins within a trace: what is in sight is not the first of the cascade.
        " queue_flush+0x1b/0x60\n queue_put+0x1b/0x60\n" + HUNG,
    ],
)
def test_what_is_not_told_from_others_of_its_kind_is_weak(text: str) -> None:
    assert known(text).hash == ""


def test_a_consequence_alone_is_known_by_nothing() -> None:
    said = words("Kernel panic - not syncing: Fatal exception in interrupt")
    assert said.signature is None
    assert said.worth is Worth.CONSEQUENCE


def test_the_better_words_count() -> None:
    ring, console = words("Kernel panic - not syncing: Fatal exception"), words(OOPS)
    assert ring.or_better(console) is console
    assert console.or_better(ring) is console
    assert console.or_better(words(ARM)) is console


def test_what_a_guest_names_is_bounded() -> None:
    name = "f" * 5000
    signature = known(f"BUG: KASAN: {name} in {name}+0x1/0x2\n{PANIC_ON_WARN}")
    assert len(signature.title) <= 120
    assert all(len(frame) <= 64 for frame in signature.frames)
    assert len(signature.frames) <= FRAMES


@pytest.mark.parametrize(
    "unit",
    [
        "INFO: rcu", "INFO: task a:1 blocked for ", "BUG: a at b ", "BUG x (): a", "Oops: a: 0 ",
        "panic_on_", "a.a+0x", "WARNING: CPU: 0 PID: 0 at a:", "[<0>] ", "? ", "\\", "a from ", "(",
        "Kernel panic - not syncing: ", "RIP: 0010:", "CPU 0 ", "rcu_rcu", " ", "0",
    ],
)  # fmt: skip
def test_no_text_of_a_guest_takes_long(unit: str) -> None:
    text = unit * (2048 // len(unit))
    panic = "Kernel panic - not syncing: Fatal exception"
    lines = [LogLine(n, n / 1000, 4, "T1", text) for n in range(512)]
    lines += [LogLine(512, 1.0, 4, "T1", panic)]
    began = time.process_time()
    words_of_log(lines)
    words_of_console(unit.encode() * (65536 // len(unit)))
    words_of_console(b"\n".join([b"[    1.000000] ", unit.encode() * 20] * 1000))
    assert time.process_time() - began < 1.0


def bug_check(*numbers: int) -> PanicInformation:
    return PanicInformation("hyper-v", tuple((f"arg{n}", v) for n, v in enumerate(numbers, 1)))


def test_a_windows_is_known_by_its_bug_check_and_its_small_parameters() -> None:
    first = signature_of_payload(bug_check(0x7B, 0xFFFFC08A_11C06AA0, 0xC0000034, 0, 1))
    second = signature_of_payload(bug_check(0x7B, 0xFFFFD00B_22D07BB0, 0xC0000034, 0, 1))
    assert first is not None
    assert first == second
    assert first.title == "bug check 0x7b INACCESSIBLE_BOOT_DEVICE (…, 0xc0000034, 0x0, 0x1)"
    extended = bug_check(0x7B, 0x7FFA_11C06AA0, 0xFFFFFFFF_C0000034, 0, 1)
    assert signature_of_payload(extended) == first
    assert first != signature_of_payload(bug_check(0x7B, 0xFFFFC08A_11C06AA0, 0xC0000034, 0, 2))


@pytest.mark.parametrize(
    "information",
    [
        None,
        PanicInformation("s390", ()),
        PanicInformation("hyper-v", (("arg1", 0x7B),)),
        bug_check(0x7B, 0x81 << 56, 0, 0, 0),  # a Linux, whose words tell more
    ],
)
def test_other_payloads_tell_nothing(information: PanicInformation | None) -> None:
    assert signature_of_payload(information) is None
