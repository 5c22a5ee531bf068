"""The part of JSON Schema (draft 2020-12) that docs/schemas use; anything else is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "null": lambda value: value is None,
}
RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ABOUT: Final = {"$schema", "$defs", "title", "description"}


def mistakes(value: object, schema: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a value, each with its place."""
    return list(_mistakes(value, schema, schema, "$"))


def _mistakes(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], place: str
) -> Iterator[str]:
    for keyword, wanted in schema.items():
        match keyword:
            case "$ref":
                part = root["$defs"][wanted.removeprefix("#/$defs/")]
                yield from _mistakes(value, part, root, place)
            case "const" if value != wanted:
                yield f"{place}: {value!r} is not {wanted!r}"
            case "enum" if value not in wanted:
                yield f"{place}: {value!r} is none of {wanted}"
            case "type":
                kinds = [wanted] if isinstance(wanted, str) else wanted
                if not any(TYPES[kind](value) for kind in kinds):
                    yield f"{place}: {value!r} is no {wanted}"
            case "format":
                assert wanted == "date-time"
                if not isinstance(value, str) or not RFC_3339.fullmatch(value):
                    yield f"{place}: {value!r} is no time"
            case "minimum" if isinstance(value, int | float) and value < wanted:
                yield f"{place}: {value!r} is less than {wanted}"
            case "anyOf":
                found = [list(_mistakes(value, each, root, place)) for each in wanted]
                if all(found):
                    yield from min(found, key=len)
            case "required" if isinstance(value, dict):
                yield from (f"{place}.{key}: is missing" for key in wanted if key not in value)
            case "properties" | "additionalProperties" if isinstance(value, dict):
                yield from _members(value, keyword, schema, root, place)
            case "items" if isinstance(value, list):
                for number, each in enumerate(value):
                    yield from _mistakes(each, wanted, root, f"{place}[{number}]")
            case "const" | "enum" | "minimum" | "required" | "properties" | "items":
                pass
            case "additionalProperties":
                pass
            case _:
                assert keyword in ABOUT, f"{keyword} is not known here"


def _members(
    value: dict[str, Any],
    keyword: str,
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    place: str,
) -> Iterator[str]:
    known = schema.get("properties", {})
    if keyword == "properties":
        for key in known.keys() & value.keys():
            yield from _mistakes(value[key], known[key], root, f"{place}.{key}")
        return
    more = schema["additionalProperties"]
    for key in value.keys() - known.keys():
        if more is False:
            yield f"{place}.{key}: is not in the schema"
        elif more is not True:
            yield from _mistakes(value[key], more, root, f"{place}.{key}")
