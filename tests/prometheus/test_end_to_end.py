"""From a real guest's panic to Alertmanager, and what Prometheus says that happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.prometheus import Alerting, missing_programs
from tests.parts.qemu import RealQemu
from tests.prometheus.test_dashboard import expressions

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs {missing_programs()}"),
]

TIME_LIMIT = 30.0
PRESERVED, RESTARTED, DESTROYED = "kept", "restarted", "destroyed"
DOMAINS = [
    {"match": RESTARTED, "on_crash": "coredump-restart"},
    {"match": DESTROYED, "on_crash": "destroy"},
]


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[tuple[RunningDaemon, Alerting]]:
    """A daemon that Prometheus scrapes."""
    async with RunningDaemon.start(
        directory,
        {"coredump": {"min_free": "1MiB", "format": "elf"}},
        domains=DOMAINS,
        time_limit=TIME_LIMIT,
    ) as daemon:
        served = await daemon.wait_log("metrics are served")
        target = f"{served['host']}:{served['port']}"
        async with Alerting.start(directory, target=target) as alerting:
            yield daemon, alerting


async def panic(vm: RealQemu) -> float:
    """Have a guest panic, and return when that was seen, on trio's clock."""
    await vm.press_key()
    await vm.wait_event("GUEST_PANICKED")
    return trio.current_time()


async def test_a_panic_reaches_alertmanager(socket_dir: Path) -> None:
    async with (
        watched(socket_dir) as (_daemon, alerting),
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=PRESERVED) as kept,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=RESTARTED) as restarted,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=DESTROYED) as destroyed,
    ):
        await alerting.wait_query("count(panicd_domain_up == 1) == 3")
        await alerting.wait_query("count(panicd_domain_panics_total == 0) == 3")

        panicked_at = await panic(kept)
        notice = await alerting.wait_notice("PanicdDomainPanicked", domain=PRESERVED)
        print(f"from the panic to the webhook: {notice.at - panicked_at:.3f} s")
        assert notice.labels["severity"] == "warning"
        assert notice.annotations["summary"] == "kept panicked"
        assert "PanicdDomainPanicked" in {a["alertname"] for a in await alerting.alerts()}

        await panic(restarted)
        await alerting.wait_notice("PanicdDomainPanicked", domain=RESTARTED)
        await panic(destroyed)
        assert await destroyed.wait_exit() == 0

        await alerting.wait_query("sum(panicd_panics_total) == 3")
        for expression, expected in {
            'sum(increase(panicd_panics_total{source="event"}[1m])) > 0': 1,
            f'panicd_domain_panicked{{domain="{PRESERVED}"}} == 1': 1,
            f'panicd_domain_panicked{{domain="{RESTARTED}"}} == 1': 0,
            f'panicd_domain_restarts_total{{domain="{RESTARTED}"}} == 1': 1,
            f'increase(panicd_domain_panics_total{{domain="{RESTARTED}"}}[1m]) > 0': 1,
            'panicd_actions_total{action="preserve"} == 1': 1,
            'panicd_actions_total{action="restart"} == 1': 1,
            'panicd_actions_total{action="destroy"} == 1': 1,
            "panicd_coredumps_total == 1": 1,
            "panicd_coredump_bytes_total > 16 * 1024 ^ 2": 1,
            "sum(panicd_action_failures_total) == 0": 1,
            "count by (domain) ({domain=~'.+', __name__=~'panicd_.*'}) > 8": 0,
        }.items():
            assert len(await alerting.query(expression)) == expected, expression

        # What Grafana's dashboard asks.
        for title, expression in expressions():
            assert await alerting.query(expression), f"{title}: {expression}"
        quantile = (
            "histogram_quantile(0.99, sum by (le) (rate(panicd_reaction_seconds_bucket[1m])))"
        )
        assert await alerting.query(f"{quantile} < 10"), "a figure, not NaN"

        groups = (await alerting.api("rules"))["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(health.values()) == {"ok"}, health
        firing = {n.labels["alertname"] for n in alerting.notices if n.status == "firing"}
        assert firing == {"PanicdDomainPanicked"}
