"""A damaged journal: renamed, until somebody has looked at it."""

from dataclasses import dataclass
from pathlib import Path

from panicd.host.logs import get_logger
from panicd.journal.journal import Journal, JournalDamagedError


@dataclass(frozen=True, slots=True)
class SetAside:
    """The latest damaged journal, which holds what was done before.

    Whoever has looked at it moves it away, and so says that panicd may act again.

    Attributes:
        path: where it is; None: there is none.
    """

    path: Path | None

    @property
    def is_there(self) -> bool:
        """Whether it is still there; if that can't be seen, it counts as there."""
        if self.path is None:
            return False
        try:
            self.path.stat()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True


def open_journal(path: Path) -> tuple[Journal, SetAside]:
    """Open the journal; if it is damaged, rename it, log that, and begin a new one.

    Returns:
        The journal, and the latest damaged one.

    Raises:
        JournalError: it can't be opened.
    """
    try:
        journal = _readable_journal(path)
    except JournalDamagedError as error:
        aside = Journal.set_aside(path)
        get_logger().critical("the journal is damaged", problem=str(error), set_aside=str(aside))
        return Journal.open(path), SetAside(aside)
    damaged = sorted(path.parent.glob(f"{path.name}.damaged-*"))
    return journal, SetAside(damaged[-1] if damaged else None)


def _readable_journal(path: Path) -> Journal:
    journal = Journal.open(path)
    try:
        needed = (journal.load_open, journal.operations, journal.totals, journal.all_restarts)
        for needed_at_start in needed:
            needed_at_start()
    except BaseException:
        journal.close()
        raise
    return journal
