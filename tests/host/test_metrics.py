import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from panicd.host.domain_series import DomainSample, HoldSample, IncidentSample, domain_label
from panicd.host.metrics import SIGNATURES, Metrics
from tests.parts.patience import patience

DB_1 = DomainSample(
    domain="db-1",
    up=True,
    armed=True,
    panicked=False,
    held=False,
    panics=3,
    restarts=2,
    action_failures=1,
    uuid="0c7d41c9-0e30-4f55-a7f1-a8ff3d5f2d31",
    on_crash="coredump-restart",
    effective_on_crash="coredump-restart",
    panic_device="isa",
    qemu_version="7.2.0",
)


def make(
    *,
    registry: CollectorRegistry | None = None,
    domains: Callable[[], Sequence[DomainSample]] = tuple,
    free: int | None = 4096,
    incidents: Sequence[IncidentSample] = (),
    holds: Sequence[HoldSample] = (),
) -> Metrics:
    return Metrics(
        registry or CollectorRegistry(),
        version="1.2.3",
        sources=("event", "reconciliation"),
        actions=("destroy", "restart"),
        reasons=("irreversible",),
        foreign_actions=("reset",),
        dump_failure_reasons=("no-space",),
        domains=domains,
        coredump_free_bytes=lambda: free,
        incidents=lambda: incidents,
        holds=lambda: holds,
    )


