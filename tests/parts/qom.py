"""The fake QEMU's object model: the tree that ``qom-list`` and ``qom-get`` show.

Dicts are nodes, other values are properties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.parts.profile import Profile
from tests.parts.wire import Message

PORT = 0x505


def tree(
    profile: Profile,
    machine_type: str,
    devices: Sequence[str],
    objects: Sequence[str],
    builtin_port: int = PORT,
) -> Message:
    """Return the tree of a machine.

    Args:
        profile: Which QEMU this is.
        machine_type: The QOM type of ``/machine``.
        devices: As ``-device``, one each.
        objects: As ``-object``, the type of each.
        builtin_port: Where the builtin panic device is, if there is one: ``-global``.
    """
    peripheral: Message = {"type": "container"}
    anonymous: Message = {"type": "container"}
    unattached: Message = {"type": "container", "device[0]": {"type": "qemu64-x86_64-cpu"}}
    if profile.builtin_pvpanic:
        unattached["device[3]"] = _panic_device(profile, "pvpanic", builtin_port)
    for index, device in enumerate(devices):
        driver, *options = device.split(",")
        given = dict(option.split("=", 1) for option in options)
        node = _panic_device(profile, driver, int(given.get("ioport", "1285"), base=0))
        if "id" in given:
            peripheral[given["id"]] = node
        else:
            anonymous[f"device[{index}]"] = node
    return {
        "machine": {
            "type": machine_type,
            "peripheral": peripheral,
            "peripheral-anon": anonymous,
            "unattached": unattached,
        },
        "objects": {
            "type": "container",
            **{f"o{index}": {"type": kind} for index, kind in enumerate(objects)},
        },
    }


def ports(tree: Message) -> list[int]:
    """Return the I/O ports of the panic devices of a machine."""
    found = [tree["ioport"]] if "ioport" in tree else []
    return found + [
        port for node in tree.values() if isinstance(node, dict) for port in ports(node)
    ]


def find(tree: Message, path: str) -> Message | None:
    """Return the node at a path; None where there is none."""
    node: Any = tree
    for name in path.strip("/").split("/"):
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None


def listed(node: Message) -> list[Message]:
    """Return what ``qom-list`` says of a node: its properties, then its children."""
    children = (
        {"name": name, "type": f"child<{child['type']}>"}
        for name, child in node.items()
        if isinstance(child, dict)
    )
    properties = (
        {"name": name, "type": "string" if name == "type" else "uint16"}
        for name, value in node.items()
        if not isinstance(value, dict)
    )
    return [*properties, *children]


def _panic_device(profile: Profile, driver: str, ioport: int = PORT) -> Message:
    node: Message = {"type": driver}
    if driver == "pvpanic":
        node["ioport"] = ioport
    if driver.startswith("pvpanic") and profile.pvpanic_events is not None:
        node["events"] = profile.pvpanic_events
    return node
