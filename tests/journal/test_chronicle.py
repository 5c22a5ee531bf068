"""An incident's record: the order in which entries are written, whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from panicd.journal.chronicle import Chronicle, Keeping
from panicd.journal.journal import JournalError
from panicd.journal.ready import Ready, Template
from panicd.rules.incident import AnyEntry, Incident, Observed, Opened
from panicd.rules.settings import JournalFailure
from tests.journal.journals import opened

Done = Callable[[BaseException | None], None]


class SlowJournal:
    """A journal that writes when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[AnyEntry], Done]] = []

    def append_soon(self, _incident_id: str, entries: Sequence[AnyEntry], done: Done) -> None:
        self.asked.append((list(entries), done))


def test_what_could_not_be_written_comes_before_what_was_noted_meanwhile() -> None:
    journal, told = SlowJournal(), list[str]()
    counters: Any = SimpleNamespace(count=lambda _before, _entry: None)
    keeping = Keeping(cast("Any", journal), counters, lambda: 0.0, lambda: JournalFailure.PRESERVE)
    first, second, third = (Observed(float(number), "seen") for number in (1, 2, 3))
    chronicle = Chronicle("i", Incident("i", opened(0.0)), keeping)

    chronicle.note(first)
    chronicle.commit_soon(lambda problem: told.append(f"first {problem}"))
    chronicle.note(second)
    chronicle.commit_soon(lambda problem: told.append(f"second {problem}"))
    assert [entries for entries, _ in journal.asked] == [[first]], "one after the other"
    assert keeping.unwritten == {chronicle}

    journal.asked[0][1](JournalError("full"))
    assert told == ["first full", "second full"]
    chronicle.note(third)
    chronicle.commit_soon(lambda problem: told.append(f"third {problem}"))
    assert journal.asked[1][0] == [first, second, third]
    journal.asked[1][1](None)
    assert told[2:] == ["third None"]
    assert chronicle.is_written
    assert keeping.unwritten == set()


def test_a_page_that_is_made_meanwhile_takes_no_entry_from_an_incident() -> None:
    """Threads of the web page and of the API read what the event loop's thread goes on with."""
    first = opened(0.0)
    after = replace(Incident("i", first), repeats=1)

    class Interrupted(Ready):
        """The event loop has its turn just while another thread looks."""

        @property
        def opened(self) -> Opened:
            chronicle.take(after, first)
            return super().opened

    counters: Any = SimpleNamespace(count=lambda _before, _entry: None)
    journal: Any = SlowJournal()
    keeping = Keeping(journal, counters, lambda: 0.0, lambda: JournalFailure.PRESERVE)
    chronicle = Chronicle.begin("i", Interrupted(Template(first, ()), 0.0), keeping)
    assert chronicle.incident.opened == first
    assert chronicle.incident == after
