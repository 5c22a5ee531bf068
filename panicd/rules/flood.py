"""When an ignored guest panics so often that it is no longer ignored."""

from dataclasses import dataclass

from panicd.rules.on_crash import Action
from panicd.rules.settings import Flood


@dataclass(slots=True)
class FloodGauge:
    """Counts one incident's panics, within one window after the other.

    Attributes:
        count: panics within the present window.
        began: when the window began, in seconds of any clock.
    """

    count: int = 0
    began: float = 0.0

    def rises(self, flood: Flood, panics: int, now: float) -> bool:
        """Count panics; return whether they exceed the limit.

        Args:
            flood: the limit.
            panics: how many new panics panicd has heard of.
            now: the time, on the same clock in each call.
        """
        if not self.count or now - self.began > flood.window:
            self.count, self.began = 0, now
        self.count += panics
        return flood.then is not Action.IGNORE and self.count > flood.max