def series(metrics: Metrics) -> dict[str, float]:
    """All samples of a scrape, as a Prometheus server reads them."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, "a series must not come twice"
            found[key] = sample.value
    return found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
@pytest.mark.parametrize("domains", [(), (DB_1, replace(DB_1, domain="db-2"))])
def test_promtool_finds_nothing_to_complain_of(domains: Sequence[DomainSample]) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=make(domains=lambda: domains).render(),
        capture_output=True,
        check=False,
        timeout=patience(60),
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_every_series_of_the_host_is_there_from_the_start() -> None:
    found = series(make())
    python = ".".join(map(str, sys.version_info[:3]))
    assert found.pop("panicd_coredump_directory_free_bytes") == 4096
    assert found.pop(f"panicd_build_info{{python_version={python},version=1.2.3}}") == 1
    assert {name for name in found if "_bucket" not in name} == {
        "panicd_panics_total{source=event}",
        "panicd_panics_total{source=reconciliation}",
        "panicd_actions_total{action=destroy}",
        "panicd_actions_total{action=restart}",
        "panicd_action_failures_total{action=destroy}",
        "panicd_action_failures_total{action=restart}",
        "panicd_fallbacks_total{reason=irreversible}",
        "panicd_restarts_suppressed_total",
        "panicd_foreign_actions_total{action=reset}",
        "panicd_reaction_seconds_count",
        "panicd_reaction_seconds_sum",
        "panicd_incident_duration_seconds_count{action=destroy}",
        "panicd_incident_duration_seconds_sum{action=destroy}",
        "panicd_incident_duration_seconds_count{action=restart}",
        "panicd_incident_duration_seconds_sum{action=restart}",
        "panicd_coredumps_total",
        "panicd_coredump_failures_total{reason=no-space}",
        "panicd_coredump_bytes_total",
        "panicd_incidents_open",
        "panicd_coredumps_in_progress",
        "panicd_coredump_directory_usable_bytes",
        "panicd_loop_pulse_age_seconds",
        "panicd_events_coalesced_total",
        "panicd_monitor_reconnects_total",
        "panicd_config_last_reload_successful",
        "panicd_config_last_reload_success_timestamp_seconds",
        "panicd_journal_healthy",
        "panicd_storm",
        "panicd_problems",
        "panicd_guests_left_reset",
        "panicd_log_entries_dropped_total",
    }
    assert set(found.values()) == {0}


def test_what_is_counted_is_shown() -> None:
    metrics = make()
    metrics.panics.labels(source="event").inc()
    metrics.actions.labels(action="restart").inc()
    metrics.reaction.observe(0.002)
    metrics.incident_duration.labels(action="restart").observe(3)
    metrics.coredump_bytes.inc(1 << 40)
    metrics.config_last_reload_successful.set(1)
    found = series(metrics)
    assert found["panicd_panics_total{source=event}"] == 1
    assert found["panicd_actions_total{action=restart}"] == 1
    assert found["panicd_reaction_seconds_bucket{le=0.001}"] == 0
    assert found["panicd_reaction_seconds_bucket{le=0.0025}"] == 1
    assert found["panicd_incident_duration_seconds_bucket{action=restart,le=10.0}"] == 1
    assert found["panicd_coredump_bytes_total"] == 1 << 40
    assert found["panicd_config_last_reload_successful"] == 1


def test_a_reaction_is_told_apart_from_half_a_millisecond_to_ten_seconds() -> None:
    bounds = [name for name in series(make()) if name.startswith("panicd_reaction_seconds_bucket")]
    assert bounds[0] == "panicd_reaction_seconds_bucket{le=0.0005}"
    assert bounds[-2:] == [
        "panicd_reaction_seconds_bucket{le=10.0}",
        "panicd_reaction_seconds_bucket{le=+Inf}",
    ]


def domain_series(metrics: Metrics) -> dict[str, float]:
    return {key: value for key, value in series(metrics).items() if "domain=" in key}


def test_a_domain_has_eight_series() -> None:
    assert domain_series(make(domains=lambda: [DB_1])) == {
        "panicd_domain_up{domain=db-1}": 1,
        "panicd_domain_armed{domain=db-1}": 1,
        "panicd_domain_panicked{domain=db-1}": 0,
        "panicd_domain_held{domain=db-1}": 0,
        "panicd_domain_panics_total{domain=db-1}": 3,
        "panicd_domain_restarts_total{domain=db-1}": 2,
        "panicd_domain_action_failures_total{domain=db-1}": 1,
        "panicd_domain_info{domain=db-1,effective_on_crash=coredump-restart,"
        "on_crash=coredump-restart,panic_device=isa,qemu_version=7.2.0,"
        "uuid=0c7d41c9-0e30-4f55-a7f1-a8ff3d5f2d31}": 1,
    }


def test_series_go_with_their_domain() -> None:
    domains = [DB_1, replace(DB_1, domain="db-2", qemu_version="9.0")]
    metrics = make(domains=lambda: tuple(domains))
    assert len(domain_series(metrics)) == 16
    del domains[0]
    assert len(domain_series(metrics)) == 8
    domains.clear()
    assert not domain_series(metrics)


@pytest.mark.parametrize("name", ['a"b\\c\nd', "\udcff", "é \u202e", "x" * 10_000])
def test_no_name_breaks_the_format(name: str) -> None:
    samples = (replace(DB_1, domain=name, qemu_version=name), replace(DB_1, domain="db-2"))
    found = domain_series(make(domains=lambda: samples))
    assert len(found) == 16
    assert max(map(len, found)) < 1000


def test_names_that_begin_alike_are_two_series() -> None:
    samples = [replace(DB_1, domain="x" * 300 + end) for end in "ab"]
    assert len(domain_series(make(domains=lambda: samples))) == 16


def test_labels_are_printable() -> None:
    hostile = "\x1b]0;x\x07\0\u202e\u2066\n\ud800:skull:"
    samples = [replace(DB_1, domain=hostile, uuid=hostile, qemu_version=hostile)]
    incidents = [replace(WAITS, domain=hostile)]
    holds = [HoldSample(hostile, 1000.0, False)]
    scrape = make(domains=lambda: samples, incidents=incidents, holds=holds).render().decode()
    assert scrape.count(r'domain="\\x1b') == 8 + 1 + 1
    assert all(map(str.isprintable, scrape.splitlines()))


def test_names_that_look_alike_once_they_are_printable_are_two_series() -> None:
    names = ["a\x1b", r"a\x1b", "a\u202e", r"a\u202e", "x" * 300]
    # What was made of another's name, taken for one's own; and that again.
    names += (labels := [domain_label(name) for name in ("a\x1b", "x" * 300)])
    names += [domain_label(label) for label in labels]
    samples = [replace(DB_1, domain=name) for name in names]
    assert len(domain_series(make(domains=lambda: samples))) == 8 * len(names)


WAITS = IncidentSample("db-1", 1000.0, "preserved", "on-crash", False, "1-0123456789")
OPEN = "panicd_domain_open_incident_timestamp_seconds"


def test_an_open_incident_has_a_series_with_its_beginning() -> None:
    seen = replace(WAITS, domain="web", at=2000.0, acknowledged=True, signature="")
    found = domain_series(make(incidents=(replace(WAITS, at=3000.0), WAITS, seen)))
    assert found == {
        f"{OPEN}{{acknowledged=no,domain=db-1,reason=on-crash,signature=1-0123456789,"
        "state=preserved}": 1000,
        f"{OPEN}{{acknowledged=yes,domain=web,reason=on-crash,signature=,state=preserved}}": 2000,
    }, "of two that are alike the one that began first: a series must not come twice"


def test_a_hold_has_a_series_with_its_beginning() -> None:
    holds = (HoldSample("*", 1000.0, False), HoldSample("db-1\x1b", 2000.0, True))
    assert domain_series(make(holds=holds)) == {
        "panicd_hold_timestamp_seconds{domain=*,ends=no}": 1000,
        "panicd_hold_timestamp_seconds{domain=db-1\\x1b~" + sha256(b"db-1\x1b").hexdigest()[:16]
        + ",ends=yes}": 2000,
    }  # fmt: skip


def test_free_space_that_is_not_known_is_left_out() -> None:
    assert "panicd_coredump_directory_free_bytes" not in series(make(free=None))
    assert series(make(free=0))["panicd_coredump_directory_free_bytes"] == 0


def test_registering_asks_for_no_snapshot() -> None:
    def domains() -> Sequence[DomainSample]:
        raise AssertionError("not there yet")

    make(registry=CollectorRegistry(auto_describe=True), domains=domains)


def test_a_registry_holds_one() -> None:
    registry = CollectorRegistry()
    make(registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        make(registry=registry)


def test_it_can_be_rendered_in_another_thread_while_it_counts() -> None:
    metrics = make(domains=lambda: [DB_1])
    results: list[Any] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            results.append(series(metrics)["panicd_panics_total{source=event}"])

    thread = threading.Thread(target=scrape)
    thread.start()
    while thread.is_alive() and len(results) < 5:
        metrics.panics.labels(source="event").inc()
    stop.set()
    thread.join()
    assert len(results) >= 5
    assert results == sorted(results)


def test_the_latest_signatures_have_a_time_and_no_more_than_that() -> None:
    metrics = make()
    for number in range(SIGNATURES + 5):
        metrics.note_signature(f"1-{number:010x}", 1000.0 + number)
    metrics.note_signature("1-0000000005", 5000.0)  # seen again: it stays
    metrics.note_signature("1-ffffffffff", 6000.0)
    metrics.note_signature("1-0000000005", 4000.0)  # an older one, heard of later
    name = "panicd_signature_last_panic_timestamp_seconds"
    times = {key: at for key, at in series(metrics).items() if key.startswith(name)}
    assert len(times) == SIGNATURES
    assert times[f"{name}{{signature=1-0000000005}}"] == 5000.0
    assert times[f"{name}{{signature=1-ffffffffff}}"] == 6000.0
    assert f"{name}{{signature=1-0000000006}}" not in times
