"""What the journal counts, and keeps when the incidents themselves are removed.

One pure function says what an entry adds. So the totals that are kept with the entries are those
of a replay of the whole history.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from panicd.rules.incident import (
    AnyEntry,
    Closed,
    Decided,
    Ending,
    Enforced,
    Incident,
    Opened,
    Repeated,
    Settled,
    Source,
    State,
)
from panicd.rules.on_crash import Action
from panicd.rules.policy import Reason


class Total(StrEnum):
    """What is counted, and by what: each total has one label."""

    DOMAIN_PANICS = "domain-panics"  # by domain key
    DOMAIN_RESTARTS = "domain-restarts"  # by domain key
    DOMAIN_ACTION_FAILURES = "domain-action-failures"  # by domain key
    PANICS = "panics"  # by Source
    ACTIONS = "actions"  # by Action
    ACTION_FAILURES = "action-failures"  # by Action
    FALLBACKS = "fallbacks"  # by Reason
    FOREIGN_ACTIONS = "foreign-actions"  # by ForeignAction


class ForeignAction(StrEnum):
    """What somebody else did to a domain during an incident."""

    RESET = "reset"
    RESUME = "resume"
    EXIT = "exit"
    MIGRATION = "migration"


class Increment(NamedTuple):
    """The increase of a total, under a label."""

    total: Total
    label: str
    amount: int


@dataclass(frozen=True, slots=True)
class DomainTotals:
    """One domain's counters: panics, restarts that succeeded, actions that failed."""

    panics: int = 0
    restarts: int = 0
    action_failures: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Every counter that continues across a restart of the daemon.

    Attributes:
        domains: by domain key.
        panics: by how panicd learned of them.
        actions: that were carried out.
        action_failures: that were tried and failed.
        fallbacks: decisions for something else than the policy's own action, by reason.
        foreign_actions: what others did to a domain during an incident.
    """

    domains: Mapping[str, DomainTotals]
    panics: Mapping[Source, int]
    actions: Mapping[Action, int]
    action_failures: Mapping[Action, int]
    fallbacks: Mapping[Reason, int]
    foreign_actions: Mapping[ForeignAction, int]


ENDED_BY: Final[dict[Ending, Action]] = {
    Ending.DESTROYED: Action.DESTROY,
    Ending.RESTARTED: Action.RESTART,
    Ending.RELAUNCHED: Action.RESTART,
    Ending.RELEASED: Action.RELEASE,
}
"""The endings that prove an action of panicd's; ``RAN_ON`` was counted when it settled."""

FOREIGN_ENDINGS: Final[dict[Ending, ForeignAction]] = {
    Ending.FOREIGN_RESET: ForeignAction.RESET,
    Ending.FOREIGN_RESUME: ForeignAction.RESUME,
    Ending.QEMU_GONE: ForeignAction.EXIT,
    Ending.MIGRATED: ForeignAction.MIGRATION,
}
"""The endings that somebody else brought about."""

AFTER_FAILURE: Final = frozenset({Reason.ACTION_FAILED, Reason.DUMP_FAILED})

SETTLED_BY: Final[dict[State, Action]] = {
    State.PRESERVED: Action.PRESERVE,
    State.RUNNING_ON: Action.IGNORE,
}


def increments(before: Incident | None, entry: AnyEntry) -> Iterator[Increment]:
    """Return what one entry adds to the totals.

    A panic found by reconciliation counts as one; reported repeats count as events however the
    incident began. An action counts when its proof is written: the incident's ending, or the state
    in which it settled. What others did, and a plan that failed, don't count.

    Args:
        before: the incident without the entry; None for its first.
        entry: one that may follow.
    """
    if isinstance(entry, Opened):
        yield Increment(Total.DOMAIN_PANICS, entry.domain_key, 1)
        yield Increment(Total.PANICS, entry.source, 1)
        return
    assert before is not None
    domain = before.opened.domain_key
    match entry:
        case Repeated(count=count):
            yield Increment(Total.DOMAIN_PANICS, domain, count)
            yield Increment(Total.PANICS, Source.EVENT, count)
        case Decided(plan=plan) if plan.decision.is_fallback:
            yield Increment(Total.FALLBACKS, plan.decision.reason, 1)
            if plan.decision.reason in AFTER_FAILURE:
                yield Increment(Total.ACTION_FAILURES, before.action, 1)
                yield Increment(Total.DOMAIN_ACTION_FAILURES, domain, 1)
        case Settled(state=State.RESET):
            yield Increment(Total.FOREIGN_ACTIONS, ForeignAction.RESET, 1)
        case Settled(state=State.FAILED):
            yield Increment(Total.ACTION_FAILURES, before.action, 1)
            yield Increment(Total.DOMAIN_ACTION_FAILURES, domain, 1)
        case Settled(state=state) if state in SETTLED_BY:
            yield Increment(Total.ACTIONS, SETTLED_BY[state], 1)
        case Closed(ending=ending) if ending in ENDED_BY:
            yield Increment(Total.ACTIONS, ENDED_BY[ending], 1)
            if ENDED_BY[ending] is Action.RESTART:
                yield Increment(Total.DOMAIN_RESTARTS, domain, 1)
        case Closed(ending=Ending.FOREIGN_RESET) if before.state is State.RESET:
            pass  # it was counted when it was reset
        case Closed(ending=ending) if ending in FOREIGN_ENDINGS:
            yield Increment(Total.FOREIGN_ACTIONS, FOREIGN_ENDINGS[ending], 1)
        case Enforced():
            yield Increment(Total.FOREIGN_ACTIONS, ForeignAction.RESUME, 1)


def collect(counts: Mapping[tuple[Total, str], int]) -> Totals:
    """Return summed increments as totals.

    Args:
        counts: sums by total and label.

    Raises:
        ValueError: a label is none of its total's.
    """
    labels = {
        total: {label: n for (of, label), n in counts.items() if of is total} for total in Total
    }
    panics, restarts = labels[Total.DOMAIN_PANICS], labels[Total.DOMAIN_RESTARTS]
    failures = labels[Total.DOMAIN_ACTION_FAILURES]
    return Totals(
        domains={
            key: DomainTotals(panics.get(key, 0), restarts.get(key, 0), failures.get(key, 0))
            for key in {*panics, *restarts, *failures}
        },
        panics={Source(label): n for label, n in labels[Total.PANICS].items()},
        actions={Action(label): n for label, n in labels[Total.ACTIONS].items()},
        action_failures={Action(label): n for label, n in labels[Total.ACTION_FAILURES].items()},
        fallbacks={Reason(label): n for label, n in labels[Total.FALLBACKS].items()},
        foreign_actions={
            ForeignAction(label): n for label, n in labels[Total.FOREIGN_ACTIONS].items()
        },
    )
