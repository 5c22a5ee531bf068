"""The differences between versions of QEMU, as far as panicd meets them.

The figures are those that the real versions showed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class RunState(StrEnum):
    """The run states that the fake can be in, by their QAPI names."""

    RUNNING = "running"
    PAUSED = "paused"
    PRELAUNCH = "prelaunch"
    GUEST_PANICKED = "guest-panicked"
    SHUTDOWN = "shutdown"
    SAVE_VM = "save-vm"
    INTERNAL_ERROR = "internal-error"
    INMIGRATE = "inmigrate"
    POSTMIGRATE = "postmigrate"
    IO_ERROR = "io-error"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How one version of QEMU differs.

    Attributes:
        version: major, minor, micro.
        package: As the greeting tells it.
        panicked_after_reset: The state of a panicked guest after ``system_reset``; where it is
            prelaunch, every stopped guest is.
        cont_resumes_panicked: Whether ``cont`` resumes a panicked guest.
        exits_on_panic: Whether a panic ends QEMU where nothing asks for anything else.
        announces_end_twice: Whether it then sends GUEST_PANICKED twice, pause and poweroff.
        replies_before_reset: Whether the replies to ``system_reset`` and ``quit`` come before their
            RESET and SHUTDOWN.
        set_action: Whether it knows ``set-action``.
        dump_formats: What ``dump-guest-memory`` takes as ``format``; none: it takes no format.
        detached_dump: Whether it knows ``detach``, ``query-dump`` and DUMP_COMPLETED.
        schema: Whether it knows ``query-qmp-schema``.
        crashloaded: Whether it knows GUEST_CRASHLOADED.
        event_details: Whether RESET and SHUTDOWN say who caused them.
        out_of_band: Whether the greeting offers ``oob``.
        singlestep: Whether ``query-status`` tells of it.
        builtin_pvpanic: Whether a panic device is there though nobody asked for it.
        pvpanic_events: The device's property ``events``; None: it has none.
    """

    version: tuple[int, int, int]
    package: str = ""
    panicked_after_reset: RunState = RunState.PRELAUNCH
    cont_resumes_panicked: bool = True
    exits_on_panic: bool = True
    announces_end_twice: bool = False
    replies_before_reset: bool = False
    set_action: bool = True
    dump_formats: tuple[str, ...] = ("elf", "kdump-zlib", "win-dmp")
    detached_dump: bool = True
    schema: bool = True
    crashloaded: bool = True
    event_details: bool = True
    out_of_band: bool = True
    singlestep: bool = True
    builtin_pvpanic: bool = False
    pvpanic_events: int | None = 3


_OLD = Profile(
    version=(2, 8, 0),
    announces_end_twice=True,
    replies_before_reset=True,
    set_action=False,
    dump_formats=("elf", "kdump-zlib"),
    crashloaded=False,
    event_details=False,
    out_of_band=False,
    pvpanic_events=None,
)

QEMU_2_8 = _OLD

QEMU_2_6 = replace(_OLD, version=(2, 6, 2), exits_on_panic=False)

QEMU_2_5 = replace(
    QEMU_2_6,
    version=(2, 5, 0),
    panicked_after_reset=RunState.GUEST_PANICKED,
    detached_dump=False,
)

QEMU_1_7 = replace(QEMU_2_5, version=(1, 7, 0), dump_formats=(), schema=False)

QEMU_1_6 = replace(
    QEMU_1_7,
    version=(1, 6, 2),
    cont_resumes_panicked=False,
    panicked_after_reset=RunState.PAUSED,
)

QEMU_1_5 = replace(QEMU_1_6, version=(1, 5, 3), builtin_pvpanic=True)

QEMU_7_2 = Profile(version=(7, 2, 22), package="Debian 1:7.2+dfsg-7+deb12u18+b3")

QEMU_10_0 = Profile(
    version=(10, 0, 13),
    package="Debian 1:10.0.13+ds-0+deb13u1",
    dump_formats=("elf", "kdump-zlib", "kdump-raw-zlib", "win-dmp"),
    singlestep=False,
    pvpanic_events=7,
)

QEMU_2_0 = replace(QEMU_2_5, version=(2, 0, 0), schema=False)

BUILTIN = {"1.5.0", "1.5.3", "1.6.0", "1.6.1", "1.6.2"}
"""The versions that have a panic device in machines of type pc-i440fx-1.5 and pc-q35-1.5."""

RECORDED = {
    "1.5.0": replace(QEMU_1_5, version=(1, 5, 0), builtin_pvpanic=False),
    "1.5.3": replace(QEMU_1_5, builtin_pvpanic=False),
    "1.6.0": replace(QEMU_1_6, version=(1, 6, 0)),
    "1.6.1": replace(QEMU_1_6, version=(1, 6, 1)),
    "1.6.2": QEMU_1_6,
    "1.7.0": QEMU_1_7,
    "2.0.0": QEMU_2_0,
    "2.1.3": replace(QEMU_2_0, version=(2, 1, 3)),
    "2.5.0": QEMU_2_5,
    "2.6.2": QEMU_2_6,
    "2.8.0": QEMU_2_8,
}
"""The releases whose monitors were recorded, as machines without a builtin device."""

RHEL_7 = replace(QEMU_1_7, version=(1, 5, 3), package=" (qemu-kvm-1.5.3-175.el7_9.6)")
"""RHEL 7's, according to its patches."""
