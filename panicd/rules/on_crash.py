"""The words of ``on_crash``: the policy, and the action it comes down to.

Source: libvirt, formatdomain.html, 'Events configuration' (``on_crash``). ``ignore`` and the
two coredump variants of it and of ``preserve`` are panicd's.
"""

from enum import StrEnum


class Action(StrEnum):
    """The action on the guest, once its evidence is kept."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"
    IGNORE = "ignore"
    GRACE = "grace"  # none yet: the guest handles its panic itself, and is watched
    RELEASE = "release"  # an operator lets a preserved guest run
    NONE = "none"  # nothing is left to act on: QEMU is gone


class OnCrash(StrEnum):
    """The policy's word for the reaction to a domain's panic."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"
    IGNORE = "ignore"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"
    COREDUMP_PRESERVE = "coredump-preserve"
    COREDUMP_IGNORE = "coredump-ignore"

    @property
    def coredump(self) -> bool:
        """Whether the guest's memory is dumped first."""
        return self.value.startswith("coredump-")

    @property
    def action(self) -> Action:
        """The action without its dump."""
        return Action(self.value.removeprefix("coredump-"))
