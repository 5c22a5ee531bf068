"""What the journal counts, entry by entry, and that it keeps count of all that was appended."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.journal.journal import Journal
from panicd.journal.totals import Increment, Total, Totals, collect, increments
from panicd.rules.incident import (
    Acknowledged,
    AnyEntry,
    Asked,
    Closed,
    Ending,
    Enforced,
    IllegalTransitionError,
    Incident,
    Observed,
    Opened,
    Outcome,
    Repeated,
    Settled,
    Source,
    State,
    StepBegun,
    StepEnded,
    apply,
)
from panicd.rules.policy import Reason
from tests.journal.entries import later_entries, openings, times
from tests.journal.journals import decided, fold, opened


def after(*entries: AnyEntry) -> Incident:
    return fold("i1", (opened(uuid="u"), *entries))


@pytest.mark.parametrize(
    ("before", "entry", "expected"),
    [
        (None, opened(), {(Total.DOMAIN_PANICS, "web-1"): 1, (Total.PANICS, "event"): 1}),
        (
            None,
            Opened(1.0, "web-1", "u", "m", "", Source.RECONCILIATION),
            {(Total.DOMAIN_PANICS, "u"): 1, (Total.PANICS, "reconciliation"): 1},
        ),
        (
            after(),
            Repeated(2.0, 41),
            {(Total.DOMAIN_PANICS, "u"): 41, (Total.PANICS, "event"): 41},
        ),
        (after(), decided(), {}),
        (after(), decided(reason=Reason.UNREQUESTED_DEVICE), {}),
        (after(), decided(reason=Reason.BUDGET_SPENT), {(Total.FALLBACKS, "budget-spent"): 1}),
        (after(decided()), StepBegun(3.0, 0), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.DONE), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.SKIPPED), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.UNKNOWN), {}),
        (after(decided(), StepBegun(3.0, 0)), StepEnded(4.0, 0, Outcome.FAILED), {}),
        *(
            (
                after(decided()),
                decided(reason=reason),
                {
                    (Total.FALLBACKS, reason): 1,
                    (Total.ACTION_FAILURES, "restart"): 1,
                    (Total.DOMAIN_ACTION_FAILURES, "u"): 1,
                },
            )
            for reason in (Reason.ACTION_FAILED, Reason.DUMP_FAILED)
        ),
        (after(decided()), Settled(3.0, State.PRESERVED), {(Total.ACTIONS, "preserve"): 1}),
        (after(decided()), Settled(3.0, State.RUNNING_ON), {(Total.ACTIONS, "ignore"): 1}),
        (
            after(decided()),
            Settled(3.0, State.FAILED),
            {(Total.ACTION_FAILURES, "restart"): 1, (Total.DOMAIN_ACTION_FAILURES, "u"): 1},
        ),
        (after(), Asked(2.0, 1000, "release", "seen enough"), {}),
        (after(), Acknowledged(2.0, 1000, "known"), {}),
        (after(), Observed(2.0, "RESUME"), {}),
        (after(), Enforced(2.0), {(Total.FOREIGN_ACTIONS, "resume"): 1}),
        *(
            (after(decided()), Closed(3.0, ending), counted)
            for ending, counted in [
                (Ending.DESTROYED, {(Total.ACTIONS, "destroy"): 1}),
                (
                    Ending.RESTARTED,
                    {(Total.ACTIONS, "restart"): 1, (Total.DOMAIN_RESTARTS, "u"): 1},
                ),
                (
                    Ending.RELAUNCHED,
                    {(Total.ACTIONS, "restart"): 1, (Total.DOMAIN_RESTARTS, "u"): 1},
                ),
                (Ending.RELEASED, {(Total.ACTIONS, "release"): 1}),
                (Ending.RAN_ON, {}),
                (Ending.QEMU_EXITED, {}),
                (Ending.QEMU_GONE, {(Total.FOREIGN_ACTIONS, "exit"): 1}),
                (Ending.MIGRATED, {(Total.FOREIGN_ACTIONS, "migration"): 1}),
                (Ending.GUEST_RESET, {}),
                (Ending.FOREIGN_RESET, {(Total.FOREIGN_ACTIONS, "reset"): 1}),
                (Ending.FOREIGN_RESUME, {(Total.FOREIGN_ACTIONS, "resume"): 1}),
            ]
        ),
    ],
)
def test_an_entry_counts(
    before: Incident | None, entry: AnyEntry, expected: dict[tuple[Total, str], int]
) -> None:
    assert sum_up(increments(before, entry)) == expected


def sum_up(added: Iterable[Increment]) -> Counter[tuple[Total, str]]:
    counts: Counter[tuple[Total, str]] = Counter()
    for total, label, amount in added:
        counts[total, label] += amount
    return counts


def replay(histories: Iterable[Sequence[AnyEntry]]) -> Totals:
    counts: Counter[tuple[Total, str]] = Counter()
    for history in histories:
        incident = None
        for entry in history:
            counts.update(sum_up(increments(incident, entry)))
            incident = apply(incident, entry) if incident else fold("i", [entry])
    return collect(counts)


@st.composite
def histories(draw: st.DrawFn) -> list[AnyEntry]:
    """Draw an incident's entries, each in its place."""
    history: list[AnyEntry] = [draw(openings)]
    incident = fold("i", history)
    for entry in draw(st.lists(later_entries, max_size=8)):
        try:
            incident = apply(incident, entry)
        except IllegalTransitionError:
            continue
        history.append(entry)
    return history


@pytest.mark.usefixtures("time_limit")
@settings(max_examples=40)
@given(st.lists(histories(), max_size=5), st.randoms(use_true_random=False), times)
def test_totals_are_those_of_a_replay(
    drawn: list[list[AnyEntry]], random: Random, pruned_before: float
) -> None:
    async def append_all(journal: Journal, incident_id: str, history: list[AnyEntry]) -> None:
        left = history
        while left:
            count = random.randint(1, len(left))
            await journal.append(incident_id, *left[:count])
            left = left[count:]

    async def main(path: Path) -> None:
        with Journal.open(path) as journal:
            async with trio.open_nursery() as nursery:
                for number, history in enumerate(drawn):
                    nursery.start_soon(append_all, journal, f"i{number}", history)
            for number, history in enumerate(drawn):
                assert journal.history(f"i{number}") == history
                assert journal.incident(f"i{number}") == fold(f"i{number}", history)
            assert journal.totals() == replay(drawn)
            removed = await journal.prune(pruned_before)
            kept = {i.id for i in journal.incidents(limit=-1)}
            assert kept.isdisjoint(removed)
            assert kept.union(removed) == {f"i{number}" for number in range(len(drawn))}
            assert journal.totals() == replay(drawn)

    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, Path(directory) / "journal.sqlite")
