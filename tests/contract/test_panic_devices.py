"""What panicd relies on in a QEMU 7.2 or later: its panic devices."""

from __future__ import annotations

from tests.contract.asking import refusal
from tests.contract.subjects import PAUSES, Setup, Start


class TestPanicDevices:
    async def test_finds_an_unnamed_one(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            listed = await qmp.execute("qom-list", {"path": "/machine/peripheral-anon"})
            assert {"name": "device[0]", "type": "child<pvpanic>"} in listed
            node = "/machine/peripheral-anon/device[0]"
            ioport = {"path": node, "property": "ioport"}
            assert await qmp.execute("qom-get", ioport) == 0x505
            assert await qmp.execute("qom-get", {"path": node, "property": "events"}) in (3, 7)
            assert await qmp.execute("qom-get", {"path": node, "property": "type"}) == "pvpanic"

    async def test_finds_a_named_one(self, start: Start) -> None:
        setup = Setup(devices=("pvpanic-pci,id=pv0",))
        async with start(setup) as vm, vm.client() as qmp:
            listed = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
            assert {"name": "pv0", "type": "child<pvpanic-pci>"} in listed
            assert await qmp.execute("qom-list", {"path": "/machine/peripheral-anon"}) == [
                {"name": "type", "type": "string"}
            ]

    async def test_has_none_builtin(self, start: Start) -> None:
        async with start(Setup(devices=())) as vm, vm.client() as qmp:
            for path in ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"):
                listed = await qmp.execute("qom-list", {"path": path})
                assert not [node for node in listed if "pvpanic" in node["type"]]

    async def test_names_what_is_not_there(self, start: Start) -> None:
        async with start(PAUSES) as vm, vm.client() as qmp:
            assert await refusal(qmp, "qom-list", {"path": "/machine/nope"}) == (
                "DeviceNotFound",
                "Device '/machine/nope' not found",
            )
            missing = {"path": "/machine/peripheral-anon/device[0]", "property": "nope"}
            assert await refusal(qmp, "qom-get", missing) == (
                "GenericError",
                "Property 'pvpanic.nope' not found",
            )
