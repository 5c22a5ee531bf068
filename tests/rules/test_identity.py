"""What the host vouches for, and what is only claimed."""

from __future__ import annotations

import pytest

from panicd.rules.identity import (
    NO_UUID,
    Claim,
    Vouched,
    is_same_vm,
    owner_of,
    parse_uuid,
    same_place,
)

UUID = "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f57"
SOCKET = "/run/qemu/a.qmp"
LISTENING = "/run/panicd/qmp.sock"
DIALLED = Vouched(107, SOCKET)
CLAIMS = [Claim(), Claim("web"), Claim("web", UUID), Claim("0:/run/qemu/a.qmp"), Claim("", UUID)]


@pytest.mark.parametrize(
    ("text", "uuid"),
    [
        (UUID, UUID),
        (UUID.upper(), UUID),
        (NO_UUID, ""),
        ("victim", ""),
        ("", ""),
        (f"{UUID}\n", ""),
        (f" {UUID}", ""),
        (UUID.replace("-", ""), ""),
        (f"{{{UUID}}}", ""),
        (UUID.replace("5", "\N{ARABIC-INDIC DIGIT FIVE}"), ""),
        (f"{UUID}; destroy vm", ""),
    ],
)
def test_a_uuid_that_is_none_is_no_uuid(text: str, uuid: str) -> None:
    assert parse_uuid(text) == uuid


def test_no_claim_changes_whose_a_dialled_domain_is() -> None:
    assert {DIALLED.key(claim) for claim in CLAIMS} == {f"dialled:107:{SOCKET}"}


def test_another_socket_or_another_user_is_another_domain() -> None:
    others = [DIALLED, Vouched(107, "/run/qemu/b.qmp"), Vouched(1000, SOCKET)]
    assert len({one.key(Claim("web", UUID)) for one in others}) == len(others)


def test_of_those_that_dial_in_the_claim_tells_one_user_s_own_apart() -> None:
    first = Vouched(1000, f"{LISTENING}#1", dials_in=True, process="b/1/2")
    again = Vouched(1000, f"{LISTENING}#9", dials_in=True, process="b/7/8")
    assert first.key(Claim("web", UUID)) == again.key(Claim("renamed", UUID))
    assert first.key(Claim("web")) == again.key(Claim("web"))
    assert first.key(Claim("web")) != again.key(Claim("db"))
    assert first.key(Claim()) != again.key(Claim()), "who says nothing is a process, and no more"


@pytest.mark.parametrize("claim", CLAIMS)
def test_nobody_s_claim_leads_to_what_is_another_user_s(claim: Claim) -> None:
    attacker = Vouched(1000, f"{LISTENING}#1", dials_in=True)
    victims = [
        DIALLED,
        Vouched(0, SOCKET),
        Vouched(107, f"{LISTENING}#2", dials_in=True),
        Vouched(1000, SOCKET),
    ]
    for victim in victims:
        assert not {attacker.key(claim)} & {victim.key(its) for its in CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("dials_in", [False, True])
def test_a_key_tells_its_owner(claim: Claim, dials_in: bool) -> None:
    assert owner_of(Vouched(107, SOCKET, dials_in).key(claim)) == 107


@pytest.mark.parametrize("key", ["", "vm", UUID, "dialled", "dialled:x:/a", "107:/a"])
def test_a_key_of_0_1_0_tells_none(key: str) -> None:
    assert owner_of(key) is None


def test_an_unknown_process_is_no_reason_to_take_one_user_for_another() -> None:
    known, its = Vouched(107, "/a", pid=7, process="b/7/1"), Claim("web", UUID)
    assert is_same_vm(known, its, Vouched(107, "/b", pid=7), its)
    assert not is_same_vm(known, its, Vouched(1000, "/b", pid=7), its)
    assert not is_same_vm(known, its, Vouched(107, "/b", pid=8), its)
    assert not is_same_vm(known, its, Vouched(107, "/b", pid=7), Claim("web"))
    dialled_in = Vouched(107, f"{LISTENING}#1", dials_in=True, pid=1)
    anew = Vouched(107, f"{LISTENING}#2", dials_in=True, pid=2)
    assert is_same_vm(dialled_in, its, anew, its), "through a proxy, connected anew"
    assert not is_same_vm(dialled_in, its, Vouched(107, "/b", pid=2), its)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/a", "/a", True),
        ("/a", "/b", False),
        ("/a#1", "/a#2", True),
        ("/a#1", "/b#1", False),
        ("/a#1", "/a", False),
        ("/a#x", "/a#y", False),
    ],
)
def test_what_0_1_0_knew_of_a_place(one: str, other: str, same: bool) -> None:
    assert same_place(one, other) is same
