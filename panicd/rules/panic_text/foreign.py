"""The panic lines of other systems than Linux, on a serial console.

Source: FreeBSD ``sys/kern/kern_shutdown.c`` and ``sys/amd64/amd64/trap.c``; OpenBSD
``sys/kern/subr_prf.c``; NetBSD ``sys/kern/subr_prf.c``; illumos ``usr/src/uts/common/os/panic.c``;
XNU ``osfmk/kern/debug.c``; EDK II ``UefiCpuPkg/Library/CpuExceptionHandlerLib`` and
``MdePkg/Library/BaseDebugLibSerialPort``; Go ``runtime/panic.go``, which gVisor's are;
Xen ``xen/drivers/char/console.c``; Zircon ``zircon/kernel/platform/debug.cc``.
"""

import re
from collections.abc import Sequence
from typing import Final

_BEGINS: Final = re.compile(
    r"Copyright \(c\) 1992-[0-9]+ The FreeBSD Project|---<<BOOT>>---"
    r"|(OpenBSD|NetBSD) [0-9]+\.[0-9]+|SunOS Release |Darwin Kernel Version|Starting gVisor"
    r"|UEFI firmware \(version|ZIRCON|\(XEN\) Xen version"
)
"""The first line of a boot."""

_PANICS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"panic\[cpu[0-9]+\]/thread=",  # illumos
        r"panic\(cpu [0-9]+ caller ",  # macOS
        r"[Pp]anic: ",  # the BSDs, gVisor
        r"(\(XEN\) )?Panic on CPU [0-9]+:",
        r"ZIRCON KERNEL PANIC",
        r"trusty: panic ",
        r"fatal error: ",  # gVisor
        r"Fatal trap [0-9]+: ",  # FreeBSD, before its panic
        r"!!!! .* Exception Type - ",  # EDK II, and so OVMF
        r"ASSERT(_EFI_ERROR)? [\[(]",
    )
)
"""The patterns: first those that tell most, then those that tell less of the same panic."""


def foreign_panic(lines: Sequence[str]) -> str:
    """Return the panic line of a system other than Linux; empty if there is none.

    Args:
        lines: the end of a console that is not Linux's.
    """
    begins = (number for number, line in enumerate(lines) if _BEGINS.match(line))
    last_boot = lines[max(begins, default=0) :]
    found = (line for pattern in _PANICS for line in last_boot if pattern.match(line))
    return next(found, "")
