"""Bytes that may be anything: libvirt's messages, and the values in them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panicd.libvirt import introduction, requests
from panicd.libvirt.errors import ErrorCode, LibvirtRefusedError
from panicd.libvirt.protocol import (
    MESSAGE_KEPT,
    DomainRef,
    DumpFormat,
    EventId,
    Lifecycle,
    LifecycleAction,
    MetadataChanged,
    Procedure,
    QemuEvent,
    QemuProcedure,
    Rebooted,
    read_domain,
    read_error,
    read_event,
)
from panicd.libvirt.wire import (
    MESSAGE_MOST,
    QEMU_PROGRAM,
    REMOTE_PROGRAM,
    Incoming,
    Kind,
    Message,
    Status,
)
from panicd.libvirt.xdr import (
    Decoder,
    XdrError,
    pack_int,
    pack_opaque,
    pack_optional_text,
    pack_text,
    pack_uhyper,
    pack_uint,
)
from panicd.rules.libvirt_place import Place, UnusableUriError, find_place
from tests.parts.fake_libvirtd import RefusedError, pack_error

VM = DomainRef("vm-ä", "5e1f0a6c-9c3b-4f0e-8d2a-1b7c3d9e4f50", 7)

EVERY: list[requests.Request[Any]] = [
    introduction.list_auth(),
    introduction.ask_polkit(),
    introduction.start_keepalive(),
    introduction.open_driver("qemu:///system"),
    introduction.lib_version(),
    introduction.listen(EventId.LIFECYCLE),
    introduction.listen_to_qemu(("RESET",)),
    requests.list_domains(),
    requests.states(),
    requests.look_up(VM.uuid),
    requests.look_up_id(1),
    requests.state_of(VM),
    requests.describe(VM),
    requests.metadata(VM, "urn:x"),
    requests.job(VM),
    requests.io_threads(VM),
    requests.control(VM),
    requests.peek(VM, 0, 64),
    requests.screenshot(VM),
    requests.reset(VM),
    requests.resume(VM),
    requests.suspend(VM),
    requests.destroy(VM),
    requests.start(VM),
    requests.set_on_crash(VM, LifecycleAction.PRESERVE),
    requests.set_metadata(VM, "urn:x", "x", None),
    requests.core_dump(VM, "/x", DumpFormat.RAW),
    requests.abort_job(VM),
    requests.monitor_command(VM, '{"execute": "query-pci"}'),
]

# Numbers as liars have them, small ones that lead further, and text.
ITEMS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 64, 16384, 1 << 31, (1 << 32) - 1]).map(pack_uint),
    st.integers(0, 40).map(pack_uint),
    st.binary(max_size=40).map(pack_opaque),
    st.sampled_from(["state.state", "state.reason", "operation", "vm"]).map(pack_text),
    st.binary(max_size=16),
)
ANYTHING = st.lists(ITEMS, max_size=30).map(b"".join)


@settings(max_examples=500)
@given(st.sampled_from(EVERY), ANYTHING)
def test_an_answer_is_read_or_makes_no_sense(asked: requests.Request[Any], said: bytes) -> None:
    with suppress(XdrError):
        asked.read(Decoder(said))


def typed(name: str, value: float | str) -> bytes:
    if isinstance(value, str):
        return pack_text(name) + pack_int(7) + pack_text(value)
    if isinstance(value, int):
        return pack_text(name) + pack_int(3) + struct.pack(">q", value)
    return pack_text(name) + pack_int(5) + struct.pack(">d", value)


NAMES = st.sampled_from(["state.state", "state.reason", "operation", "data_total", "vm"])
VALUES = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5))


@given(st.lists(st.builds(typed, NAMES, VALUES), max_size=8))
def test_facts_of_any_type_are_read_or_make_no_sense(facts: list[bytes]) -> None:
    said = pack_uint(len(facts)) + b"".join(facts)
    job = requests.job(VM).read(Decoder(pack_int(1) + said))
    assert all(type(number) is int for number in (job.operation, job.elapsed, job.total))
    with suppress(XdrError):
        ((_, stands),) = requests.states().read(Decoder(pack_uint(1) + VM.pack() + said))
        assert type(stands.state) is type(stands.reason) is int


EVENTS = [
    (REMOTE_PROGRAM, Procedure.DOMAIN_EVENT_CALLBACK_LIFECYCLE),
    (REMOTE_PROGRAM, Procedure.DOMAIN_EVENT_CALLBACK_REBOOT),
    (REMOTE_PROGRAM, Procedure.DOMAIN_EVENT_CALLBACK_METADATA_CHANGE),
    (QEMU_PROGRAM, QemuProcedure.DOMAIN_MONITOR_EVENT),
    (REMOTE_PROGRAM, 333),
]


@given(st.sampled_from(EVENTS), ANYTHING)
def test_an_event_is_read_or_makes_no_sense(kind: tuple[int, int], said: bytes) -> None:
    with suppress(XdrError):
        read_event(Message(*kind, Kind.EVENT, 0, Status.OK, said))


@given(said=ANYTHING)
def test_a_refusal_is_printable_or_makes_no_sense(said: bytes) -> None:
    try:
        refused = read_error(said)
    except XdrError:
        return
    assert str(refused).isprintable()
    assert len(str(refused)) <= MESSAGE_KEPT + 64


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_anything_is_taken_for_messages_or_refused(pieces: list[bytes]) -> None:
    incoming = Incoming()
    try:
        for piece in pieces:
            for message in incoming.take(piece):
                assert len(message.payload) <= MESSAGE_MOST
    except XdrError:
        pass


@given(
    st.lists(st.binary(max_size=100), max_size=6),
    st.integers(1, 50),
)
def test_messages_are_the_same_however_they_are_cut(payloads: list[bytes], size: int) -> None:
    sent = [
        Message(REMOTE_PROGRAM, 14, Kind.REPLY, serial, Status.OK, payload)
        for serial, payload in enumerate(payloads, 1)
    ]
    data = b"".join(message.pack() for message in sent)
    incoming = Incoming()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [message for piece in pieces for message in incoming.take(piece)] == sent


@given(st.text(max_size=20), st.uuids(), st.integers(-1, 2**31 - 1))
def test_a_domain_is_written_as_it_is_read(name: str, uuid: object, number: int) -> None:
    domain = DomainRef(name.encode(errors="ignore").decode(), str(uuid), number)
    assert read_domain(Decoder(domain.pack())) == domain


def test_a_name_that_is_no_text_is_written_out() -> None:
    packed = pack_opaque(b"vm\xff") + bytes(16) + pack_int(1)
    assert read_domain(Decoder(packed)).name == r"vm\xff"


def test_half_a_surrogate_pair_is_written_out() -> None:
    assert Decoder(pack_text("a\ud800")).text(100) == r"a\ud800"


def test_events_are_what_libvirt_says() -> None:
    def event(program: int, procedure: int, *said: bytes) -> object:
        payload = pack_int(3) + VM.pack() + b"".join(said)
        return read_event(Message(program, procedure, Kind.EVENT, 0, Status.OK, payload))

    assert event(REMOTE_PROGRAM, 318, pack_int(8), pack_int(0)) == Lifecycle(VM, 8, 0)
    assert event(REMOTE_PROGRAM, 319) == Rebooted(VM)
    said = pack_int(2) + pack_optional_text("urn:x")
    assert event(REMOTE_PROGRAM, 379, said) == MetadataChanged(VM, 2, "urn:x")
    said = pack_text("RESET") + struct.pack(">qI", 5, 250_000) + pack_optional_text(None)
    assert event(QEMU_PROGRAM, 6, said) == QemuEvent(VM, "RESET", 5.25, "")


def test_a_refusal_has_libvirt_s_code() -> None:
    refused = read_error(pack_error(RefusedError(ErrorCode.NO_DOMAIN, "Domain not found")))
    assert isinstance(refused, LibvirtRefusedError)
    assert (refused.code, refused.message, refused.no_domain) == (42, "Domain not found", True)


def test_arguments_are_those_of_the_protocol() -> None:
    domain = VM.pack()
    assert domain == (
        b"\0\0\0\5vm-\xc3\xa4\0\0\0"
        + bytes.fromhex("5e1f0a6c9c3b4f0e8d2a1b7c3d9e4f50")
        + b"\0\0\0\7"
    )
    expected: list[tuple[requests.Request[Any], int, bytes]] = [
        (requests.reset(VM), 245, domain + pack_uint(0)),
        (requests.resume(VM), 28, domain),
        (requests.destroy(VM), 234, domain + pack_uint(0)),
        (
            requests.set_on_crash(VM, LifecycleAction.PRESERVE),
            390,
            domain + b"\0\0\0\2\0\0\0\3\0\0\0\1",
        ),
        (requests.peek(VM, 4096, 8), 104, domain + pack_uhyper(4096) + pack_uint(8) + pack_uint(2)),
        (
            requests.core_dump(VM, "/x", DumpFormat.RAW),
            334,
            domain + pack_text("/x") + pack_uint(0) + pack_uint(16),
        ),
    ]
    for request, procedure, arguments in expected:
        assert (request.procedure, request.arguments) == (procedure, arguments)


@pytest.mark.parametrize(
    ("uri", "environment", "place"),
    [
        (
            "qemu:///system",
            {},
            Place("qemu:///system", ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")),
        ),
        (
            "qemu+unix:///system?mode=legacy",
            {},
            Place("qemu:///system", ("/run/libvirt/libvirt-sock",)),
        ),
        (
            "qemu:///system?mode=direct",
            {},
            Place("qemu:///system", ("/run/libvirt/virtqemud-sock",)),
        ),
        ("qemu:///system?socket=/x/y", {}, Place("qemu:///system", ("/x/y",))),
        (
            "qemu:///session",
            {"XDG_RUNTIME_DIR": "/run/user/7"},
            Place(
                "qemu:///session",
                ("/run/user/7/libvirt/virtqemud-sock", "/run/user/7/libvirt/libvirt-sock"),
            ),
        ),
    ],
)
def test_where_a_libvirt_is_reached(uri: str, environment: dict[str, str], place: Place) -> None:
    assert find_place(uri, environment) == place


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("xen:///system", "none of QEMU's"),
        ("test:///default", "none of QEMU's"),
        ("", "none of QEMU's"),
        ("qemu+ssh://root@example.org/system", "another host"),
        ("qemu://example.org/system", "another host"),
        ("qemu+tls:///system", "another host or transport"),
        ("qemu:///embed?root=/x", "neither qemu:///system nor qemu:///session"),
        ("qemu:///system?no_verify=1", "only socket and mode are known"),
        ("qemu:///system?mode=fast", "auto, direct and legacy"),
        ("qemu:///session", "XDG_RUNTIME_DIR"),
        ("qemu://[host/system", "is no URI"),
        ("qemu://\u2100/system", "is no URI"),
    ],
)
def test_what_can_t_be_reached_says_why(uri: str, why: str) -> None:
    with pytest.raises(UnusableUriError, match=why):
        find_place(uri, {})


@pytest.mark.parametrize(
    "read",
    [
        lambda items: items.int32(),
        lambda items: items.uint64(),
        lambda items: items.double(),
        lambda items: items.fixed(9),
        lambda items: items.opaque(100),
        lambda items: items.array(items.int32, 100),
        lambda items: items.optional(items.int32),
    ],
)
def test_what_is_not_all_there_is_not_read(read: Callable[[Decoder], object]) -> None:
    for data in (b"", b"\0", b"\0\0\0"):
        with pytest.raises(XdrError):
            read(Decoder(data))


def test_lengths_that_lie_are_refused() -> None:
    for read in (
        lambda: Decoder(pack_uint(8) + b"1234567").opaque(100),
        lambda: Decoder(pack_uint(5) + b"12345").opaque(100),  # it is not filled up
        lambda: Decoder(pack_opaque(b"x" * 101)).opaque(100),
        lambda: Decoder(pack_uint(3) + bytes(8)).array(lambda: 0, 100),
        lambda: Decoder(pack_uint(101) + bytes(800)).array(lambda: 0, 100),
        lambda: Decoder(bytes(4)).end(),
    ):
        with pytest.raises(XdrError):
            read()
