"""`panicd incidents`, `incident` and `export`, of a daemon and without one."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from panicd.host.control_client import RefusedError
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
        (kept,) = await ask_json(daemon, "incidents", "--open", "--domain", UUID)
        assert (kept["id"], kept["state"]) == (incident.id, "preserved")
        assert await ask_json(daemon, "incidents", "--domain", "other") == []
        assert incident.id in await ask(daemon, "incidents")
        whole = await ask_json(daemon, "incident", incident.id)
        assert whole["id"] == incident.id
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
            return [one["id"] for one in await ask_json(daemon, "incidents", *options)]

        await ask(daemon, "act", "vm", "preserve", "--why", "it is in the journal by now")
        assert await found("--unacknowledged") == [incident.id]
        assert await found("--since", "1h") == await found("--until", "2126-01-01") == [incident.id]
        assert await found("--since", "2126-01-01") == await found("--until", "1h") == []
        await ask(daemon, "ack", incident.id, "--why", "seen")
        assert await found("--unacknowledged") == []
        assert await found("--open") == [incident.id]
        (told,) = daemon.logged("guest panicked", incident=incident.id)
        assert told["payload"] == "Windows bug check 0x0000000a: IRQL_NOT_LESS_OR_EQUAL"
        assert told["payload"] in await ask(daemon, "incidents")
        shown = await ask(daemon, "incident", incident.id)
        assert "Windows bug check 0x0000000a: IRQL_NOT_LESS_OR_EQUAL" in shown
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
    assert "the journal has no incident 'no-such'" in said
    for name in ("up", "down"):
        with tarfile.open(tmp_path / name) as archive:
            record = archive.extractfile(f"panicd-{incident.id}/record.json")
            assert record is not None
            assert json.load(record)["id"] == incident.id


def test_export_says_why_the_journal_cannot_be_read(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    result = panicd("--config", daemon.config_file, "export", "20261123T040000-0a1b2c3d")
    assert result.exit_code == FAILED
    assert "the journal can't be read" in result.output
