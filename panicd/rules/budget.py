"""The restart budget: how many restarts a domain has left, and whether it is in a crash loop."""

from collections.abc import Sequence
from dataclasses import dataclass

from panicd.rules.settings import Budget


@dataclass(frozen=True, slots=True)
class Balance:
    """A domain's budget at one moment.

    Attributes:
        used: restarts within the window.
        left: restarts that may still be made.
        looping: the last restart is less than ``min_uptime`` ago.
    """

    used: int
    left: int
    looping: bool

    @property
    def spent(self) -> bool:
        """True if the budget allows no more restarts."""
        return self.left == 0


def balance(budget: Budget, restarts: Sequence[float], now: float) -> Balance:
    """Return a domain's balance.

    Args:
        budget: the configured limits.
        restarts: when panicd restarted the domain, in seconds since the epoch, in any order. A
            time in the future (the clock was set back) counts as now.
        now: seconds since the epoch.
    """
    ages = [now - restart for restart in restarts]
    used = sum(age < budget.window for age in ages)
    return Balance(
        used=used,
        left=max(0, budget.max - used),
        looping=any(age < budget.min_uptime for age in ages),
    )
