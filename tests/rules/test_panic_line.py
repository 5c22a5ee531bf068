import pytest

from panicd.rules.kernel_log import LogLine, panic_line
from tests.rules.kernel_logs import PANIC

NOT_SYNCING = "Kernel panic - not syncing: "
FATAL = "Kernel panic - not syncing: Fatal exception"


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
        # init itself met the fault, and is dead of it.
        ([*OOPS, f"{NOT_SYNCING}Attempted to kill init! exitcode=0x00000009"], OOPS[0]),
        (
            [f"{NOT_SYNCING}Attempted to kill init! exitcode=0x00007f00"],
            f"{NOT_SYNCING}Attempted to kill init! exitcode=0x00007f00",
        ),
        ([*OOPS, f"{NOT_SYNCING}Oops: Fatal exception"], OOPS[0]),
        (
            ["Internal error: Oops - BUG: 0 [#1] SMP", f"{NOT_SYNCING}Oops - BUG: Fatal exception"],
            "Internal error: Oops - BUG: 0 [#1] SMP",
        ),
        (
            [
                "Internal error: synchronous external abort: 0000000096000210 [#1] SMP",
                f"{NOT_SYNCING}synchronous external abort: Fatal exception",
            ],
            "Internal error: synchronous external abort: 0000000096000210 [#1] SMP",
        ),
        (
            ["traps: PANIC: double fault, error_code: 0x0", f"{NOT_SYNCING}Machine halted."],
            "traps: PANIC: double fault, error_code: 0x0",
        ),
        (
            [
                "BUG: scheduling while atomic: nginx/812/0x00000002",
                f"{NOT_SYNCING}scheduling while atomic",
            ],
            "BUG: scheduling while atomic: nginx/812/0x00000002",
        ),
        (
            [
                "mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 4: b200000000070f0f",
                "mce: [Hardware Error]: TSC 5d0f2a",
                f"{NOT_SYNCING}Fatal machine check on current CPU",
            ],
            "mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 4: b200000000070f0f",
        ),
        (
            [
                "EXT4-fs error (device vda1): ext4_lookup:1785: inode #2: comm ls: deleted inode",
                f"{NOT_SYNCING}EXT4-fs (device vda1): panic forced after error",
            ],
            "EXT4-fs error (device vda1): ext4_lookup:1785: inode #2: comm ls: deleted inode",
        ),
        # The first of the cascade.
        (
            [
                "INFO: task kworker/u8:3:412 blocked for more than 120 seconds.",
                "INFO: task postgres:9112 blocked for more than 121 seconds.",
                f"{NOT_SYNCING}hung_task: blocked tasks",
            ],
            "INFO: task kworker/u8:3:412 blocked for more than 120 seconds.",
        ),
        (
            [*OOPS, "BUG: unable to handle page fault for address: ffffe9048f3cce38", FATAL],
            OOPS[0],
        ),
        (
            [
                "refcount_t: underflow; use-after-free.",
                "WARNING: CPU: 2 PID: 98 at lib/refcount.c:28 refcount_warn_saturate+0xa0/0x140",
                *OOPS,
                FATAL,
            ],
            "WARNING: CPU: 2 PID: 98 at lib/refcount.c:28 refcount_warn_saturate+0xa0/0x140",
        ),
        (["sysrq: Trigger a crash", *OOPS, FATAL], "sysrq: Trigger a crash"),
        # In words that were unknown.
        (
            [
                "NMI watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [java:4021]",
                f"{NOT_SYNCING}softlockup: hung tasks",
            ],
            "NMI watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [java:4021]",
        ),
        (
            [
                "INFO: task fio:21128 can't die for more than 143 seconds.",
                f"{NOT_SYNCING}hung_task: blocked tasks",
            ],
            "INFO: task fio:21128 can't die for more than 143 seconds.",
        ),
        (
            ["segment-related general protection fault: 0a18 [#1] SMP", FATAL],
            "segment-related general protection fault: 0a18 [#1] SMP",
        ),
        (
            ["watchdog: Watchdog CPU:59 Hard LOCKUP", f"{NOT_SYNCING}Hard LOCKUP"],
            "watchdog: Watchdog CPU:59 Hard LOCKUP",
        ),
        (
            ["WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xa0/0x140, CPU#2: nginx/98"],
            "",  # without a panic it was got over
        ),
        (["UBSAN: shift-out-of-bounds in fs/ext4/super.c:1:2", "all is well"], ""),
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


def test_an_old_warning_is_not_what_led_to_a_fault() -> None:
    warning = "WARNING: CPU: 2 PID: 98 at lib/refcount.c:28 refcount_warn_saturate+0xa0/0x140"
    lines = [*said(warning), *said(*OOPS, FATAL, at=20.0)]
    assert panic_line(lines) == OOPS[0]
    assert panic_line([*said(warning, at=17.0), *lines[1:]]) == warning


def test_a_line_with_a_later_time_hides_nothing_before_it() -> None:
    warned = said("WARNING: CPU: 2 PID: 1194 at net/vendor.c:28 vendor_exit+0x1/0x2")
    elsewhere = said("INFO: rcu_sched detected stalls on CPUs/tasks:", at=2920.0)
    panic = said(f"{NOT_SYNCING}panic_on_warn set ...", at=0.1)
    assert panic_line([*warned, *elsewhere, *panic]) == warned[0].text


def test_init_may_die_of_something_else_than_a_fault_of_another() -> None:
    killed = f"{NOT_SYNCING}Attempted to kill init! exitcode=0x0000000b"
    assert panic_line([*said(*OOPS), *said(killed, at=1.0)]) == OOPS[0]
    assert panic_line([*said(*OOPS), *said(killed, at=10.0)]) == killed


def test_a_fault_of_old_is_no_cause_where_there_is_no_panic() -> None:
    assert panic_line([*said(*OOPS), *said("all is well", at=3600.0)]) == ""
