"""Five hosts with 200 domains each, one Prometheus, one Alertmanager with the shipped example."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from tests.parts.background import background
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.prometheus import RULES, Alerting, Message, missing_programs, unused_port
from tests.prometheus.test_dashboard import BOARD, PANELS, fill_in

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs {missing_programs()}"),
]

EXAMPLE = RULES.parent / "alertmanager.example.yml"
HOSTS, DOMAINS = 5, 200
SHARED = (14, 13, 13)
"""Domains of each of three hosts that panic of one cause."""
TIME_LIMIT = 240.0
INTERVAL = "4s"
"""Between two scrapes: five daemons of 200 domains share this machine with all else."""
CAUSE = {"type": "hyper-v", "arg1": 0x7E, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 5}
LOOP = "loop"


def routing() -> dict[str, Any]:
    """The example's routes and inhibitions; its waits of minutes are some seconds here."""
    config = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "6s", "group_interval": "2s"}
    config["route"]["group_wait"] = "12s"  # the longer of the two, as in the example
    del config["templates"]
    return dict(config)


def rules() -> str:
    """The shipped rules, but a host is missed within seconds."""
    text = RULES.read_text(encoding="utf-8")
    down = text.index("alert: PanicdDown")
    return text[:down] + text[down:].replace("for: 2m", "for: 3s", 1)


def firing(message: Message) -> list[str]:
    return [n.labels["alertname"] for n in message.alerts if n.status == "firing"]


async def test_one_cause_is_one_page_a_loop_another_and_a_host_that_is_gone_a_third(
    socket_dir: Path,
) -> None:
    ports = [unused_port() for _ in range(HOSTS)]
    targets = [f"127.0.0.1:{port}" for port in ports]
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(background())
        fakes: list[dict[str, FakeQemu]] = []
        for host in range(HOSTS):
            place = socket_dir / f"{host}"
            place.mkdir()
            names = [f"vm-{number:03}" for number in range(DOMAINS - (host == 3))]
            names += [LOOP] * (host == 3)
            fakes.append({n: FakeQemu(place / f"{n}.qmp", name=n) for n in names})
            for fake in fakes[host].values():
                await nursery.start(fake.run)
        daemons = [
            await stack.enter_async_context(
                RunningDaemon.start(
                    socket_dir / f"{host}",
                    domains=[{"match": LOOP, "on_crash": "restart",
                              "restart": {"max": 2, "min_uptime": "0s"}}],
                    metrics={"listen": target},
                    time_limit=TIME_LIMIT,
                )
            )
            for host, target in enumerate(targets)
        ]  # fmt: skip
        alerting = await stack.enter_async_context(
            Alerting.start(
                socket_dir, target=targets, routing=routing(), rules=rules(), interval=INTERVAL
            )
        )
        await alerting.wait_query(f"count(panicd_domain_armed == 1) == {HOSTS * DOMAINS}")
        await alerting.wait_query(f"count(panicd_domain_panics_total == 0) == {HOSTS * DOMAINS}")
        scraped = trio.current_time()

        for host, number in enumerate(SHARED):
            for fake in list(fakes[host].values())[:number]:
                fake.panic(CAUSE)
        for count in (1, 2, 3):
            fakes[3][LOOP].panic()
            if count < 3:
                await daemons[3].wait_incident(LOOP, ending="restarted", count=count)
        await daemons[3].wait_incident(LOOP, state="preserved")

        page = await alerting.wait_message("on-call", "PanicdSamePanicOnManyHosts")
        (shared,) = page.alerts
        assert shared.annotations["summary"].startswith("The same panic on 3 hosts: ")
        described = shared.annotations["description"]
        for number, target in zip(SHARED, targets, strict=False):
            assert f"{number} at {target}" in described, described
        loop = await alerting.wait_message("on-call", "PanicdRestartBudgetSpent")
        assert [n.labels["domain"] for n in loop.alerts] == [LOOP]
        assert loop.alerts[0].labels["instance"] == targets[3]

        await daemons[4].kill()
        gone = await alerting.wait_message("on-call", "PanicdDown")
        assert [n.labels["instance"] for n in gone.alerts] == [targets[4]]

        # By then whatever else there was had its time to be told.
        began = float((await alerting.api("query", query="time()"))["result"][1])
        await alerting.wait_query(f"vector(time()) > {began + 15}")
        pages = Counter(n for m in alerting.messages if m.receiver == "on-call" for n in firing(m))
        print(f"{trio.current_time() - scraped:.0f} s from the first panic on: {dict(pages)}")
        assert pages.keys() == {
            "PanicdSamePanicOnManyHosts", "PanicdRestartBudgetSpent", "PanicdDown",
        }  # fmt: skip
        tickets = [n for m in alerting.messages if m.receiver == "tickets" for n in m.alerts]
        assert not [n for n in tickets if n.labels.get("signature")], "the page stands for them"
        await check_dashboard(alerting, targets)


async def check_dashboard(alerting: Alerting, targets: list[str]) -> None:
    """Check that the dashboard tells the hosts apart, and sees every panic."""
    # The dashboard tells the hosts apart.
    (opened,) = [panel for panel in PANELS if panel["title"] == "Open incidents"]
    rows = await alerting.query(fill_in(opened["targets"][0]["expr"]))
    by_host = Counter(row["metric"]["instance"] for row in rows)
    assert by_host == dict(zip(targets, (*SHARED, 1), strict=False))
    (alerts,) = [panel for panel in PANELS if panel["title"] == "Firing alerts"]
    shown = await alerting.query(fill_in(alerts["targets"][0]["expr"]))
    assert "PanicdSamePanicOnManyHosts" in {row["metric"]["alertname"] for row in shown}

    # Its annotation sees each panic, also of a guest that was restarted.
    (annotation,) = BOARD["annotations"]["list"]
    expression = fill_in(annotation["expr"]).replace("offset 1m", f"offset {INTERVAL}")
    now = float((await alerting.api("query", query="time()"))["result"][1])
    seen = await alerting.api(
        "query_range", query=expression, start=f"{now - 600}", end=f"{now}", step=INTERVAL
    )
    panics: Counter[tuple[str, str]] = Counter()
    for series in seen["result"]:
        metric = series["metric"]
        panics[metric["domain"], metric["instance"]] += sum(
            int(float(value)) for _, value in series["values"]
        )
    assert panics[LOOP, targets[3]] == 3
    assert len(panics) == sum(SHARED) + 1
