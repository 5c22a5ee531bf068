"""A panic's payload in words."""

import pytest

from panicd.rules.bug_check import BUG_CHECKS
from panicd.rules.payload import describe, payload_line
from panicd.rules.qapi import GuestPanickedEvent, PanicInformation, parse_event


def payload_of(info: object) -> PanicInformation | None:
    event = parse_event({"event": "GUEST_PANICKED", "data": {"action": "pause", "info": info}})
    assert isinstance(event, GuestPanickedEvent)  # whatever its payload is
    return event.information


def hyper_v(*arguments: int) -> PanicInformation | None:
    members = {f"arg{number}": value for number, value in enumerate(arguments, 1)}
    return payload_of({"type": "hyper-v", **members})


def test_bug_check_has_its_name_and_its_parameters() -> None:
    payload = describe(hyper_v(0x133, 1, 0x1E00, 0xFFFF_F806_4C4F_A320, 0))
    assert payload.summary == (
        "Windows bug check 0x00000133 DPC_WATCHDOG_VIOLATION"
        " (0x0000000000000001, 0x0000000000001E00, 0xFFFFF8064C4FA320, 0x0000000000000000)"
    )
    assert dict(payload.members)["arg4"] == "0xfffff8064c4fa320"
    assert payload.missing == ()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0xFFFF_FFFF_C000_021A, "0xC000021A STATUS_SYSTEM_PROCESS_TERMINATED"),
        (-0x3FFFFDE6, "0xC000021A STATUS_SYSTEM_PROCESS_TERMINATED"),
        (0x0BADCAFE, "0x0BADCAFE (0x"),
    ],
)
def test_bug_check_codes_are_told_by_their_lower_half(code: int, words: str) -> None:
    assert describe(hyper_v(code, 0, 0, 0, 0)).summary.startswith(f"Windows bug check {words}")


def test_a_bug_check_without_all_of_its_parameters() -> None:
    assert (
        describe(hyper_v(0xA, 1)).summary == "Windows bug check 0x0000000A IRQL_NOT_LESS_OR_EQUAL"
    )


def test_linux_in_the_same_registers_is_no_bug_check() -> None:
    linux = 0x8100_0006_010B_0000
    payload = describe(hyper_v(0xA, linux, 0xFFFFFFFF81000000, 0, 0))
    assert payload.summary == "a Linux kernel's crash, error 0xa"


def test_names_are_as_microsoft_writes_them() -> None:
    assert all(name.replace("_", "").isalnum() and name.isupper() for name in BUG_CHECKS.values())
    assert len(set(BUG_CHECKS.values())) == len(BUG_CHECKS)


def test_s390() -> None:
    payload = describe(
        payload_of(
            {
                "type": "s390",
                "core": 12,
                "psw-mask": 562956395872256,
                "psw-addr": 1102832,
                "reason": "disabled-wait",
            }
        )
    )
    assert payload.summary == "s390 core 12 has crashed: it waits with interrupts disabled"
    assert dict(payload.members) == {
        "core": "12",
        "psw-mask": "0x2000180000000",
        "psw-addr": "0x10d3f0",
        "reason": "disabled-wait",
    }


def test_tdx() -> None:
    info = {"type": "tdx", "error-code": 0, "message": "no ACPI\x1b[2J", "gpa": 4096}
    payload = describe(payload_of(info))
    assert payload.summary == "TDX guest's panic: no ACPI\x1b[2J"  # whoever shows it escapes it
    assert dict(payload.members)["gpa"] == "0x1000"
    assert payload.missing == ()  # gpa is optional


def test_sev() -> None:
    payload = describe(payload_of({"type": "sev", "set": 1, "code": 4}))
    assert payload.summary == "SEV guest's request to be ended: reason set 1, code 4"
    assert payload.missing == ()


@pytest.mark.parametrize("info", [None, {}, "text", 5, [1]])
def test_no_payload_is_a_panic_all_the_same(info: object) -> None:
    payload = describe(payload_of(info))
    assert payload.summary.startswith("none that can be read")
    assert payload.members == ()


GOOD = {"arg3": 1, "arg4": 1}


@pytest.mark.parametrize(
    ("info", "missing"),
    [
        (
            {"type": "hyper-v", "arg1": "0x1E", "arg2": None},
            ("arg1", "arg2", "arg3", "arg4", "arg5"),
        ),
        ({"type": "s390", "core": {}, "reason": 1}, ("core", "psw-mask", "psw-addr", "reason")),
        ({"type": "tdx", "error-code": 2**80}, ("error-code", "message")),
        ({"type": "sev", "set": "0"}, ("set", "code")),
    ],
)
def test_malformed_payload_says_what_is_wrong_with_it(
    info: dict[str, object], missing: tuple[str, ...]
) -> None:
    payload = describe(payload_of(info))
    assert payload.missing == missing
    assert payload.summary


def test_only_a_payload_that_is_known_says_why() -> None:
    assert payload_line(hyper_v(0xA, 1)).startswith("Windows bug check 0x0000000A")
    assert payload_line(None) == payload_line(payload_of({"type": "newer"})) == ""


def test_type_from_a_newer_qemu_is_kept() -> None:
    payload = describe(payload_of({"type": "newer", "code": 17}))
    assert payload.summary == "of a type that is not known here: newer"
    assert payload.members == (("code", "0x11"),)
