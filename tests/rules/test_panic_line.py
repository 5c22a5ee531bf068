import itertools

import pytest

from panicd.rules.kernel_log import LogLine, panic_line
from tests.rules.kernel_logs import PANIC


def said(*lines: str, at: float = 0.0) -> list[LogLine]:
    return [LogLine(n, at + n / 100, 4, "T1", text) for n, text in enumerate(lines)]


OOPS = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "#PF: supervisor write access in kernel mode",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "RIP: 0010:do_something+0x12/0x40 [driver]",
]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["sysrq: Trigger a crash", PANIC, "CPU: 0 PID: 85"], PANIC),
        (
            [*OOPS, "Kernel panic - not syncing: Fatal exception", "Kernel Offset: 0x30c00000"],
            OOPS[0],
        ),
        (
            [*OOPS, "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009"],
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
        ),
        (
            [
                "kernel BUG at fs/ext4/inode.c:2721!",
                "Oops: invalid opcode: 0000 [#1] PREEMPT SMP",
                "Kernel panic - not syncing: Fatal exception in interrupt",
            ],
            "kernel BUG at fs/ext4/inode.c:2721!",
        ),
        (
            ["divide error: 0000 [#1] SMP", "Kernel panic - not syncing: Fatal exception"],
            "divide error: 0000 [#1] SMP",
        ),
        (
            [
                "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [stress:812]",
                "Kernel panic - not syncing: softlockup: hung tasks",
            ],
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [stress:812]",
        ),
        (
            [
                "INFO: task jbd2/vda1-8:133 blocked for more than 120 seconds.",
                "Kernel panic - not syncing: hung_task: blocked tasks",
            ],
            "INFO: task jbd2/vda1-8:133 blocked for more than 120 seconds.",
        ),
        (
            [
                "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "Kernel panic - not syncing: RCU Stall",
            ],
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        ),
        (
            [
                "WARNING: CPU: 0 PID: 1 at kernel/fork.c:1 copy_process+0x1/0x2",
                "Kernel panic - not syncing: kernel: panic_on_warn set ...",
            ],
            "WARNING: CPU: 0 PID: 1 at kernel/fork.c:1 copy_process+0x1/0x2",
        ),
        (
            [
                "BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
                "Kernel panic - not syncing: kasan.fault=panic set ...",
            ],
            "BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
        ),
        (
            ["Kernel panic - not syncing: Fatal exception"],
            "Kernel panic - not syncing: Fatal exception",
        ),
        (OOPS, OOPS[0]),
        (OOPS[1:], OOPS[2]),
        (["sysrq: Trigger a crash", "and nothing more"], "sysrq: Trigger a crash"),
        (["all is well", "---[ end Kernel panic - not syncing: Fatal exception ]---"], ""),
        ([], ""),
    ],
)
def test_panic_line(lines: list[str], why: str) -> None:
    assert panic_line(said(*lines)) == why


def test_an_earlier_trouble_is_not_the_cause() -> None:
    panic = "Kernel panic - not syncing: Fatal exception"
    assert panic_line([*said(*OOPS), *said(panic, at=3600.0)]) == panic


def test_a_panic_that_the_kernel_did_not_write_does_not_count() -> None:
    forged = LogLine(0, 0.0, 0, "T812", "Kernel panic - not syncing: buy now", by_kernel=False)
    assert panic_line([forged, *said(PANIC)]) == PANIC


def test_a_panic_line_is_bounded() -> None:
    assert len(panic_line(said(PANIC + "x" * 5000))) == 256


def test_every_line_counts_for_what_it_begins_with() -> None:
    for first, second in itertools.permutations(["Oops: 0002 [#1]", "BUG: unable to handle"]):
        assert panic_line(said(first, second)) == "BUG: unable to handle"
