"""What keeps panicd from finding VMs, being reached or telling others.

Each is told once, and until it is over. May be asked for in any thread.
"""

from panicd.host.logs import get_logger

_Place = tuple[str, str]  # what has it, and where in that


class Problems:
    """The problems that there are now, and what is passed over.

    What is passed over is no problem: somebody may want it so.
    """

    def __init__(self) -> None:
        self._problems: dict[_Place, str] = {}
        self._bearable: set[_Place] = set()
        self._passed_over: dict[_Place, str] = {}

    @property
    def current(self) -> list[str]:
        """Each problem: what has it, and what it is."""
        return [_words(*each) for each in [*self._problems.items()]]

    @property
    def blinding(self) -> list[str]:
        """Those that keep panicd from finding VMs, or from being reached."""
        problems = [*self._problems.items()]
        return [_words(place, what) for place, what in problems if place not in self._bearable]

    @property
    def passed_over(self) -> dict[str, str]:
        """Sockets and directories that a glob matches and that are not taken, each with why not."""
        return {path: why for (_, path), why in [*self._passed_over.items()]}

    def tell(self, whole: str, what: str) -> None:
        """Note a problem, or with an empty text that there is none any more."""
        if what:
            self.begin(whole, what)
        else:
            self.end(whole)

    def begin(self, whole: str, what: str, part: str = "", *, bearable: bool = False) -> None:
        """Note a problem, in place of the one that was there.

        Args:
            whole: what has it: a glob, a socket.
            what: it is, for people.
            part: which part of it has it, where it is not the whole.
            bearable: panicd finds all VMs and can be reached all the same.
        """
        if bearable:
            self._bearable.add((whole, part))
        if self._problems.get((whole, part)) != what:
            self._problems[whole, part] = what
            get_logger().error("there is a problem", where=part or whole, what=what)

    def end(self, whole: str, part: str = "") -> None:
        """Note that there is no problem, or none any more."""
        if self._problems.pop((whole, part), None) is not None:
            get_logger().info("the problem is over", where=part or whole)

    def pass_over(self, glob: str, path: str, why: str) -> None:
        """Note that something a glob matches is not taken."""
        self._passed_over[glob, path] = why
        get_logger().warning("passed over", path=path, reason=why)

    def forget(self, glob: str, path: str) -> None:
        """Note that what was passed over is no longer there."""
        self._passed_over.pop((glob, path), None)

    def end_all(self, whole: str) -> None:
        """Note that something is no longer made use of: it has no problems."""
        for place in [place for place in self._problems if place[0] == whole]:
            self.end(*place)
        for place in [place for place in self._passed_over if place[0] == whole]:
            self.forget(*place)


def _words(place: _Place, what: str) -> str:
    whole, part = place
    return f"{part or whole}: {what}"
