"""The lasting problems: they keep panicd from finding VMs, being reached or notifying others.

Each problem is logged once, and listed until it is over. Any thread may ask for the list.
"""

from panicd.host.logs import get_logger

_Place = tuple[str, str]  # the thing with the problem, and the part of it


class Problems:
    """The current problems, and the sockets and directories that are passed over.

    Passing over is no problem: the operator may want it so.
    """

    def __init__(self) -> None:
        self._problems: dict[_Place, str] = {}
        self._bearable: set[_Place] = set()
        self._passed_over: dict[_Place, str] = {}

    @property
    def current(self) -> list[str]:
        """Each current problem: its place and its description."""
        return [_words(*each) for each in [*self._problems.items()]]

    @property
    def blinding(self) -> list[str]:
        """The problems that keep panicd from finding VMs, or from being reached."""
        problems = [*self._problems.items()]
        return [_words(place, what) for place, what in problems if place not in self._bearable]

    @property
    def passed_over(self) -> dict[str, str]:
        """Sockets and directories that match a glob but are not used, each with the reason."""
        return {path: why for (_, path), why in [*self._passed_over.items()]}

    def tell(self, whole: str, what: str) -> None:
        """Note a problem; an empty text: the problem is over."""
        if what:
            self.begin(whole, what)
        else:
            self.end(whole)

    def begin(self, whole: str, what: str, part: str = "", *, bearable: bool = False) -> None:
        """Note a problem, in place of the former one.

        Args:
            whole: the thing with the problem: a glob, a socket.
            what: the problem, for people.
            part: the part with the problem, where it is not the whole thing.
            bearable: panicd still finds all VMs and can be reached.
        """
        if bearable:
            self._bearable.add((whole, part))
        if self._problems.get((whole, part)) != what:
            self._problems[whole, part] = what
            get_logger().error("there is a problem", where=part or whole, what=what)

    def end(self, whole: str, part: str = "") -> None:
        """Note that there is no problem, or that it is over."""
        if self._problems.pop((whole, part), None) is not None:
            get_logger().info("the problem is over", where=part or whole)

    def pass_over(self, glob: str, path: str, why: str) -> None:
        """Note that a path matches a glob but is not used."""
        self._passed_over[glob, path] = why
        get_logger().warning("passed over", path=path, reason=why)

    def forget(self, glob: str, path: str) -> None:
        """Note that a passed-over path is gone."""
        self._passed_over.pop((glob, path), None)

    def end_all(self, whole: str) -> None:
        """Note that a glob or a socket is no longer used: all its problems are over."""
        for place in [place for place in self._problems if place[0] == whole]:
            self.end(*place)
        for place in [place for place in self._passed_over if place[0] == whole]:
            self.forget(*place)


def _words(place: _Place, what: str) -> str:
    whole, part = place
    return f"{part or whole}: {what}"
