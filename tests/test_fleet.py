"""What domains are called, and which are the same VM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from panicd.fleet import Domain, Fleet

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f57"
OTHER = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f58"


def connect(fleet: Fleet, address: str, name: str, uuid: str, process: str = "") -> Domain:
    domain = fleet.add(address, "stem", 0.0)
    fleet.identify(domain, name, uuid)
    fleet.attach(domain, session(process, uuid))
    return domain


def session(process: str, uuid: str) -> Any:
    """As much of a session as tells which VM it is."""
    return SimpleNamespace(process=process, uuid=uuid)


def test_domain_is_called_as_its_vm_says_or_as_its_socket() -> None:
    fleet = Fleet()
    named = connect(fleet, "/run/a.qmp", "web-1", UUID)
    nameless = fleet.add("/run/b.qmp", "b", 0.0)
    fleet.identify(nameless, "", "")
    assert (named.name, nameless.name) == ("web-1", "b")
    assert (named.key, nameless.key) == (UUID, "b")


def test_second_of_a_name_is_told_apart_by_its_uuid_or_its_socket() -> None:
    fleet = Fleet()
    names = [
        connect(fleet, "/run/1.qmp", "web", UUID).name,
        connect(fleet, "/run/2.qmp", "web", OTHER).name,
        connect(fleet, "/run/3.qmp", "web", "").name,
        connect(fleet, "/run/deeper/3.qmp", "web", "").name,
    ]
    assert names == ["web", f"web@{OTHER}", "web@3.qmp", "web@/run/deeper/3.qmp"]
    assert len(set(names)) == len(names)


def test_vm_that_is_connected_anew_keeps_its_name() -> None:
    fleet = Fleet()
    before = connect(fleet, "/run/listen#1", "web", UUID)
    fleet.detach(before)
    assert connect(fleet, "/run/listen#2", "web", UUID).name == "web"


def test_domains_are_found_by_name_and_by_uuid() -> None:
    fleet = Fleet()
    one, two = connect(fleet, "1", "web", UUID), connect(fleet, "2", "web", OTHER)
    assert fleet.by_name("web") is one
    assert fleet.by_name(OTHER.upper()) is two
    assert fleet.by_name(f"web@{OTHER}") is two
    assert fleet.by_name("db") is None
    fleet.remove("1")
    assert fleet.by_name("web") is None


@pytest.mark.parametrize(
    ("process", "uuid", "same"),
    [
        ("7", UUID, True),
        ("7", OTHER, True),  # the process decides where it is known
        ("8", UUID, False),  # a copy of it, or the other end of a migration
        ("", UUID, True),  # behind a proxy its UUID has to do
        ("", OTHER, False),
        ("", "", False),
    ],
)
def test_same_vm_is_known_by_process_or_uuid(process: str, uuid: str, same: bool) -> None:
    fleet = Fleet()
    one = connect(fleet, "1", "web", UUID, process="7")
    other = fleet.add("2", "stem", 0.0)
    assert (fleet.twin(other, session(process, uuid)) is one) is same


def test_vm_that_left_is_nobody_s_twin() -> None:
    fleet = Fleet()
    one = connect(fleet, "1", "web", UUID)
    fleet.detach(one)
    assert fleet.twin(fleet.add("2", "stem", 0.0), session("", UUID)) is None
