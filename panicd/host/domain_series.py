"""The metrics of each domain: its eight series, its open incidents, the holds.

Each scrape makes them anew from a snapshot. Labels hold words of panicd's own, names of domains and
facts about a QEMU, and never text from a guest.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.samples import Sample

from panicd.rules.printable import escape

LABEL_LIMIT: Final = 200
"""Characters of a label's value; a libvirt name has at most 80."""

MARK: Final = 16
"""Digits that tell apart names with the same label: more than anybody can try out."""

_MARKED: Final = re.compile(f"~[0-9a-f]{{{MARK}}}$")
"""A name that is, or could be, the label of another name."""

WRITTEN_AT_ONCE: Final = 16
"""Samples that are written before other threads have their turn; they take some 0.1 ms."""


@dataclass(frozen=True, slots=True)
class DomainSample:
    """One domain at the time of a snapshot.

    Its counters are None until the domain's UUID or name is known. A counter that began at 0 and
    jumped to the journal's count would look like that many panics.
    """

    domain: str
    up: bool
    armed: bool
    panicked: bool
    held: bool
    panics: int | None
    restarts: int | None
    action_failures: int | None
    uuid: str
    on_crash: str
    effective_on_crash: str
    panic_device: str
    qemu_version: str


@dataclass(frozen=True, slots=True)
class IncidentSample:
    """One open incident.

    Attributes:
        domain: the name of its domain, which may be gone.
        at: when the incident began, in seconds since the epoch.
        state: the incident's state.
        reason: the reason of the decision in force; empty before the first decision.
        acknowledged: an operator has looked at the incident.
        signature: the signature's hash; empty where too little is known of the panic.
    """

    domain: str
    at: float
    state: str
    reason: str
    acknowledged: bool
    signature: str


@dataclass(frozen=True, slots=True)
class HoldSample:
    """One hold that lasts.

    Attributes:
        held: the operator's name for the domain; ``*``: the whole host.
        at: when the operator asked for the hold, in seconds since the epoch.
        ends: the hold ends by itself.
    """

    held: str
    at: float
    ends: bool


def open_incidents(samples: Iterable[IncidentSample]) -> Metric:
    """Make the series of the open incidents; of incidents with equal labels only the oldest."""
    metric = GaugeMetricFamily(
        "panicd_domain_open_incident_timestamp_seconds",
        "When an open incident of the domain began, in Unix time; exists while it is open.",
        labels=("domain", "state", "reason", "acknowledged", "signature"),
    )
    earliest: dict[tuple[str, str, str, str, str], float] = {}
    for sample in samples:
        seen = "yes" if sample.acknowledged else "no"
        labels = (domain_label(sample.domain), sample.state, sample.reason, seen, sample.signature)
        earliest[labels] = min(sample.at, earliest.get(labels, sample.at))
    for labels, at in earliest.items():
        metric.add_metric(labels, at)
    return metric


def lasting_holds(samples: Iterable[HoldSample]) -> Metric:
    """Make the series of the holds."""
    metric = GaugeMetricFamily(
        "panicd_hold_timestamp_seconds",
        "When a hold in force began, in Unix time; '*' is all domains of the host.",
        labels=("domain", "ends"),
    )
    for sample in samples:
        ends = "yes" if sample.ends else "no"
        metric.add_metric((domain_label(sample.held), ends), sample.at)
    return metric


_Value = Callable[[DomainSample], float | None]
"""Returns a sample's value; None where it has none yet."""


def domain_metrics(
    domains: Sequence[DomainSample], give_way: Callable[[], None]
) -> Iterable[Metric]:
    """Make the eight series of each domain.

    Args:
        domains: their samples.
        give_way: called again and again; may wait a moment.
    """

    def series(metric: Metric, suffix: str, value: _Value) -> Metric:
        metric.samples = _Series(domains, partial(_sample, metric.name + suffix, value), give_way)
        return metric

    def gauge(name: str, text: str, value: _Value) -> Metric:
        return series(GaugeMetricFamily(name, text), "", value)

    def counter(name: str, text: str, value: _Value) -> Metric:
        return series(CounterMetricFamily(name, text), "_total", value)

    info = InfoMetricFamily(
        "panicd_domain", "The domain's properties, and what a panic would lead to."
    )
    info.samples = _Series(domains, _info, give_way)
    return (
        gauge(
            "panicd_domain_up",
            "Whether panicd has a QMP connection to the domain, and its QEMU answers.",
            lambda domain: domain.up,
        ),
        gauge(
            "panicd_domain_armed",
            "Whether it is known that QEMU will leave a panic of the domain to panicd.",
            lambda domain: domain.armed,
        ),
        gauge(
            "panicd_domain_panicked",
            "Whether the domain has an open panic incident.",
            lambda domain: domain.panicked,
        ),
        gauge(
            "panicd_domain_held",
            "Whether an operator suspended automation.",
            lambda domain: domain.held,
        ),
        counter(
            "panicd_domain_panics",
            "Panics of the domain since panicd has known it.",
            lambda domain: domain.panics,
        ),
        counter(
            "panicd_domain_restarts",
            "Restarts of the domain by panicd.",
            lambda domain: domain.restarts,
        ),
        counter(
            "panicd_domain_action_failures",
            "Actions on the domain that failed.",
            lambda domain: domain.action_failures,
        ),
        info,
    )


def _sample(name: str, value: _Value, domain: DomainSample) -> Sample | None:
    at = value(domain)
    return None if at is None else Sample(name, {"domain": domain_label(domain.domain)}, at)


def _info(domain: DomainSample) -> Sample:
    labels = {
        "domain": domain_label(domain.domain),
        "uuid": _label(domain.uuid),
        "on_crash": _label(domain.on_crash),
        "effective_on_crash": _label(domain.effective_on_crash),
        "panic_device": _label(domain.panic_device),
        "qemu_version": _label(domain.qemu_version),
    }
    return Sample("panicd_domain_info", labels, 1.0)


class _Series(list[Sample]):
    """A metric's samples, each made when it is written.

    If all were kept at once, Python's cycle collector would go through them and block panicd.
    """

    def __init__(
        self,
        domains: Sequence[DomainSample],
        sample: Callable[[DomainSample], Sample | None],
        give_way: Callable[[], None],
    ) -> None:
        super().__init__()
        self._domains = domains
        self._sample = sample
        self._give_way = give_way

    def __iter__(self) -> Iterator[Sample]:
        for number, domain in enumerate(self._domains):
            if number % WRITTEN_AT_ONCE == 0:
                self._give_way()
            sample = self._sample(domain)
            if sample is not None:
                yield sample


def domain_label(domain: str) -> str:
    """Make a label of a domain's name. Labels differ: equal ones would make the scrape invalid."""
    label = _label(domain)
    if label == domain and not _MARKED.search(domain):
        return label
    digest = sha256(domain.encode(errors="surrogatepass")).hexdigest()[:MARK]
    return f"{label[: LABEL_LIMIT - MARK - 1]}~{digest}"


def _label(value: str) -> str:
    """Make a label's value printable, and bound it: a name may hold any text, as a file's may."""
    return escape(value[:LABEL_LIMIT])[:LABEL_LIMIT]
