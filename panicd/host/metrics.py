"""The metrics, in Prometheus' text format.

This module counts the host's metrics. It does not keep a domain's: each scrape reads them from an
immutable snapshot. So a domain's series go with the domain, and its counters are the journal's,
which outlive the daemon.

Rendering may happen in any thread. Labels hold words of panicd's own, domain names and facts
about a QEMU, and never text from a guest.
"""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from panicd.host.domain_series import (
    DomainSample,
    HoldSample,
    IncidentSample,
    domain_metrics,
    lasting_holds,
    open_incidents,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of what `Metrics.render` returns (Prometheus' 'Exposition formats')."""

REACTION_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Seconds. A command's round trip is about 1 ms, and panicd means to be below 10."""

INCIDENT_BUCKETS: Final = (
    0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0,
)  # fmt: skip
"""Seconds: from a restart at once, over a dump, to a guest preserved for a week."""

SIGNATURES: Final = 20
"""Most panic signatures with a series; a new one replaces the least recent."""


class Metrics:
    """All of panicd's metrics.

    All series of the host exist from the start, at 0: a series that appeared with its first
    event would hide that event from `increase()`.

    Args:
        registry: Where the metrics are registered; one registry holds one `Metrics`.
        version: panicd's version.
        sources: Label values of `panics`: the ways to find a panic.
        actions: Label values of `actions`, `action_failures` and `incident_duration`.
        reasons: Label values of `fallbacks`.
        foreign_actions: Label values of `foreign_actions`.
        dump_failure_reasons: Label values of `coredump_failures`.
        domains: Returns the snapshot; called at each scrape, in the scrape's thread.
        coredump_free_bytes: Returns the free space for coredumps, or None where it is unknown;
            called like `domains`.
        exposed: Returns the number of exposed domains by reason; called likewise.
        incidents: Returns the open incidents; called likewise.
        holds: Returns the holds that last; called likewise.
        log_dropped: Returns how many log entries were dropped since the start; called likewise.
        give_way: Called again and again at a scrape, in its thread; may wait a moment.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        sources: Iterable[str],
        actions: Iterable[str],
        reasons: Iterable[str],
        foreign_actions: Iterable[str],
        dump_failure_reasons: Iterable[str],
        domains: Callable[[], Sequence[DomainSample]],
        coredump_free_bytes: Callable[[], int | None],
        exposed: Callable[[], Mapping[str, int]] = dict,
        incidents: Callable[[], Iterable[IncidentSample]] = tuple,
        holds: Callable[[], Iterable[HoldSample]] = tuple,
        log_dropped: Callable[[], int] = int,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own gap
        self._registry = registry
        actions = tuple(actions)

        def counter(name: str, text: str, **labels: Iterable[str]) -> Counter:
            metric = Counter(name, text, tuple(labels), registry=registry)
            for label, values in labels.items():
                for value in values:
                    metric.labels(**{label: value})
            return metric

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self.panics = counter(
            "panicd_panics",
            "Guest panics, by how panicd learned of them.",
            source=sources,
        )
        self.actions = counter(
            "panicd_actions",
            "Actions that panicd carried out on panics, including fallbacks.",
            action=actions,
        )
        self.action_failures = counter(
            "panicd_action_failures",
            "Actions on panics that failed.",
            action=actions,
        )
        self.fallbacks = counter(
            "panicd_fallbacks",
            "Panics whose policy panicd could not obey, by the reason.",
            reason=reasons,
        )
        self.restarts_suppressed = counter(
            "panicd_restarts_suppressed",
            "Restarts that did not happen because the domain's restart budget was spent.",
        )
        self.foreign_actions = counter(
            "panicd_foreign_actions",
            "What somebody else did to a domain during an incident.",
            action=foreign_actions,
        )
        self.reaction = Histogram(
            "panicd_reaction_seconds",
            "Time from reading GUEST_PANICKED to writing the first command of the action.",
            buckets=REACTION_BUCKETS,
            registry=registry,
        )
        self.incident_duration = Histogram(
            "panicd_incident_duration_seconds",
            "Time from the panic to the end of the incident, by the action taken.",
            ("action",),
            buckets=INCIDENT_BUCKETS,
            registry=registry,
        )
        for action in actions:
            self.incident_duration.labels(action=action)
        self.incidents_open = gauge(
            "panicd_incidents_open",
            "Open incidents, including those of domains that are gone.",
        )
        self.coredumps = counter(
            "panicd_coredumps", "Guest memory dumps that were tried, including failures."
        )
        self.coredump_failures = counter(
            "panicd_coredump_failures",
            "Guest memory dumps that did not complete or did not begin, by the reason.",
            reason=dump_failure_reasons,
        )
        self.coredump_bytes = counter(
            "panicd_coredump_bytes",
            "Bytes of complete guest memory dumps, as they are on the disk.",
        )
        self.coredumps_in_progress = gauge(
            "panicd_coredumps_in_progress", "Guest memory dumps being written now."
        )
        self.coredump_usable = gauge(
            "panicd_coredump_directory_usable_bytes",
            "What dumps may still take of the free space, above min_free; NaN when unknown.",
        )
        self.events_coalesced = counter(
            "panicd_events_coalesced",
            "QMP events that were dropped because an equal one already waited.",
        )
        self.monitor_reconnects = counter(
            "panicd_monitor_reconnects", "QMP connections made again after a loss."
        )
        self.config_last_reload_successful = gauge(
            "panicd_config_last_reload_successful",
            "Whether the last load of the configuration succeeded (1) or was refused (0).",
        )
        self.config_last_reload_success_timestamp = gauge(
            "panicd_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was loaded, in Unix time.",
        )
        self.journal_healthy = gauge(
            "panicd_journal_healthy",
            "Whether panicd can record incidents (1), or the journal is full or damaged (0).",
        )
        self.storm = gauge(
            "panicd_storm", "Whether many domains of this host panicked within a short time."
        )
        self.pulse_age = gauge(
            "panicd_loop_pulse_age_seconds",
            "Time since the daemon's event loops were last seen to turn; below 10 in health.",
        )
        self.problems = gauge(
            "panicd_problems",
            "What keeps panicd from finding VMs, or from being reached.",
        )
        self.guests_left_reset = gauge(
            "panicd_guests_left_reset",
            "Guests that somebody else reset after a panic and did not let run.",
        )
        build = Info("panicd_build", "The panicd that is running.", registry=registry)
        build.info({"version": version, "python_version": platform.python_version()})
        self._signatures: dict[str, float] = {}
        registry.register(
            _Snapshot(
                domains,
                coredump_free_bytes,
                exposed,
                log_dropped,
                give_way,
                incidents=incidents,
                holds=holds,
                signatures=lambda: dict(self._signatures),
            )
        )

    def note_signature(self, signature: str, at: float) -> None:
        """Set the series with the time of a signature's last panic.

        Args:
            signature: the signature's hash; never a guest's text.
            at: the panic's Unix time.
        """
        known = self._signatures
        known[signature] = max(at, known.get(signature, 0.0))
        if len(known) > SIGNATURES:
            del known[min(known, key=lambda each: known[each])]

    def render(self) -> bytes:
        """Write all metrics in the text format `CONTENT_TYPE`. May be called from any thread."""
        return generate_latest(self._registry)


class _Snapshot(Collector):
    """Makes series from the snapshot, anew at each scrape."""

    def __init__(
        self,
        domains: Callable[[], Sequence[DomainSample]],
        coredump_free_bytes: Callable[[], int | None],
        exposed: Callable[[], Mapping[str, int]],
        log_dropped: Callable[[], int],
        give_way: Callable[[], None],
        *,
        incidents: Callable[[], Iterable[IncidentSample]],
        holds: Callable[[], Iterable[HoldSample]],
        signatures: Callable[[], Mapping[str, float]],
    ) -> None:
        self._incidents = incidents
        self._holds = holds
        self._log_dropped = log_dropped
        self._give_way = give_way
        self._signatures = signatures
        self._domains = domains
        self._coredump_free_bytes = coredump_free_bytes
        self._exposed = exposed

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without asking for a snapshot, which may not be there yet."""
        return [
            *domain_metrics((), self._give_way),
            open_incidents(()),
            lasting_holds(()),
            _free_space(None),
            _exposed({}),
            _log_dropped(0),
            _last_panics({}),
        ]

    def collect(self) -> Iterable[Metric]:
        return [
            *domain_metrics(self._domains(), self._give_way),
            open_incidents(self._incidents()),
            lasting_holds(self._holds()),
            _free_space(self._coredump_free_bytes()),
            _exposed(self._exposed()),
            _log_dropped(self._log_dropped()),
            _last_panics(self._signatures()),
        ]


def _free_space(free_bytes: int | None) -> Metric:
    metric = GaugeMetricFamily(
        "panicd_coredump_directory_free_bytes",
        "Free space where coredumps are written; absent when it can't be told.",
    )
    if free_bytes is not None:
        metric.add_metric((), free_bytes)
    return metric


def _exposed(counts: Mapping[str, int]) -> Metric:
    metric = GaugeMetricFamily(
        "panicd_domains_exposed",
        "Domains that panicd could not act on as configured if they panicked now, by the reason.",
        labels=("reason",),
    )
    for reason, count in counts.items():
        metric.add_metric((reason,), count)
    return metric


def _log_dropped(count: int) -> Metric:
    return CounterMetricFamily(
        "panicd_log_entries_dropped",
        "Log entries that were dropped because nobody read the log, or it could not be written.",
        value=count,
    )


def _last_panics(times: Mapping[str, float]) -> Metric:
    metric = GaugeMetricFamily(
        "panicd_signature_last_panic_timestamp_seconds",
        "When a panic of the signature was last seen on this host, in Unix time; "
        f"the {SIGNATURES} latest signatures.",
        labels=("signature",),
    )
    for signature, at in times.items():
        metric.add_metric((signature,), at)
    return metric
