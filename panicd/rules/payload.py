"""A panic's payload in words.

A payload is only a hint: a panic with no payload, or an incomplete one, is still a panic. The guest
chooses the payload's texts.

Sources: QAPI ``GuestPanicInformation`` (``qapi/run-state.json``); Linux, ``hyperv_report_panic`` in
``arch/x86/hyperv/hv_init.c``, and the Hypervisor Top-Level Functional Specification for the guest
OS id; Intel, 'Guest-Hypervisor Communication Interface', ``TDG.VP.VMCALL<ReportFatalError>``;
AMD, 'SEV-ES Guest-Hypervisor Communication Block Standardization', 'Termination Request'.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from panicd.rules.bug_check import BugCheck
from panicd.rules.qapi import PanicInformation

MEMBERS: Final[Mapping[str, Mapping[str, type]]] = MappingProxyType(
    {
        "hyper-v": {f"arg{number}": int for number in range(1, 6)},
        "s390": {"core": int, "psw-mask": int, "psw-addr": int, "reason": str},
        "tdx": {"error-code": int, "message": str},
        "sev": {"set": int, "code": int},  # QEMU 11.0
    }
)
"""The members that each type of payload always has (``gpa`` of ``tdx`` is optional)."""

NONE: Final = "none that can be read (a pvpanic device sends none)"
IN_DECIMAL: Final = frozenset({"core"})
LINUX_GUEST_ID: Final = 0x81  # the top byte: an open source system, Linux
TDX_PANIC: Final = 0

S390_REASONS: Final = MappingProxyType(
    {
        "disabled-wait": "it waits with interrupts disabled",
        "extint-loop": "a loop of external interrupts",
        "pgmint-loop": "a loop of program interrupts",
        "opint-loop": "a loop of operation exceptions",
        "unknown": "for an unknown reason",
    }
)


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload in words.

    Attributes:
        summary: the payload in one line.
        members: each of its members, as a debugger wants it: numbers in hexadecimal.
        missing: the names of members that are absent or of the wrong type.
    """

    summary: str
    members: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()


def describe(information: PanicInformation | None) -> Payload:
    """Return a payload in words."""
    if information is None:
        return Payload(NONE)
    fields = dict(information.fields)
    expected = MEMBERS.get(information.type)
    members = tuple((name, _written(name, value)) for name, value in fields.items())
    if expected is None:
        return Payload(f"of a type that is not known here: {information.type}", members)
    missing = tuple(
        name for name, kind in expected.items() if not isinstance(fields.get(name), kind)
    )
    good = {name: value for name, value in fields.items() if name not in missing}
    return Payload(_SUMMARIES[information.type](good), members, missing)


def payload_line(information: PanicInformation | None) -> str:
    """Return a payload in one line; empty if it says nothing."""
    if information is None or information.type not in MEMBERS:
        return ""
    return describe(information).summary


def windows_bug_check(information: PanicInformation | None) -> BugCheck | None:
    """Return a Windows guest's bug check; None if the payload has none, or only a part of it."""
    if information is None or information.type != "hyper-v":
        return None
    check = _bug_check(dict(information.fields))
    return check if check is not None and check.parameters else None


def _bug_check(fields: Mapping[str, int | str]) -> BugCheck | None:
    """Return the bug check in a Windows guest's crash registers; None: no Windows, or no code."""
    numbers = [fields.get(name) for name in MEMBERS["hyper-v"]]
    code, *parameters = (n % 2**64 if isinstance(n, int) else None for n in numbers)
    if code is None or (parameters[0] is not None and _is_linux(parameters[0])):
        return None
    known = tuple(number for number in parameters if number is not None)
    # A 64-bit Windows may leave the code sign-extended.
    return BugCheck(code % 2**32, known if len(known) == len(parameters) else ())


def _is_linux(guest_id: int) -> bool:
    return guest_id >> 56 == LINUX_GUEST_ID


def _hyper_v(fields: Mapping[str, int | str]) -> str:
    code = fields.get("arg1")
    if not isinstance(code, int):
        return "Hyper-V crash registers without a code"
    check = _bug_check(fields)
    return check.line if check else f"a Linux kernel's crash, error {code:#x}"


def _s390(fields: Mapping[str, int | str]) -> str:
    reason = str(fields.get("reason", "unknown"))
    core = f"core {fields['core']}" if "core" in fields else "a core"
    return f"s390 {core} has crashed: {S390_REASONS.get(reason, reason)}"


def _tdx(fields: Mapping[str, int | str]) -> str:
    code = fields.get("error-code")
    message = str(fields.get("message", "")) or "no message"
    kind = "panic" if code == TDX_PANIC else "fatal error"
    return f"TDX guest's {kind}: {message}"


def _sev(fields: Mapping[str, int | str]) -> str:
    what = ", ".join(f"{name} {fields[name]}" for name in ("set", "code") if name in fields)
    return f"SEV guest's request to be ended: reason {what or 'not told'}"


_SUMMARIES: Final[Mapping[str, Callable[[Mapping[str, int | str]], str]]] = MappingProxyType(
    {"hyper-v": _hyper_v, "s390": _s390, "tdx": _tdx, "sev": _sev}
)


def _written(name: str, value: int | str) -> str:
    if isinstance(value, int) and name not in IN_DECIMAL:
        return f"{value % 2**64:#x}"
    return str(value)
