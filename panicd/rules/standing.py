"""A domain's standing, in one word: an operator looks for this first."""

from enum import StrEnum
from typing import Final


class Standing(StrEnum):
    """How a domain stands, the worst first."""

    FAILED = "failed"  # panicked; neither the policy nor its fallback could be carried out
    PRESERVED = "preserved"  # panicked; the guest is stopped and waits for somebody
    RESET = "reset"  # panicked; somebody else reset the guest, and has not let it run
    SILENT = "silent"  # its QEMU does not answer
    NOT_CONNECTED = "not-connected"
    ACTING = "acting"  # panicked; panicd is at work
    WATCHED = "watched"  # panicked; the guest handles that itself, within a time limit
    RUNNING_ON = "running-on"  # panicked; that is ignored, and the guest may panic again
    NO_PANIC_DEVICE = "no-panic-device"  # the guest can't report a panic
    NOT_ARMED = "not-armed"  # QEMU ends on a panic, or may
    LIBVIRT_ACTS = "libvirt-acts"  # libvirt acts on a panic, before panicd can
    HELD = "held"  # an operator suspended automation
    READY = "ready"
    SPARE = "spare"  # a second monitor of a domain


PROBLEMS: Final = frozenset(Standing) - {Standing.HELD, Standing.READY, Standing.SPARE}
"""The standings that somebody has to look at, now or before the next panic."""

_PLACES: Final[dict[str, float]] = {standing: place for place, standing in enumerate(Standing)}


def rank(standing: str, *, acknowledged: bool) -> float:
    """Return a domain's place in a list that has the worst first.

    An acknowledged one comes after the other problems: somebody sees to it.
    """
    return _PLACES[Standing.HELD] - 0.5 if acknowledged else _PLACES[standing]
