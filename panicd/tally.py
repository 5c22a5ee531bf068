"""Counts what happens: in the metrics, and per domain as the journal does.

Both counts, and the journal's own, follow from one function of an incident and its next entry
(``journal_totals.increments``), so they can't come to disagree.
"""

from panicd.host.journal_totals import DomainTotals, Total, Totals, domain_key, increments
from panicd.host.metrics import Metrics
from panicd.rules.incident import AnyEntry, Closed, Ending, Incident, Opened, StepEnded
from panicd.rules.policy import Reason
from panicd.rules.signature import Signature, signature_of_payload

SUPPRESSED = frozenset({Reason.BUDGET_SPENT, Reason.CRASH_LOOP})


class Tally:
    """The counts.

    Args:
        metrics: of the host; they go on from ``totals``.
        totals: what the journal counted before this daemon was started.
        restarts: when panicd restarted each domain, in seconds since the epoch, by domain key.
    """

    def __init__(
        self, metrics: Metrics, totals: Totals, restarts: dict[str, tuple[float, ...]]
    ) -> None:
        self._metrics = metrics
        self._counts: dict[tuple[Total, str], int] = {}
        self._restarts = dict(restarts)
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

    def domain(self, key: str) -> DomainTotals:
        """Return the counts of a domain."""
        return DomainTotals(
            self._counts.get((Total.DOMAIN_PANICS, key), 0),
            self._counts.get((Total.DOMAIN_RESTARTS, key), 0),
            self._counts.get((Total.DOMAIN_ACTION_FAILURES, key), 0),
        )

    def restarts(self, key: str) -> tuple[float, ...]:
        """Return when panicd restarted a domain, in seconds since the epoch."""
        return self._restarts.get(key, ())

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
            key = domain_key(incident.opened)
            self._restarts[key] = (*self.restarts(key), closed.at)
