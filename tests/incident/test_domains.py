"""What domains are called, and which are the same VM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from panicd.incident.domains import Domain, Fleet
from panicd.rules.identity import Claim, Vouched

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f57"
OTHER = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f58"
OWNER = 107
STRANGER = 1000


def connect(
    fleet: Fleet, address: str, name: str, uuid: str, process: str = "", *, uid: int = OWNER
) -> Domain:
    domain = fleet.add(address, "stem", 0.0, dials_in="#" in address)
    connected = session(process, uuid, name, uid)
    fleet.identify(domain, connected)
    fleet.attach(domain, connected)
    return domain


def session(process: str, uuid: str, name: str = "web", uid: int = OWNER, pid: int = 7) -> Any:
    """As much of a session as tells which VM it is."""

    def vouched(address: str, *, dials_in: bool) -> Vouched:
        return Vouched(uid, address, dials_in, pid, process)

    return SimpleNamespace(process=process, claim=Claim(name, uuid), vouched=vouched)


def test_domain_is_called_as_its_vm_says_or_as_its_socket() -> None:
    fleet = Fleet()
    named = connect(fleet, "/run/a.qmp", "web-1", UUID)
    nameless = fleet.add("/run/b.qmp", "b", 0.0)
    fleet.identify(nameless, session("", "", ""))
    assert (named.name, nameless.name) == ("web-1", "b")
    assert nameless.claim.name == "b", "its policy goes by its socket"
    assert (named.key, nameless.key) == ("dialled:107:/run/a.qmp", "dialled:107:/run/b.qmp")


def test_second_of_a_name_is_told_apart_by_its_uuid_or_its_socket() -> None:
    fleet = Fleet()
    domains = [
        connect(fleet, "/run/1.qmp", "web", UUID),
        connect(fleet, "/run/2.qmp", "web", OTHER),
        connect(fleet, "/run/3.qmp", "web", ""),
        connect(fleet, "/run/deeper/3.qmp", "web", ""),
    ]
    names = [domain.name for domain in domains]
    assert names == ["web", f"web@{OTHER}", "web@3.qmp", "web@/run/deeper/3.qmp"]
    assert {domain.claim.name for domain in domains} == {"web"}


def test_names_are_told_apart_whatever_is_claimed() -> None:
    """Two of one name would be one series, which is no scrape."""
    fleet = Fleet()
    claims = ["web", f"web@{UUID}", "web@/run/web.qmp", "web@/run/web.qmp~2", "web"]
    for number, claim in enumerate(claims):
        connect(fleet, f"/run/{number}.qmp", claim, UUID, uid=STRANGER)
    connect(fleet, "/run/web.qmp", "web", UUID)
    names = [domain.name for domain in fleet.domains.values()]
    assert len(set(names)) == len(names) == len(claims) + 1


def test_a_name_that_is_free_again_goes_to_who_claims_it() -> None:
    fleet = Fleet()
    source = connect(fleet, "/run/1.qmp", "db", UUID, "7")
    target = connect(fleet, "/run/2.qmp", "db", UUID, "8")
    assert (source.name, target.name) == ("db", f"db@{UUID}")
    fleet.detach(source)
    fleet.remove(source.address)
    assert target.name == "db"
    assert fleet.called("db") == [target]


@pytest.mark.parametrize("uid", [OWNER, STRANGER])
def test_vm_that_is_connected_anew_keeps_its_name_if_it_is_its_owner_s(uid: int) -> None:
    fleet = Fleet()
    before = connect(fleet, "/run/web.qmp", "web", UUID)
    fleet.detach(before)
    anew = connect(fleet, "/run/web2.qmp", "web", UUID, uid=uid)
    is_own = uid == OWNER
    assert anew.name == ("web" if is_own else f"web@{UUID}")
    assert before.name == ("web@web.qmp" if is_own else "web"), "no two have the same"


def test_domains_are_found_by_what_they_claim_and_by_their_monitor() -> None:
    fleet = Fleet()
    one, two = connect(fleet, "/1", "web", UUID), connect(fleet, "/2", "web", OTHER)
    assert fleet.called("web") == [one, two]
    assert fleet.called(OTHER.upper()) == [two]
    assert fleet.called(f"web@{OTHER}") == [two]
    assert fleet.called("/1") == [one]
    assert fleet.called("db") == []
    fleet.remove("/1")
    assert fleet.called("/1") == []


@pytest.mark.parametrize(
    ("process", "uuid", "uid", "pid", "same"),
    [
        ("7", UUID, OWNER, 7, True),
        ("7", OTHER, STRANGER, 8, True),  # the process decides where it is known
        ("8", UUID, OWNER, 7, False),  # a copy of it, or the other end of a migration
        ("", UUID, OWNER, 7, True),  # as far as is known, both are of one process
        ("", UUID, OWNER, 8, False),
        ("", UUID, STRANGER, 7, False),
        ("", OTHER, OWNER, 7, False),
        ("", "", OWNER, 7, False),
    ],
)
def test_same_vm_is_known_by_what_the_host_vouches_for(
    process: str, uuid: str, uid: int, pid: int, same: bool
) -> None:
    fleet = Fleet()
    one = connect(fleet, "/1", "web", UUID, process="7")
    other = fleet.add("/2", "stem", 0.0)
    assert (fleet.twin(other, session(process, uuid, uid=uid, pid=pid)) is one) is same


def test_vm_that_left_is_nobody_s_twin() -> None:
    fleet = Fleet()
    one = connect(fleet, "/1", "web", UUID)
    fleet.detach(one)
    assert fleet.twin(fleet.add("/2", "stem", 0.0), session("", UUID)) is None


def test_domains_are_counted_by_their_owner() -> None:
    fleet = Fleet()
    connect(fleet, "/1", "web", UUID)
    connect(fleet, "/run/l#1", "web", UUID, uid=STRANGER)
    connect(fleet, "/run/l#2", "db", OTHER, uid=STRANGER)
    fleet.add("/never", "never", 0.0)
    assert fleet.count_by_owner() == {OWNER: 1, STRANGER: 2, None: 1}
