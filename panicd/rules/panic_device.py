"""The word for a VM's panic device."""

from enum import StrEnum


class PanicDevice(StrEnum):
    """Where a VM's panic device comes from."""

    REQUESTED = "requested"  # under /machine/peripheral*, or a CPU property such as hv-crash
    PLATFORM = "platform"  # the machine itself reports panics: s390, pseries, TDX
    BUILTIN = "builtin"  # under /machine/unattached: QEMU 1.5 and 1.6, pc-*-1.5 machines
    NEUTRALISED = "neutralised"  # a builtin one, moved to where no guest's driver finds it
    NONE = "none"
