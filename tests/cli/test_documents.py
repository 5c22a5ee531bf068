"""What ``--json`` prints is what docs/schemas say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from panicd.cli import main
from tests.parts.commands import DONE, FAILED, ask_json, panicd
from tests.parts.daemon import DaemonInside, ObservedDaemon
from tests.parts.fake import FakeQemu
from tests.parts.json_schema import mistakes

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f54"
BECAUSE = ("--why", "a test")
INFO = {"type": "hyper-v", "arg1": 0xA, "arg2": 1, "arg3": 2, "arg4": 3, "arg5": 4}


def checked(name: str, document: dict[str, Any]) -> dict[str, Any]:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    assert document["schema"] == f"panicd/{name}/1"
    assert mistakes(document, schema) == []
    return document


def test_every_command_that_takes_json_has_a_schema() -> None:
    takes_it = {name for name in main.commands if "--json" in panicd(name, "--help").output}
    assert takes_it | {"incident-log"} == {path.stem for path in SCHEMAS.glob("*.json")}


async def test_documents_of_a_daemon(socket_dir: Path) -> None:
    console = socket_dir / "console"
    console.write_text("Kernel panic - not syncing: Fatal exception\nRIP: 0010:queue_put+0x1/0x2\n")
    policy = {"on_crash": "preserve", "evidence": {"budget": "3s", "consoles": [str(console)]}}
    dumping = {"match": "dump", "on_crash": "coredump-restart"}
    web = FakeQemu(socket_dir / "web.qmp", name="web", uuid=UUID)
    dump = FakeQemu(socket_dir / "dump.qmp", name="dump")
    plain = FakeQemu(socket_dir / "plain.qmp", name="plain", devices=())
    mute = FakeQemu(socket_dir / "mute.qmp", name="mute", greeting=b"")
    async with (
        DaemonInside.start(socket_dir, policy, domains=[dumping]) as daemon,
        web.running(),
        dump.running(),
        plain.running(),
        mute.running(),
    ):

        async def asked(name: str, *arguments: str, status: int = DONE) -> dict[str, Any]:
            return checked(name, await ask_json(daemon, name, *arguments, status=status))

        for name in ("web", "dump", "plain"):
            await daemon.wait_armed(name)
        await asked("explain", "web")
        await asked("explain", "mute")
        await asked("audit", status=FAILED)
        await asked("hold", "plain", "--for", "1h", *BECAUSE)
        await asked("hold", "--all", *BECAUSE)
        await asked("unhold", "--all", *BECAUSE)
        await asked("status")
        dump.hold_dumps()
        dump.panic(INFO)
        web.panic()
        incident = await daemon.wait_incident("web", state="preserved")
        await dump.wait_command("dump-guest-memory")
        (going_on,) = (await asked("status", "dump"))["domains"]
        assert going_on["standing"] == "acting"
        dump.release_dumps()
        await daemon.wait_incident("dump", ending="restarted")
        await asked("act", "web", "preserve", *BECAUSE)
        await asked("ack", incident.id, *BECAUSE)
        whole = await asked("incident", incident.id)
        assert whole["acknowledgement"]["why"] == "a test"
        checked("incident-log", await ask_json(daemon, "incident", incident.id, "--log"))
        await asked("release", "web", *BECAUSE)
        await asked("incidents")
        assert (await asked("panics"))["panics"]
        (last,) = (await asked("incidents", "--domain", "dump"))["incidents"]
        await asked("incident", last["incident"])
        await asked("reload")


async def test_document_of_a_probe(socket_dir: Path) -> None:
    daemon = ObservedDaemon(socket_dir)
    vm = FakeQemu(socket_dir / "vm.qmp", uuid=UUID)
    async with vm.running():
        checked("probe", await ask_json(daemon, "probe", str(vm.socket)))


def test_document_of_advice() -> None:
    result = panicd("advise", "--os", "linux", "--kernel", "5.10", "--json")
    checked("advise", json.loads(result.output))


SCHEMA = {
    "type": "object",
    "properties": {"at": {"type": "string", "format": "date-time"}, "n": {"$ref": "#/$defs/n"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"n": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}},
}


GOOD = "2026-11-23T04:43:10.120Z"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"at": "today"},
        {"at": 1},
        {"at": GOOD, "n": -1},
        {"at": GOOD, "n": "1"},
        {"at": GOOD, "m": 1},
    ],
)
def test_what_is_not_in_a_schema_is_found(wrong: dict[str, object]) -> None:
    assert mistakes(wrong, SCHEMA)
    assert not mistakes({"at": GOOD, "n": None}, SCHEMA)
