"""What the configuration says about a domain, as frozen values with panicd's defaults.

Durations are seconds, sizes bytes. ``panicd.config.config`` reads them from a file.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from panicd.rules.on_crash import Action, OnCrash


class PanicNotifier(StrEnum):
    """Whether ``on_crash`` needs a panic device that somebody asked for."""

    REQUIRED = "required"
    ANY = "any"


class DumpFormat(StrEnum):
    """What a dump is written as.

    ``elf``, ``kdump-lzo`` and ``kdump-snappy`` are QEMU's own (QAPI ``DumpGuestMemoryFormat``).
    The others panicd makes of QEMU's ``elf`` on its way.
    """

    ELF = "elf"
    ELF_ZSTD = "elf-zstd"
    KDUMP_ZLIB = "kdump-zlib"
    KDUMP_LZO = "kdump-lzo"
    KDUMP_SNAPPY = "kdump-snappy"
    WIN_DMP = "win-dmp"
    WIN_DMP_ZSTD = "win-dmp-zstd"

    @property
    def of_qemu(self) -> str:
        """What QEMU is asked for."""
        return self.value if self in OF_QEMU else DumpFormat.ELF.value

    @property
    def is_of_windows(self) -> bool:
        """Whether it is a Windows' that WinDbg opens."""
        return self in {DumpFormat.WIN_DMP, DumpFormat.WIN_DMP_ZSTD}

    @property
    def is_elf(self) -> bool:
        """Whether it is an ELF core, which any system's guest can have."""
        return self in {DumpFormat.ELF, DumpFormat.ELF_ZSTD}

    def level(self, wanted: int) -> int:
        """Return as much of a dump level as it can hold.

        Args:
            wanted: makedumpfile's dump level.
        """
        return wanted if self is DumpFormat.KDUMP_ZLIB else wanted & 1


OF_QEMU: Final = frozenset({DumpFormat.ELF, DumpFormat.KDUMP_LZO, DumpFormat.KDUMP_SNAPPY})


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a domain may be restarted.

    Attributes:
        max: restarts within ``window``; 0 allows none.
        window: seconds.
        min_uptime: seconds; a panic sooner than this after a restart is a crash loop.
        then: what is done when the budget is spent.
    """

    max: int = 3
    window: float = 24 * 3600.0
    min_uptime: float = 120.0
    then: Action = Action.PRESERVE


@dataclass(frozen=True, slots=True)
class Flood:
    """What is let pass of a guest that panics without end.

    Attributes:
        max: panics within ``window`` that are ignored, where ``on_crash`` is to ignore them.
        window: seconds.
        then: what is done past that: preserve, or ignore them all the same.
        share: of one processor, above 0, that reading the domain's monitor may take.
    """

    max: int = 1000
    window: float = 10.0
    then: Action = Action.PRESERVE
    share: float = 0.1


@dataclass(frozen=True, slots=True)
class FreeSpaceFloor:
    """The space that a dump leaves free on its file system: the larger of the two.

    Attributes:
        size: in bytes.
        fraction: as a share of the file system, 0 to 1.
    """

    size: int = 0
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class CoredumpSettings:
    """How and where memory is dumped.

    Attributes:
        directory: where finished dumps lie, one folder a domain.
        format: what a dump is written as.
        level: what is left out: makedumpfile's dump level, 0 to 31.
        level_required: no dump is made where less than that can be left out.
        timeout: after this long a dump is given up.
        keep: finished dumps kept of each domain, at least 1; of two or more, one is the first of a
            crash loop.
        max_total: what the dumps of all domains may take together.
        min_free: what stays free on the file system.
        required: without a complete dump the guest is preserved and the action not taken.
    """

    directory: Path
    format: DumpFormat = DumpFormat.KDUMP_ZLIB
    level: int = 31
    level_required: bool = False
    timeout: float = 1800.0
    keep: int = 2
    max_total: int = 50 * 2**30
    min_free: FreeSpaceFloor = FreeSpaceFloor(fraction=0.1)
    required: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is kept of a panic besides a dump.

    Attributes:
        budget: seconds that taking it may delay the action.
        consoles: logs of the guest's console, whose end is kept.
        keep: bundles kept of each domain, at least 1.
        max_total: bytes that the bundles of all domains may take together.
    """

    budget: float = 3.0
    consoles: tuple[Path, ...] = ()
    keep: int = 10
    max_total: int = 5 * 2**30


