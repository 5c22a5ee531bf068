"""From a real guest's panic to Alertmanager, and what Prometheus says that happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from panicd.demo.guests import Guest
from tests.parts.daemon import RunningDaemon
from tests.parts.linux import Kernel, linux_guest
from tests.parts.prometheus import Alerting, missing_programs, unused_port
from tests.parts.qemu import RealQemu
from tests.prometheus.test_dashboard import counts, expressions

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs {missing_programs()}"),
]

TIME_LIMIT = 30.0
LINUX_TIME_LIMIT = 120.0
"""Seconds; under TCG a kernel panics some seconds after its start."""

PRESERVED, RESTARTED, DESTROYED = "kept", "restarted", "destroyed"
ONCE = Guest.PANIC_ONCE_THEN_BOOT_HEALTHY
"""Of a guest that is restarted, a key let go 0.1 s after it was pressed would be a second panic."""

SPENT, UNDUMPED = "spent", "undumped"
DOMAINS: list[dict[str, object]] = [
    {"match": RESTARTED, "on_crash": "coredump-restart"},
    {"match": DESTROYED, "on_crash": "destroy"},
    {"match": SPENT, "on_crash": "restart", "restart": {"max": 0}},
    {"match": UNDUMPED, "on_crash": "coredump-restart", "coredump": {"min_free": "99%"}},
]


@asynccontextmanager
async def watched(
    directory: Path, time_limit: float = TIME_LIMIT
) -> AsyncIterator[tuple[RunningDaemon, Alerting]]:
    """A daemon that Prometheus scrapes."""
    target = f"127.0.0.1:{unused_port()}"
    console = directory / "console"
    console.write_text("Kernel panic - not syncing: all alike\n")
    async with (
        RunningDaemon.start(
            directory,
            {
                "coredump": {"min_free": "1MiB", "format": "elf"},
                "evidence": {"budget": "3s", "consoles": [str(console)]},
            },
            domains=DOMAINS,
            metrics={"listen": target},
            time_limit=time_limit,
        ) as daemon,
        Alerting.start(directory, target=target) as alerting,
    ):
        yield daemon, alerting


async def panic(vm: RealQemu) -> float:
    """Have a guest panic, and return when that was seen, on trio's clock."""
    await vm.press_key()
    await vm.wait_event("GUEST_PANICKED")
    return trio.current_time()


async def test_a_panic_reaches_alertmanager(socket_dir: Path) -> None:
    async with (
        watched(socket_dir) as (daemon, alerting),
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=PRESERVED) as kept,
        RealQemu.start(socket_dir, guest=ONCE, name=RESTARTED, paused=True) as restarted,
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

        await daemon.call("hold", domain="later", future=True, why="it is shown")
        await restarted.start_guest()
        await alerting.wait_notice("PanicdDomainPanicked", domain=RESTARTED)
        await panic(destroyed)
        assert await destroyed.wait_exit() == 0

        await alerting.wait_query("sum(panicd_actions_total) == 3")  # the last that is counted
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
            "time() - panicd_signature_last_panic_timestamp_seconds < 60": 1,
            "panicd_coredump_bytes_total > 16 * 1024 ^ 2": 1,
            "sum(panicd_action_failures_total) == 0": 1,
            "count by (domain) ({domain=~'.+', __name__=~'panicd_domain_.*'}) > 9": 0,
        }.items():
            assert len(await alerting.query(expression)) == expected, expression

        # What Grafana's dashboard asks.
        for title, expression in expressions():
            assert await alerting.query(expression), f"{title}: {expression}"
        for expression in counts():
            for series in await alerting.query(expression):
                assert float(series["value"][1]).is_integer(), f"{expression}: {series}"
        quantile = (
            "histogram_quantile(0.99, sum by (le) (rate(panicd_reaction_seconds_bucket[1m])))"
        )
        assert await alerting.query(f"{quantile} < 10"), "a figure, not NaN"

        groups = (await alerting.api("rules"))["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(health.values()) == {"ok"}, health
        firing = {n.labels["alertname"] for n in alerting.notices if n.status == "firing"}
        # All three of the host have panicked: it says so, if the last was seen before it was gone.
        assert firing - {"PanicdManyDomainsPanicked"} == {"PanicdDomainPanicked"}


@pytest.mark.linux
async def test_a_linux_panic_reaches_alertmanager(socket_dir: Path, linux_kernel: Kernel) -> None:
    async with (
        watched(socket_dir, LINUX_TIME_LIMIT) as (daemon, alerting),
        linux_guest(socket_dir, linux_kernel, paused=True) as guest,
    ):
        await alerting.wait_query('panicd_domain_panics_total{domain="linux"} == 0')
        await guest.vm.start_guest()
        await guest.vm.wait_event("GUEST_PANICKED")
        panicked_at = trio.current_time()
        notice = await alerting.wait_notice("PanicdDomainPanicked", domain="linux")
        print(f"from Linux's panic to the webhook: {notice.at - panicked_at:.3f} s")
        await daemon.wait_incident("linux", state="preserved")
        assert "sysrq triggered crash" in await trio.Path(guest.console).read_text(errors="replace")


async def test_what_goes_wrong_is_told(socket_dir: Path) -> None:
    async with (
        watched(socket_dir) as (daemon, alerting),
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=PRESERVED) as kept,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=SPENT) as spent,
        RealQemu.start(socket_dir, guest=Guest.PANIC_ON_KEY, name=UNDUMPED) as undumped,
    ):
        await alerting.wait_query("count(panicd_domain_panics_total == 0) == 3")

        await panic(spent)
        notice = await alerting.wait_notice("PanicdRestartBudgetSpent")
        assert notice.labels["domain"] == SPENT

        await panic(undumped)
        notice = await alerting.wait_notice("PanicdCoredumpFailed")
        assert notice.labels["reason"] == "no-space"

        await panic(kept)
        await daemon.wait_incident(PRESERVED, state="preserved")
        await kept.witness.execute("cont")
        notice = await alerting.wait_notice("PanicdForeignResume")
        assert notice.labels["severity"] == "critical"


async def test_a_restart_of_panicd_looks_like_no_panic(socket_dir: Path) -> None:
    async with (
        watched(socket_dir) as (daemon, alerting),
        RealQemu.start(socket_dir, guest=ONCE, name=RESTARTED, paused=True) as restarted,
    ):
        await alerting.wait_query("panicd_domain_panics_total == 0")
        await restarted.start_guest()
        await alerting.wait_query("panicd_domain_restarts_total == 1")
        await daemon.terminate()
        await alerting.wait_query('up{job="panicd"} == 0')
        await daemon.start_again()
        await alerting.wait_query("panicd_domain_restarts_total == 1")
        # A counter that had begun anew would be taken for one that went through 0.
        for name in ("panicd_panics_total", "panicd_domain_panics_total", "panicd_actions_total"):
            assert not await alerting.query(f"resets({name}[1m]) > 0"), name
        assert not await alerting.query("changes(panicd_domain_restarts_total[1m]) > 1")
        assert len(await alerting.query("sum(panicd_panics_total) == 1")) == 1
        firing = {n.labels["alertname"] for n in alerting.notices if n.status == "firing"}
        assert firing == {"PanicdDomainPanicked"}
