"""Journal entries as JSON text, and back.

Text in an entry may be a guest's, or a file name that is not UTF-8, so it may have lone surrogates.
Those are not UTF-8 either. The JSON written here is ASCII and has them as escapes.
"""

import json
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from panicd.journal.schema import FIRST_MOMENT, LAST_MOMENT
from panicd.rules.foreign_json import loads
from panicd.rules.incident import AnyEntry, Decided
from panicd.rules.operation import Operation
from panicd.rules.plan import (
    AnyStep,
    AwaitGuestReset,
    AwaitQuiet,
    AwaitReturn,
    Collect,
    Cont,
    Dump,
    EnsureStopped,
    Kill,
    Quit,
    RunRelaunch,
    SystemReset,
    Terminate,
)

T = TypeVar("T", AnyEntry, Operation)

STEPS: Final[dict[str, TypeAdapter[AnyStep]]] = {
    "EnsureStopped": TypeAdapter(EnsureStopped),
    "Collect": TypeAdapter(Collect),
    "AwaitQuiet": TypeAdapter(AwaitQuiet),
    "Dump": TypeAdapter(Dump),
    "SystemReset": TypeAdapter(SystemReset),
    "Cont": TypeAdapter(Cont),
    "Quit": TypeAdapter(Quit),
    "Terminate": TypeAdapter(Terminate),
    "Kill": TypeAdapter(Kill),
    "RunRelaunch": TypeAdapter(RunRelaunch),
    "AwaitReturn": TypeAdapter(AwaitReturn),
    "AwaitGuestReset": TypeAdapter(AwaitGuestReset),
}
"""What the journal calls a step. A name that was ever written stays here."""

_ENTRY: Final[TypeAdapter[AnyEntry]] = TypeAdapter(Annotated[AnyEntry, Field(discriminator="kind")])


_OPERATION: Final = TypeAdapter(Operation)

_to_json: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class CodecError(Exception):
    """This is not the text of an entry, or of an operation."""


def encode(entry: AnyEntry) -> str:
    """Return an entry as ASCII JSON; a plan's steps carry their class's name as ``step``."""
    body = _ENTRY.dump_python(entry, mode="json")
    if isinstance(entry, Decided):
        for step, fields in zip(entry.plan.steps, body["plan"]["steps"], strict=True):
            fields["step"] = type(step).__name__
    return _to_json(body)


def decode(text: str) -> AnyEntry:
    """Return the entry that ``encode`` made this text from.

    Raises:
        CodecError: it made none like it.
    """
    try:
        body: Any = loads(text.encode(errors="surrogatepass"))
        if body["kind"] == "decided":
            plan = body["plan"]
            plan["steps"] = [
                STEPS[fields.pop("step")].validate_python(fields) for fields in plan["steps"]
            ]
        return _dated(_ENTRY.validate_python(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CodecError(f"{where}: {first['msg']}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CodecError(f"{type(error).__name__}: {error}") from None


def encode_operation(operation: Operation) -> str:
    """Return an operation as ASCII JSON."""
    return _to_json(_OPERATION.dump_python(operation, mode="json"))


def decode_operation(text: str) -> Operation:
    """Return the operation that ``encode_operation`` made this text from.

    Raises:
        CodecError: it made none like it.
    """
    try:
        # Not validate_json: it refuses lone surrogates, which encode_operation writes.
        body = loads(text.encode(errors="surrogatepass"))
        return _dated(_OPERATION.validate_python(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise CodecError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise CodecError(f"{type(error).__name__}: {error}") from None


def _dated(written: T) -> T:
    """Return an entry or an operation whose time has a date.

    Raises:
        ValueError: it has none.
    """
    if not FIRST_MOMENT <= written.at <= LAST_MOMENT:
        raise ValueError(f"the time {written.at}")
    return written