class StormAction(StrEnum):
    """What becomes of destructive actions while many domains panic at once."""

    PRESERVE = "preserve"  # none is taken: the guests are left for an operator
    LIMIT = "limit"  # a few are taken at a time


@dataclass(frozen=True, slots=True)
class Storm:
    """When so many domains panic at once that their host, storage or image is the likely cause.

    Attributes:
        share: of the host's domains, 0 to 1, that panicked within ``window``.
        minimum: and at least so many.
        window: seconds.
        then: what becomes of destructive actions meanwhile.
        at_once: how many may be under way, where ``then`` limits them.
    """

    share: float = 0.25
    minimum: int = 5
    window: float = 60.0
    then: StormAction = StormAction.PRESERVE
    at_once: int = 2


class JournalFailure(StrEnum):
    """What becomes of panics while the journal can't be written."""

    PRESERVE = "preserve"  # the guest is left as it is until the journal can be written
    ACT = "act"  # the policy is applied all the same, unrecorded


@dataclass(frozen=True, slots=True)
class Relaunch:
    """How a VM is started again when its QEMU can't reset it, or is gone.

    One of ``command``, ``unit`` and ``libvirt_uri`` is not empty.

    Attributes:
        command: the argument list, run without a shell.
        timeout: for the command, and again for the domain's monitor to come back.
        unit: the systemd unit to start, or a pattern of it (``rules.unit_name``).
        libvirt_uri: of the libvirt that is to start it.
    """

    command: tuple[str, ...] = ()
    timeout: float = 60.0
    unit: str = ""
    libvirt_uri: str = ""


class InheritOnCrash(StrEnum):
    """Where the ``on_crash`` of libvirt's domains comes from."""

    INHERIT = "inherit"  # from the domain, unless one of panicd's rules says another
    IGNORE = "ignore"  # from panicd's configuration alone


class OnStop(StrEnum):
    """What becomes of a domain that panicd has had libvirt preserve, when panicd stops."""

    KEEP = "keep"  # libvirt goes on preserving it
    RESTORE = "restore"  # libvirt acts on its panics as before


@dataclass(frozen=True, slots=True)
class LibvirtSettings:
    """How the domains are treated that libvirt runs.

    Attributes:
        uri: of the libvirt that runs them (libvirt.org/uri.html).
        on_crash: whether their own ``<on_crash>`` is their policy.
        take_over: libvirt is told to preserve a panicked guest, so that panicd can act.
        on_stop: what becomes of that when panicd stops.
    """

    uri: str
    on_crash: InheritOnCrash = InheritOnCrash.INHERIT
    take_over: bool = True
    on_stop: OnStop = OnStop.KEEP


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take before it counts as failed."""

    stop: float = 2.0
    quiet: float = 300.0
    reset: float = 10.0
    resume: float = 10.0
    quit: float = 10.0
    terminate: float = 10.0
    kill: float = 10.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What is configured for one domain.

    Attributes:
        coredump: how its memory is dumped.
        on_crash: what its panic leads to.
        fallback: what is done where that can't be obeyed: destroy, restart or preserve.
        panic_notifier: whether ``on_crash`` needs a panic device that was asked for.
        unrequested: what applies instead where it needs one and there is only a builtin one.
        restart: the restart budget.
        flood: how many panics are ignored, and what their reading may cost.
        relaunch: how it is started anew, where that is known.
        evidence: what is kept of its panics; None: nothing but the journal.
        enforce: a panicked guest that somebody else resumes is stopped again.
        timeouts: of the steps.
        inherits_on_crash: the own ``on_crash`` of a domain that libvirt runs goes before this one.
        grace: seconds that a panicked guest has to dump and reset itself before it is acted on.
        kdump_timeout: the same for one that says it handles its panic by kdump.
    """

    coredump: CoredumpSettings
    on_crash: OnCrash = OnCrash.PRESERVE
    fallback: Action = Action.PRESERVE
    panic_notifier: PanicNotifier = PanicNotifier.REQUIRED
    unrequested: OnCrash = OnCrash.PRESERVE
    restart: Budget = field(default_factory=Budget)
    flood: Flood = field(default_factory=Flood)
    relaunch: Relaunch | None = None
    evidence: Evidence | None = None
    enforce: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    inherits_on_crash: bool = False
    grace: float = 0.0
    kdump_timeout: float = 900.0
