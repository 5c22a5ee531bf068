"""The reasons of a panic that only follow from an earlier report of the kernel.

Source: Linux, the calls of ``panic()`` in ``kernel/panic.c``, ``kernel/exit.c``,
``kernel/watchdog.c``, ``kernel/hung_task.c``, ``kernel/rcu/tree_stall.h``, ``kernel/sched/core.c``,
``arch/*/kernel/traps.c``, ``arch/x86/kernel/dumpstack.c``, ``arch/x86/kernel/doublefault_32.c``,
``arch/x86/kernel/cpu/mce/core.c``, ``fs/ext4/super.c``.
"""

import re
from typing import Final

from panicd.rules.panic_text.heads import LOOKED_AT, ORIGINS, Nature

PANIC: Final = re.compile(r"Kernel panic - not syncing: ?(?P<reason>.*)")
"""The line that every Linux panic has, and the last line that a reader needs."""

_FAULTS: Final = frozenset({Nature.FAULT})

CONSEQUENCES: Final[tuple[tuple[re.Pattern[str], frozenset[Nature]], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), natures)
    for pattern, natures in (
        (r"(.*: )?Fatal exception", _FAULTS),
        (r"Oops\b", _FAULTS),
        (r"Aiee, killing interrupt handler", _FAULTS),
        (r"Attempted to kill (the idle task|init)", _FAULTS),
        (r"Machine halted\.", _FAULTS),
        (r"(kernel )?stack overflow", _FAULTS),
        (r"bad mode", _FAULTS),
        (r"Unrecoverable ", _FAULTS),
        (r"Oopsed too often", _FAULTS),
        (r"Warned too often", frozenset({Nature.REPORT})),
        (r".*\bpanic_on_warn set", frozenset({Nature.REPORT})),
        (r".*\b(kasan\.fault=\w+|panic_on_\w+) set", ORIGINS),
        (r"scheduling while atomic", frozenset({Nature.REPORT})),
        (r"softlockup: hung tasks", frozenset({Nature.SOFT_LOCKUP})),
        (r"Hard LOCKUP", frozenset({Nature.HARD_LOCKUP})),
        (r"RCU Stall", frozenset({Nature.RCU_STALL})),
        (r"hung_task: blocked tasks", frozenset({Nature.HUNG_TASK})),
        (
            r"(Fatal|Uncorrected) .*machine check|Fatal local machine check",
            frozenset({Nature.MACHINE_CHECK}),
        ),
        (r"Asynchronous SError Interrupt", frozenset({Nature.MACHINE_CHECK})),
        (r".*panic forced after error", frozenset({Nature.FILE_SYSTEM})),
    )
)
"""Each reason, with the natures of the troubles that it follows from."""


ITS_OWN: Final = re.compile(r"Attempted to kill init|scheduling while atomic|bad mode")
"""The reasons that are causes themselves if no trouble came before."""


def follows_from(reason: str) -> frozenset[Nature]:
    """Return the natures of the troubles that a reason follows from; empty if it is a cause."""
    reason = reason[:LOOKED_AT]
    found = (natures for pattern, natures in CONSEQUENCES if pattern.match(reason))
    return next(found, frozenset())
