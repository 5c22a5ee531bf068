"""Entries that were encoded ahead are written as any others are."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import trio

from panicd.journal.codec import encode
from panicd.journal.journal import Journal
from panicd.journal.ready import Template
from panicd.rules.incident import AnyEntry, Closed, Ending, Opened, StepBegun
from tests.journal.journals import decided, opened

AT = 1_800_000_000.25
BEGINNING: list[AnyEntry] = [decided(), StepBegun(0.0, 0)]
TEMPLATE = Template(opened(0.0, "nobody"), [replace(entry, at=0.0) for entry in BEGINNING])


def of(name: str) -> Template:
    return TEMPLATE.of(opened(0.0, name))


async def append(journal: Journal, name: str, entries: object) -> None:
    done = trio.Event()
    errors: list[BaseException | None] = []

    def told(error: BaseException | None) -> None:
        errors.append(error)
        done.set()

    journal.append_soon(name, entries, told)  # type: ignore[arg-type]  # either kind
    await done.wait()
    assert errors == [None]


def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    names = ("incident", "entry", "total", "restart", "notification", "signature")
    with sqlite3.connect(path) as database:
        return {name: sorted(database.execute(f"SELECT * FROM {name}"), key=repr) for name in names}  # noqa: S608 - constants


def test_their_text_is_that_of_their_entries() -> None:
    ready = of("db-é\udc80").at(AT)
    assert [encode(entry) for entry in ready] == ready.texts
    assert all(entry.at == AT for entry in ready)
    assert isinstance(ready[0], Opened)
    assert len(ready) == 3
    assert ready[0].domain == "db-é\udc80"


async def test_the_journal_has_the_same_of_both(tmp_path: Path) -> None:
    end = Closed(AT + 1, Ending.RESTARTED)
    found = []
    for directory, take in (("ready", lambda ready: ready), ("plain", list)):
        with Journal.open(tmp_path / directory / "journal") as journal:
            journal.channels = ("hook",)
            journal._fault = "it could not be written before"
            for name, domain in (("one", "web"), ("two", "db-é\udc80")):
                await append(journal, name, take(of(domain).at(AT)))
            assert journal.fault is None
            assert [each.state for each in journal.load_open()] == ["acting", "acting"]
            await journal.append("one", end)
            found.append(tables(journal.path))
            ended = journal.incident("one")
            assert ended is not None
            assert not ended.is_open
    assert found[0] == found[1]
    assert [len(found[0][name]) for name in ("incident", "entry", "restart")] == [2, 7, 1]
