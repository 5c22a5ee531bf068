"""A QEMU that claims to be another: what belongs to the other stays as it is.

One row of docs/threat-model.md is one test here; each is tried with every claim, from a socket of
the attacker's own that panicd dials, and dialled in.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from panicd.evidence.bundle import MANIFEST
from panicd.service.control_client import RefusedError
from tests.parts.background import background
from tests.parts.daemon import RunningDaemon
from tests.parts.fake import FakeQemu
from tests.parts.nobody import NOBODY, needs_root

pytestmark = needs_root

VICTIM = "victim"
UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f51"
TIME_LIMIT = 40.0
LISTENING = "dial-in.sock"
PLACE = "@PLACE@"
"""Stands for the directory of the monitors."""

CLAIMS: dict[str, dict[str, Any]] = {
    "its name": {"name": VICTIM},
    "its UUID": {"name": "attacker", "uuid": UUID},
    "both": {"name": VICTIM, "uuid": UUID},
    "its name as UUID": {"name": "attacker", "uuid": VICTIM},
    "its UUID as name": {"name": UUID},
    "its UUID in capitals": {"name": "attacker", "uuid": UUID.upper()},
    "its monitor as name": {"name": f"{PLACE}/victim.qmp"},
    "its key as name": {"name": f"dialled:{os.geteuid()}:{PLACE}/victim.qmp"},
    "its name made different": {"name": f"{VICTIM}@{UUID}"},
    "every domain as name": {"name": "*"},
}


@dataclass(frozen=True)
class Attack:
    """What an attacker claims, and by which way he is connected."""

    directory: Path
    claim: dict[str, Any]
    dials_in: bool

    def qemu(self, number: int = 0, **claim: Any) -> FakeQemu:
        """A QEMU of his; ``claim`` in place of the claim."""
        return FakeQemu(
            self.directory / f"attacker{number}.qmp",
            dial=self.directory / LISTENING if self.dials_in else None,
            reconnect=0.01,
            uid=NOBODY,
            **(claim or self.claim),
        )

    def is_at(self, domain: Any) -> bool:
        """Whether a domain of ``status`` is his, and connected."""
        place = f"{LISTENING}#" if self.dials_in else "/attacker"
        return place in domain["monitor"] and domain["connected"]


@pytest.fixture(params=[False, True], ids=["dialled", "dials in"])
def dials_in(request: pytest.FixtureRequest, socket_dir: Path) -> bool:
    socket_dir.chmod(0o711)
    dials_in: bool = request.param
    return dials_in


@pytest.fixture(params=[*CLAIMS.values()], ids=[*CLAIMS])
def attack(request: pytest.FixtureRequest, socket_dir: Path, dials_in: bool) -> Attack:
    claim = {what: text.replace(PLACE, str(socket_dir)) for what, text in request.param.items()}
    return Attack(socket_dir, claim, dials_in)


@pytest.fixture
def victim(socket_dir: Path) -> FakeQemu:
    return FakeQemu(socket_dir / "victim.qmp", name=VICTIM, uuid=UUID)


@asynccontextmanager
async def host(
    directory: Path, policy: dict[str, Any], **config: Any
) -> AsyncIterator[RunningDaemon]:
    """A daemon that dials, and that anybody may dial in to."""
    monitors = [{"glob": f"{directory}/*.qmp"}, {"listen": f"{directory}/{LISTENING}"}]
    async with RunningDaemon.start(
        directory, policy, monitors=monitors, time_limit=TIME_LIMIT, **config
    ) as daemon:
        (directory / LISTENING).chmod(0o666)
        yield daemon


async def connected(daemon: RunningDaemon, attack: Attack, count: int = 1) -> list[Any]:
    """The attacker's domains, once so many are connected."""
    while True:
        mark = daemon.mark()
        status = await daemon.call("status")
        found = [domain for domain in status["domains"] if attack.is_at(domain)]
        if len(found) >= count and all(domain["on_crash"] for domain in found):
            return found
        await daemon._wait_line(mark)


async def its(daemon: RunningDaemon) -> Any:
    """The victim in ``status``, whatever it is called there, once it is looked after."""
    while True:
        mark = daemon.mark()
        for domain in (await daemon.call("status"))["domains"]:
            if "/victim.qmp" in domain["monitor"] and domain["on_crash"]:
                return domain
        await daemon._wait_line(mark)


