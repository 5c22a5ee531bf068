"""A domain's configuration, as frozen values with panicd's defaults.

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
    """A dump's format.

    ``elf``, ``kdump-lzo`` and ``kdump-snappy`` are QEMU's own (QAPI ``DumpGuestMemoryFormat``).
    panicd makes the others from QEMU's ``elf`` on its way to the file.
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
        """The format that panicd asks QEMU for."""
        return self.value if self in OF_QEMU else DumpFormat.ELF.value

    @property
    def is_of_windows(self) -> bool:
        """Whether it is a format of Windows dumps, for WinDbg."""
        return self in {DumpFormat.WIN_DMP, DumpFormat.WIN_DMP_ZSTD}

    @property
    def is_elf(self) -> bool:
        """Whether it is an ELF core, which suits a guest of any system."""
        return self in {DumpFormat.ELF, DumpFormat.ELF_ZSTD}

    def level(self, wanted: int) -> int:
        """Return the part of a dump level that the format supports.

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
        then: the action when the budget is spent.
    """

    max: int = 3
    window: float = 24 * 3600.0
    min_uptime: float = 120.0
    then: Action = Action.PRESERVE


@dataclass(frozen=True, slots=True)
class Flood:
    """The limits for a guest that panics without end.

    Attributes:
        max: panics within ``window`` that panicd ignores under ``on_crash: ignore``.
        window: seconds.
        then: the action past that limit: preserve, or ignore all the same.
        share: of one processor, above 0, that reading the domain's monitor may take.
    """

    max: int = 1000
    window: float = 10.0
    then: Action = Action.PRESERVE
    share: float = 0.1


@dataclass(frozen=True, slots=True)
class FreeSpaceFloor:
    """The space that a dump leaves free on its file system: the larger of the two values.

    Attributes:
        size: in bytes.
        fraction: as a share of the file system, 0 to 1.
    """

    size: int = 0
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class CoredumpSettings:
    """How and where panicd dumps memory.

    Attributes:
        directory: where finished dumps lie, one folder a domain.
        format: a dump's format.
        level: which pages to leave out: makedumpfile's dump level, 0 to 31.
        level_required: panicd makes no dump if it can't leave out all of these pages.
        timeout: after this many seconds panicd gives up a dump.
        keep: finished dumps kept of each domain, at least 1; of two or more, one is the first of a
            crash loop.
        max_total: bytes that the dumps of all domains may take together.
        min_free: the space that stays free on the file system.
        required: without a complete dump panicd preserves the guest and takes no action.
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
    """The evidence that panicd keeps of a panic, besides a dump.

    Attributes:
        budget: seconds by which taking evidence may delay the action.
        consoles: logs of the guest's console, whose end panicd keeps.
        keep: bundles kept of each domain, at least 1.
        max_total: bytes that the bundles of all domains may take together.
    """

    budget: float = 3.0
    consoles: tuple[Path, ...] = ()
    keep: int = 10
    max_total: int = 5 * 2**30


class StormAction(StrEnum):
    """The treatment of destructive actions while many domains panic at once."""

    PRESERVE = "preserve"  # panicd takes none and leaves the guests to an operator
    LIMIT = "limit"  # panicd takes a few at a time


@dataclass(frozen=True, slots=True)
class Storm:
    """When so many domains panic at once that their host, storage or image is the likely cause.

    Attributes:
        share: the share of the host's domains, 0 to 1, that must panic within ``window``.
        minimum: the number of domains that must panic at least.
        window: seconds.
        then: the treatment of destructive actions meanwhile.
        at_once: how many destructive actions may be under way, if ``then`` limits them.
    """

    share: float = 0.25
    minimum: int = 5
    window: float = 60.0
    then: StormAction = StormAction.PRESERVE
    at_once: int = 2


class JournalFailure(StrEnum):
    """The treatment of panics while panicd can't write the journal."""

    PRESERVE = "preserve"  # the guest stays as it is until panicd can write the journal
    ACT = "act"  # panicd applies the policy all the same, unrecorded


class RecordFirst(StrEnum):
    """Where a panic's first entries are before panicd acts."""

    MEMORY = "memory"  # it outlives panicd, and is gone when the guests are: with the host
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Relaunch:
    """How to start a VM again when its QEMU can't reset it, or is gone.

    One of ``command``, ``unit`` and ``libvirt_uri`` is not empty.

    Attributes:
        command: the argument list, run without a shell.
        timeout: for the command, and again for the domain's monitor to come back.
        unit: the systemd unit to start, or a pattern of it (``rules.unit_name``).
        libvirt_uri: the URI of the libvirt that starts it.
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
    """The treatment of a domain that libvirt preserves for panicd, once panicd stops."""

    KEEP = "keep"  # libvirt goes on preserving it
    RESTORE = "restore"  # libvirt acts on its panics as before


@dataclass(frozen=True, slots=True)
class LibvirtSettings:
    """The treatment of domains that libvirt runs.

    Attributes:
        uri: the URI of the libvirt that runs them (libvirt.org/uri.html).
        on_crash: whether their own ``<on_crash>`` is their policy.
        take_over: panicd tells libvirt to preserve a panicked guest, so that panicd can act.
        on_stop: whether libvirt goes on preserving when panicd stops.
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
    """One domain's configuration.

    Attributes:
        coredump: how panicd dumps its memory.
        on_crash: the configured reaction to its panic.
        fallback: the action if ``on_crash`` can't be obeyed: destroy, restart or preserve.
        panic_notifier: whether ``on_crash`` needs a panic device that was asked for.
        unrequested: the reaction instead if ``on_crash`` needs one and only a builtin one exists.
        restart: the restart budget.
        flood: how many panics panicd ignores, and how much reading them may cost.
        relaunch: how to start it anew, where configured.
        evidence: the evidence to keep of its panics; None: only the journal.
        enforce: panicd stops a panicked guest again if somebody else resumes it.
        timeouts: the steps' time limits.
        inherits_on_crash: the own ``on_crash`` of a domain that libvirt runs goes before this one.
        grace: seconds that a panicked guest has to dump and reset itself before panicd acts.
        kdump_timeout: the same for a guest that says it handles its panic by kdump.
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
