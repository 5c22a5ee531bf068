from typing import Any

import pytest

from panicd.rules.plugging import DEVICE_ID, Plugged, places, plugged

NOWHERE = {"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "regions": []}


def port(name: object, *behind: dict[str, Any]) -> dict[str, Any]:
    return {
        "bus": 0,
        "slot": 1,
        "qdev_id": name,
        "regions": [],
        "pci_bridge": {"bus": {"number": 0, "secondary": 1}, "devices": [*behind]},
    }


def device(name: str, slot: int = 0, address: int = -1) -> dict[str, Any]:
    region = {"bar": 0, "type": "memory", "size": 2, "address": address}
    return {"bus": 1, "slot": slot, "qdev_id": name, "regions": [region]}


def machine(*devices: dict[str, Any]) -> object:
    return [{"bus": 0, "devices": [NOWHERE, *devices]}]


def test_a_port_takes_one_device_and_the_last_free_one_goes_first() -> None:
    q35 = machine(port("pci.1", device("usb")), port("pci.2"), port("pci.3"))
    expected = [{"bus": "pci.3", "addr": "0"}, {"bus": "pci.2", "addr": "0"}, {}]
    assert places(q35) == expected


def test_a_pc_has_room_on_its_bus() -> None:
    assert places(machine(device("balloon0", 2))) == [{}]


def test_a_port_behind_another_bridge_is_found() -> None:
    assert places(machine(port("pci.1", port("pci.2")))) == [{"bus": "pci.2", "addr": "0"}, {}]


def test_a_port_without_a_name_can_t_be_meant() -> None:
    assert places(machine(port(""))) == [{}]


@pytest.mark.parametrize("answer", [None, {}, [None], [{"devices": 1}], [{"devices": [1]}]])
def test_what_makes_no_sense_has_no_ports(answer: object) -> None:
    assert places(answer) == [{}]
    assert plugged(answer) is None


def test_an_answer_without_end_or_sense_ends() -> None:
    nested = port("pci.1")
    for _ in range(100_000):
        nested = port("pci.1", nested)
    assert len(places(machine(nested))) == 1
    value: object = {}
    for _ in range(100_000):
        value = [value]
    odd = {"qdev_id": DEVICE_ID, "slot": value}
    assert plugged(machine(port(value, odd))) == Plugged(f"pvpanic-pci,id={DEVICE_ID}", False)


def test_it_is_told_where_it_is_and_whether_the_guest_has_enabled_it() -> None:
    in_port = machine(port("pci.5", device(DEVICE_ID, address=0xFD600000)))
    expected = f"pvpanic-pci,id={DEVICE_ID},bus=pci.5,addr=0"
    assert plugged(in_port) == Plugged(expected, is_taken=True)
    on_pc = machine(device("balloon0", 2, 0xFEBF0000), device(DEVICE_ID, 4))
    assert plugged(on_pc) == Plugged(f"pvpanic-pci,id={DEVICE_ID},addr=4", is_taken=False)
