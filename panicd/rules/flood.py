"""When an ignored guest panics so often that it is no longer ignored."""

from dataclasses import dataclass

from panicd.rules.on_crash import Action
from panicd.rules.settings import Flood


@dataclass(slots=True)
class FloodGauge:
    """Counts one incident's panics, within one window after the other.

    Attributes:
        count: panics of the present window.
        began: when that began, in seconds of any clock.
    """

    count: int = 0
    began: float = 0.0

    def rises(self, flood: Flood, panics: int, now: float) -> bool:
        """Count panics; return whether they are more than are let pass.

        Args:
            flood: how many are.
            panics: that were heard.
            now: when, on the same clock each time.
        """
        if not self.count or now - self.began > flood.window:
            self.count, self.began = 0, now
        self.count += panics
        return flood.then is not Action.IGNORE and self.count > flood.max
