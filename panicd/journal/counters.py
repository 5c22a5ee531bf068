"""Counts what happens: in the metrics, and for each domain as the journal does.

Both counts, and the journal's own, come from one function of an incident and its next entry
(``journal_totals.increments``). So they can't disagree.
"""

from panicd.host.metrics import Metrics
from panicd.journal.totals import DomainTotals, Total, Totals, increments
from panicd.rules.incident import AnyEntry, Closed, Ending, Incident, Opened, StepEnded
from panicd.rules.policy import Reason
from panicd.rules.signature import Signature, signature_of_payload

SUPPRESSED = frozenset({Reason.BUDGET_SPENT, Reason.CRASH_LOOP})


class Counters:
    """The counts.

    Args:
        metrics: of the host; they continue from ``totals``.
        totals: what the journal counted before this daemon was started.
        restarts: when panicd restarted each domain, in seconds since the epoch, by domain key.
    """

    def __init__(
        self, metrics: Metrics, totals: Totals, restarts: dict[str, tuple[float, ...]]
    ) -> None:
        self._metrics = metrics
        self._counts: dict[tuple[Total, str], int] = {}
        self._restarts = dict(restarts)
        self._before: dict[str, str] = {}
        for key, domain in totals.domains.items():
            self._counts[Total.DOMAIN_PANICS, key] = domain.panics
            self._counts[Total.DOMAIN_RESTARTS, key] = domain.restarts
            self._counts[Total.DOMAIN_ACTION_FAILURES, key] = domain.action_failures
        for total, counts in (
            (Total.PANICS, totals.panics),
            (Total.ACTIONS, totals.actions),
            (Total.ACTION_FAILURES, totals.action_failures),
            (Total.FALLBACKS, totals.fallbacks),
            (Total.FOREIGN_ACTIONS, totals.foreign_actions),
        ):
            for label, count in counts.items():
                self._add(total, label, count)

    def count(self, before: Incident | None, entry: AnyEntry) -> None:
        """Count an entry; ``before`` is its incident without it."""
        for total, label, count in increments(before, entry):
            self._add(total, label, count)
        match entry:
            case Opened(at=at, information=information):
                self._note_signature(signature_of_payload(information), at)
            case StepEnded(signature=signature) if before is not None:
                self._note_signature(signature, before.opened.at)
            case Closed() if before is not None:
                self._count_end(before, entry)
            case _:
                pass

    def go_on_from(self, key: str, before: str) -> None:
        """Have a domain's counts continue from what 0.1.0 counted, by what its QEMU claims.

        Whoever makes the same claim starts from the same counts; nobody's counts become less.

        Args:
            key: the domain's.
            before: what 0.1.0 counted it under: its UUID, or its name if it has none.
        """
        self._before[key] = before

    def domain(self, key: str) -> DomainTotals:
        """Return the counts of a domain."""
        return DomainTotals(
            self._count(Total.DOMAIN_PANICS, key),
            self._count(Total.DOMAIN_RESTARTS, key),
            self._count(Total.DOMAIN_ACTION_FAILURES, key),
        )

    def shift(self, seconds: float) -> None:
        """Keep the age of all restarts: somebody set the clock by so many seconds."""
        for key, restarts in self._restarts.items():
            self._restarts[key] = tuple(at + seconds for at in restarts)

    def restarts(self, key: str) -> tuple[float, ...]:
        """Return when panicd restarted a domain, in seconds since the epoch."""
        before = self._restarts.get(self._before.get(key, ""), ())
        return (*before, *self._restarts.get(key, ()))

    def _count(self, total: Total, key: str) -> int:
        before = self._counts.get((total, self._before.get(key, "")), 0)
        return before + self._counts.get((total, key), 0)

    def _add(self, total: Total, label: str, count: int) -> None:
        metrics = self._metrics
        match total:
            case Total.PANICS:
                metrics.panics.labels(source=label).inc(count)
            case Total.ACTIONS:
                metrics.actions.labels(action=label).inc(count)
            case Total.ACTION_FAILURES:
                metrics.action_failures.labels(action=label).inc(count)
            case Total.FALLBACKS:
                metrics.fallbacks.labels(reason=label).inc(count)
                if label in SUPPRESSED:
                    metrics.restarts_suppressed.inc(count)
            case Total.FOREIGN_ACTIONS:
                metrics.foreign_actions.labels(action=label).inc(count)
            case Total.DOMAIN_PANICS | Total.DOMAIN_RESTARTS | Total.DOMAIN_ACTION_FAILURES:
                self._counts[total, label] = self._counts.get((total, label), 0) + count

    def _note_signature(self, signature: Signature | None, at: float) -> None:
        if signature is not None and signature.hash:
            self._metrics.note_signature(signature.hash, at)

    def _count_end(self, incident: Incident, closed: Closed) -> None:
        duration = max(0.0, closed.at - incident.opened.at)
        self._metrics.incident_duration.labels(action=incident.action).observe(duration)
        if closed.ending in {Ending.RESTARTED, Ending.RELAUNCHED}:
            key = incident.opened.domain_key
            self._restarts[key] = (*self._restarts.get(key, ()), closed.at)
