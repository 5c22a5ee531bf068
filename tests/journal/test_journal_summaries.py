"""What is told of every incident without reading its entries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from panicd.journal import database as journal_database
from panicd.journal.journal import Journal
from panicd.journal.summaries import summaries
from panicd.rules.incident import Acknowledged, Closed, Decided, Ending
from panicd.rules.on_crash import Action, OnCrash
from panicd.rules.plan import Plan
from panicd.rules.policy import Decision, Reason
from panicd.rules.retention import Summary
from tests.journal.journals import opened

DECISION = Decision(OnCrash.RESTART, Action.RESTART, coredump=False, reason=Reason.ON_CRASH)


async def test_summaries_tell_who_was_restarted_and_seen(tmp_path: Path) -> None:
    decided = Decided(5.0, Plan(DECISION, ()))
    with Journal.open(tmp_path / "journal") as journal:
        await journal.append("i1", opened(1.0), decided, Closed(10.0, Ending.RESTARTED))
        await journal.append("i1", Acknowledged(20.0, 1000, "known"))
        await journal.append("i2", opened(2.0, "db", "u"), decided, Closed(30.0, Ending.RELAUNCHED))
        await journal.append("i3", opened(40.0), Closed(41.0, Ending.GUEST_RESET))
        await journal.append("i4", opened(50.0, "\udcff"))
        await journal.append("i5", replace(opened(60.0), key="dialled:1000:/run/vm.qmp"))
        with journal_database.reader(journal.path) as database:
            assert summaries(database) == [
                Summary("i1", "web-1", 1.0, 10.0, restarted=True, acknowledged=True),
                Summary("i2", "u", 2.0, 30.0, restarted=True, acknowledged=False),
                Summary("i3", "web-1", 40.0, 41.0, restarted=False, acknowledged=False),
                Summary("i4", "\udcff", 50.0, None, restarted=False, acknowledged=False),
                Summary(
                    "i5",
                    "dialled:1000:/run/vm.qmp",
                    60.0,
                    None,
                    restarted=False,
                    acknowledged=False,
                    owner=1000,
                ),
            ]
