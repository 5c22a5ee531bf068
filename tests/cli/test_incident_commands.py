"""`panicd incidents`, `incident` and `export`, of a daemon and without one."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from datetime import datetime
from pathlib import Path

import pytest
import trio

from panicd.service.control_client import RefusedError
from tests.parts.commands import FAILED, ask, ask_json, panicd
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f54"


async def test_incidents_and_incident(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "ack", incident.id, "--why", "seen")  # it is in the journal by now
        (kept,) = (await ask_json(daemon, "incidents", "--open", "--domain", UUID))["incidents"]
        assert (kept["incident"], kept["incident_state"]) == (incident.id, "preserved")
        other = await ask_json(daemon, "incidents", "--domain", "other")
        assert other["incidents"] == []
        assert incident.id in await ask(daemon, "incidents")
        whole = await ask_json(daemon, "incident", incident.id)
        assert whole["incident"] == incident.id
        shown = await ask(daemon, "incident", incident.id)
        assert "EnsureStopped" in shown
        assert "seen" in shown
        await ask(daemon, "incident", "no-such", status=FAILED)
        await ask(daemon, "ack", "no-such", "--why", "seen", status=FAILED)


async def test_incidents_are_filtered(socket_dir: Path) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic({"type": "hyper-v", "arg1": 0xA, "arg2": 1, "arg3": 2, "arg4": 3, "arg5": 4})
        incident = await daemon.wait_incident("vm", state="preserved")

        async def found(*options: str) -> list[str]:
            answer = await ask_json(daemon, "incidents", *options)
            return [one["incident"] for one in answer["incidents"]]

        await ask(daemon, "act", "vm", "preserve", "--why", "it is in the journal by now")
        assert await found("--unacknowledged") == [incident.id]
        assert await found("--since", "1h") == await found("--until", "2126-01-01") == [incident.id]
        assert await found("--since", "2126-01-01") == await found("--until", "1h") == []
        await ask(daemon, "ack", incident.id, "--why", "seen")
        assert await found("--unacknowledged") == []
        assert await found("--open") == [incident.id]
        told = await daemon.wait_log("panic line", incident=incident.id)
        words = "Windows bug check 0x0000000A IRQL_NOT_LESS_OR_EQUAL (0x0000000000000001, "
        assert told["panic_line"].startswith(words)
        assert told["title"] == "bug check 0xa IRQL_NOT_LESS_OR_EQUAL (0x1, 0x2, 0x3, 0x4)"
        assert words[:60] in await ask(daemon, "incidents")
        assert words in await ask(daemon, "incident", incident.id)
        with pytest.raises(RefusedError, match="since: expected seconds"):
            await daemon.call("incidents", since="yesterday")


async def test_incident_is_exported_with_and_without_a_daemon(
    socket_dir: Path, tmp_path: Path
) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "ack", incident.id, "--why", "it is in the journal by now")
        await ask(daemon, "export", incident.id, "-o", str(tmp_path / "up"))
        await ask(daemon, "export", incident.id, "-o", str(tmp_path / "up"), status=FAILED)
        await ask(daemon, "export", "no-such", status=FAILED)
    await ask(daemon, "export", incident.id, "-o", str(tmp_path / "down"))
    said = await ask(daemon, "export", "no-such", status=FAILED)
    assert "and in the journal no incident is called 'no-such'" in said
    for name in ("up", "down"):
        with tarfile.open(tmp_path / name) as archive:
            record = archive.extractfile(f"panicd-{incident.id}/record.json")
            assert record is not None
            assert json.load(record)["incident"] == incident.id


async def test_incident_is_called_by_its_beginning_its_last_part_or_last(socket_dir: Path) -> None:
    vms = [FakeQemu(socket_dir / f"{name}.qmp", name=name) for name in ("a", "b")]
    async with DaemonInside.start(socket_dir) as daemon:
        found = {}
        for vm in vms:
            async with vm.running():
                await daemon.wait_armed(vm.socket.stem)
                vm.panic()
                incident = await daemon.wait_incident(vm.socket.stem, state="preserved")
                found[vm.socket.stem] = incident.id
                await ask(daemon, "ack", incident.id, "--why", "it is in the journal by now")
        first, last = found.values()

        async def called(text: str) -> str:
            return str((await ask_json(daemon, "incident", text))["incident"])

        assert await called("last") == last
        for whole in (first, last):
            token = whole.partition("-")[2]
            assert await called(whole) == await called(token) == await called(token[:6]) == whole
            assert await called(whole[:-1]) == whole
        said = await ask(daemon, "incident", "20", status=FAILED)
        assert "'20' is the beginning of" in said
        assert first in said
        assert last in said
        for nobody in ("", "%", "no-such"):
            assert await ask(daemon, "incident", nobody, status=FAILED)
        said = await ask(daemon, "ack", last.partition("-")[2], "--why", "again")
        assert said == f"Acknowledged: incident {last} of b.\n"
        same = await ask(daemon, "incidents", "--same-as", "last", status=FAILED)
        assert f"incident {last}: panicd knows too little" in same
    await ask(daemon, "export", "last", "-o", str(socket_dir / "archive"))
    with tarfile.open(socket_dir / "archive") as archive:
        assert archive.getnames()[0] == f"panicd-{last}/record.json"


@pytest.mark.parametrize("options", [["--utc", "incidents"], ["incidents", "--utc"], ["incidents"]])
async def test_times_have_their_zone(socket_dir: Path, options: list[str]) -> None:
    vm = FakeQemu(socket_dir / "vm.qmp")
    async with DaemonInside.start(socket_dir) as daemon, vm.running():
        await daemon.wait_armed("vm")
        vm.panic()
        incident = await daemon.wait_incident("vm", state="preserved")
        await ask(daemon, "ack", incident.id, "--why", "it is in the journal by now")
        run = await trio.run_process(
            [sys.executable, "-m", "panicd", "--config", daemon.config_file, *options],
            env=os.environ | {"TZ": "Asia/Kolkata"},
            capture_stdout=True,
        )
    row = run.stdout.decode().splitlines()[-1]
    day, clock, zone = row.split()[4:7]
    assert zone == ("UTC" if "--utc" in options else "IST")
    stamp = f"{day}T{clock}".replace("-", "").replace(":", "")
    assert (stamp == incident.id[:15]) == ("--utc" in options), "an id has its time in UTC"


def test_export_says_why_the_journal_cannot_be_read(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    result = panicd("--config", daemon.config_file, "export", "20261123T040000-0a1b2c3d")
    assert result.exit_code == FAILED
    assert "the journal can't be read" in result.output


async def test_panics_are_told_from_each_other(socket_dir: Path) -> None:
    console = socket_dir / "console"
    policy = {
        "on_crash": "restart",
        "restart": {"max": 10, "min_uptime": "0s"},
        "evidence": {"budget": "3s", "consoles": [str(console)]},
    }
    vm = FakeQemu(socket_dir / "vm.qmp")
    found = []
    async with DaemonInside.start(socket_dir, policy) as daemon, vm.running():
        await daemon.wait_armed("vm")
        assert "No panic" in await ask(daemon, "panics")
        for number, text in enumerate([LOOKUP, "oops\n", STUCK, LOOKUP], 1):
            console.write_text(text)
            vm.panic()
            incident = await daemon.wait_incident("vm", ending="restarted", count=number)
            await daemon.wait_kept(incident)
            found.append(incident.id)
        lookup, stuck = (await ask_json(daemon, "panics"))["panics"]
        known = lookup["signature"]
        assert lookup == {
            "signature": {
                "hash": known["hash"],
                "title": "NULL pointer dereference",
                "frames": ["queue_put", "queue_flush"],
            },
            "incident_count": 2,
            "domain_count": 1,
            "first_at": lookup["first_at"],
            "last_at": lookup["last_at"],
            "incident": found[3],
        }
        assert (stuck["signature"]["title"], stuck["incident_count"]) == ("panic: stuck #", 1)
        assert stuck["incident"] == found[2]
        shown = await ask(daemon, "panics", "--limit", "1")
        assert "NULL pointer dereference in queue_put < queue_flush" in shown
        assert "stuck" not in shown
        assert (await ask_json(daemon, "panics", "--since", "0s"))["panics"] == []

        same = (await ask_json(daemon, "incidents", "--same-as", found[0]))["incidents"]
        assert [one["incident"] for one in same] == [found[3], found[0]]
        assert "seen 2 times on 1 domain" in await ask(daemon, "incident", found[0])
        for none in (found[1], "no-such"):
            await ask(daemon, "incidents", "--same-as", none, status=FAILED)
        told = daemon.logged("panic line", incident=found[3])[-1]
        assert told["signature"] == known["hash"]
        assert told["frames"] == known["frames"]
        latest = {
            one["signature"]["hash"]: datetime.fromisoformat(one["last_at"]).timestamp()
            for one in (lookup, stuck)
        }
        times = {one: await daemon.metric(LAST_PANIC, signature=one) for one in latest}
        assert times == pytest.approx(latest, abs=0.01)
    async with DaemonInside.start(socket_dir, policy) as daemon:  # the times are there again
        again = {one: await daemon.metric(LAST_PANIC, signature=one) for one in latest}
        assert again == pytest.approx(latest, abs=0.01)


LAST_PANIC = "panicd_signature_last_panic_timestamp_seconds"
LOOKUP = """\
[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    1.000010] RIP: 0010:queue_put+0x12/0x40
[    1.000020] Call Trace:
[    1.000030]  queue_flush+0x12/0x40
[    1.000040] Kernel panic - not syncing: Fatal exception
"""
STUCK = "Kernel panic - not syncing: stuck 7\n"