async def test_the_restart_budget(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    policy = {"on_crash": "restart", "restart": {"max": 1, "min_uptime": "0s"}}
    attacker = attack.qemu()
    async with host(socket_dir, policy) as daemon, victim.running(), attacker.running():
        await daemon.wait_armed(VICTIM)
        (his,) = await connected(daemon, attack)
        attacker.panic()
        await daemon.wait_incident(his["domain"], ending="restarted")
        attacker.panic()
        spent = await daemon.wait_incident(his["domain"], state="preserved")
        assert spent.decisions == [("preserve", "budget-spent")]
        victim.panic()
        own = await daemon.wait_incident((await its(daemon))["domain"], ending="restarted")
        assert own.decisions == [("restart", "on-crash")]


async def test_its_monitor(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    """Whoever came first keeps nobody out."""
    attacker = attack.qemu()
    async with host(socket_dir, {"on_crash": "restart"}) as daemon, attacker.running():
        await connected(daemon, attack)
        async with victim.running():
            own = await its(daemon)
            victim.panic()
            await daemon.wait_incident(own["domain"], ending="restarted")
            assert attacker.acting_commands == []


async def test_its_waiting_incident(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    attacker = attack.qemu()
    async with host(socket_dir, {"on_crash": "preserve"}) as daemon, background() as nursery:
        await nursery.start(victim.run)
        await daemon.wait_armed(VICTIM)
        victim.panic()
        kept = await daemon.wait_incident(VICTIM, state="preserved")
        await daemon.wait_kept(kept)
        await daemon.kill()
        victim.stop_listening()  # it is slower to come back
        (socket_dir / "victim.qmp").unlink()
        await daemon.start_again()
        (socket_dir / LISTENING).chmod(0o666)
        await nursery.start(attacker.run)
        await connected(daemon, attack)
        (waits,) = (await daemon.call("status"))["waiting"]
        assert (waits["incident"], waits["incident_state"]) == (kept.id, "preserved")
        attacker.panic()
        await daemon.wait_log("incident stays open", since=daemon.began)
        (waits,) = (await daemon.call("status"))["waiting"]
        assert waits["incident"] == kept.id


async def test_its_return(socket_dir: Path, attack: Attack) -> None:
    """Nobody else who is there, or who comes, is what its relaunch has brought back."""
    relaunch = {"command": ["/bin/true"], "timeout": "10m"}
    there, comes = attack.qemu(), attack.qemu(1)
    async with (
        host(socket_dir, {"on_crash": "restart", "relaunch": relaunch}) as daemon,
        there.running(),
    ):
        await connected(daemon, attack)
        victim = FakeQemu(
            socket_dir / "victim.qmp", name=VICTIM, uuid=UUID, reboot_action="shutdown"
        )
        async with victim.running():
            await its(daemon)
            victim.panic()
            await daemon.wait_log("step begins", step="AwaitReturn")
        async with comes.running():
            await connected(daemon, attack)
            (waits,) = (await daemon.call("status"))["waiting"]
            assert (waits["monitor"], waits["incident_state"]) == (str(victim.socket), "acting")
            again = FakeQemu(socket_dir / "victim.qmp", name=VICTIM, uuid=UUID)
            async with again.running():
                ended = await daemon.wait_log("incident closed", ending="relaunched")
                assert ended["incident"] == waits["incident"]
        assert there.acting_commands == comes.acting_commands == []


async def test_its_hold(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    """It is held, whoever else was there first and says the same; and stays held."""
    attacker = attack.qemu()
    async with host(socket_dir, {"on_crash": "restart"}) as daemon, attacker.running():
        (his,) = await connected(daemon, attack)
        await daemon.call("hold", domain=VICTIM, why="a repair", future=True)
        async with victim.running():
            await its(daemon)
            with pytest.raises(RefusedError, match="there is no hold on"):  # of his alone
                await daemon.call("unhold", domain=his["monitor"], why="not his")
            own = await its(daemon)
            assert own["held_why"] == "a repair"
            victim.panic()
            incident = await daemon.wait_incident(own["domain"], state="preserved")
            assert incident.decisions == [("preserve", "held")]


async def test_what_an_operator_does_to_it(
    socket_dir: Path, attack: Attack, victim: FakeQemu
) -> None:
    """What is said of two is done to none; its monitor says which one is meant."""
    attacker = attack.qemu()
    async with host(socket_dir, {"on_crash": "preserve"}) as daemon, attacker.running():
        await connected(daemon, attack)
        async with victim.running():
            await its(daemon)
            attacker.panic()
            victim.panic()
            await daemon.wait_log("incident stays open", state="preserved", count=2)
            if attack.claim["name"] == VICTIM:
                with pytest.raises(RefusedError, match=str(victim.socket)):
                    await daemon.call("act", domain=VICTIM, action="restart", why="which?")
                assert victim.acting_commands == []
            await daemon.call("act", domain=str(victim.socket), action="restart", why="it")
            assert attacker.acting_commands == []
            assert victim.acting_commands == ["system_reset", "cont"]


async def test_its_counts(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    attacker = attack.qemu()
    async with host(socket_dir, {"on_crash": "preserve"}) as daemon, victim.running():
        await daemon.wait_armed(VICTIM)
        async with attacker.running():
            (his,) = await connected(daemon, attack)
            attacker.panic()
            await daemon.wait_incident(his["domain"], state="preserved")
            assert await daemon.metric("panicd_domain_panics_total", domain=VICTIM) == 0
            assert await daemon.metric("panicd_domain_panicked", domain=VICTIM) == 0
            assert await daemon.metric("panicd_domain_panics_total", domain=his["domain"]) == 1


async def test_its_evidence(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    policy = {"on_crash": "restart", "evidence": {"budget": "3s", "keep": 1}}
    attacker = attack.qemu()
    async with host(socket_dir, policy) as daemon, victim.running(), attacker.running():
        await daemon.wait_armed(VICTIM)
        (his,) = await connected(daemon, attack)
        victim.panic()
        own = await daemon.wait_incident((await its(daemon))["domain"], ending="restarted")
        await daemon.call("ack", incident=own.id, why="looked at it")
        for number in (1, 2):
            attacker.panic()
            await daemon.wait_incident(his["domain"], ending="restarted", count=number)
        await daemon.wait_log("old evidence removed")
        assert (socket_dir / "state" / "incidents" / own.id / MANIFEST).exists()
        assert daemon.logged("old evidence removed", incident=own.id) == []


async def test_its_dumps(socket_dir: Path, attack: Attack, victim: FakeQemu) -> None:
    """There is room for one, and no more."""
    coredump = {"format": "elf", "keep": 9, "max_total": "100KiB", "min_free": "1MiB"}
    attacker = attack.qemu()
    async with (
        host(socket_dir, {"on_crash": "coredump-restart", "coredump": coredump}) as daemon,
        victim.running(),
        attacker.running(),
    ):
        await daemon.wait_armed(VICTIM)
        (his,) = await connected(daemon, attack)
        victim.panic()
        own = await daemon.wait_incident((await its(daemon))["domain"], ending="restarted")
        for number in (1, 2):
            attacker.panic()
            latest = await daemon.wait_incident(his["domain"], ending="restarted", count=number)
            assert ("Dump", "done") in latest.steps
        await daemon.wait_log("old dumps removed")
        dumps = {path.stem: path for path in (socket_dir / "state" / "coredumps").rglob("*.elf")}
        assert set(dumps) == {own.id, latest.id}
        assert dumps[latest.id].parents[1].name == str(NOBODY)
        assert dumps[own.id].parents[1].name == str(os.geteuid())


async def test_its_policy_is_got_by_each_that_claims_it(
    socket_dir: Path, attack: Attack, victim: FakeQemu
) -> None:
    """That hurts nobody but the claimer."""
    rules = [{"match": VICTIM, "on_crash": "preserve"}]
    attacker = attack.qemu()
    async with (
        host(socket_dir, {"on_crash": "destroy"}, domains=rules) as daemon,
        attacker.running(),
    ):
        (his,) = await connected(daemon, attack)
        assert his["on_crash"] == ("preserve" if attack.claim["name"] == VICTIM else "destroy")
        async with victim.running():
            await its(daemon)
            assert (await its(daemon))["on_crash"] == "preserve"
            if his["on_crash"] == "destroy":
                attacker.panic()
                await attacker.exited.wait()
            assert not victim.exited.is_set()


async def test_a_storm_of_one_user_is_nobody_else_s(
    socket_dir: Path, dials_in: bool, victim: FakeQemu
) -> None:
    attack = Attack(socket_dir, {}, dials_in)
    attackers = [attack.qemu(number, name=f"a{number}") for number in range(6)]
    storm = {"minimum": 5, "share": "1%", "window": "1h"}
    async with (
        host(socket_dir, {"on_crash": "restart"}, storm=storm) as daemon,
        victim.running(),
        background() as nursery,
    ):
        for attacker in attackers:
            nursery.start_soon(attacker.run)
        await connected(daemon, attack, len(attackers))
        await daemon.wait_armed(VICTIM)
        for attacker in attackers:
            attacker.panic()
        await daemon.wait_log("many domains panic at once", owners=[NOBODY])
        await daemon.wait_log("decided", reason="storm")
        victim.panic()
        incident = await daemon.wait_incident(VICTIM, ending="restarted")
        assert incident.decisions == [("restart", "on-crash")]
