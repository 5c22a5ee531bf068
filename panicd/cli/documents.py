"""What ``--json`` prints: one document for each command, with its schema's name and version.

The schemas are in docs/schemas. The same thing has the same key in all of them, and times are
RFC 3339 in UTC. A new key leaves the version as it is; a key that changes or goes raises it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from panicd.cli.moment import rfc3339

VERSION: Final = 1

TIMES: Final = frozenset({
    "acknowledged_at", "at", "begun_at", "closed_at", "ended_at", "first_at", "held_until",
    "last_at", "now", "opened_at", "silent_since", "since", "until",
})  # fmt: skip
"""The keys that hold times, wherever they are; the daemon has seconds since the epoch."""


def written(command: str, answer: Any) -> str:
    """Return a command's answer as its document."""
    return json.dumps(document(command, answer), indent=2)


def document(command: str, answer: Any) -> dict[str, Any]:
    """Return the document of a command's answer."""
    shape = _SHAPES.get(command, _as_it_is)
    return {"schema": f"panicd/{command}/{VERSION}", **_told(shape(answer))}


def _told(value: Any, key: str = "") -> Any:
    """Return a value with its times in the form that programs read."""
    match value:
        case Mapping():
            return {name: _told(each, name) for name, each in value.items()}
        case list() | tuple():
            return [_told(each) for each in value]
        case int() | float() if key in TIMES and not isinstance(value, bool):
            return rfc3339(value)
        case _:
            return value


def _as_it_is(answer: Any) -> Any:
    return answer


def _renamed(answer: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return a mapping with other keys, in the same order."""
    return {names.get(key, key): value for key, value in answer.items()}


def _status(answer: Any) -> Any:
    rest = {key: value for key, value in answer.items() if key not in {"domains", "waiting", "of"}}
    return rest | {"domains": [_domain(domain) for domain in answer["domains"]]}


def _domain(answer: Mapping[str, Any]) -> dict[str, Any]:
    return _renamed(answer, effective_on_crash="action")


def _incident(answer: Mapping[str, Any]) -> dict[str, Any]:
    names = {"id": "incident", "state": "incident_state", "acknowledged": "acknowledgement"}
    told = _renamed(answer, **names)
    if (acknowledgement := told["acknowledgement"]) is not None:
        told["acknowledgement"] = {
            key: acknowledgement[key] for key in ("at", "uid", "user", "why")
        }
    if "history" in told:
        told["history"] = [_renamed(entry, state="incident_state") for entry in told["history"]]
    if told.get("same") is not None:
        told["same"] = _group(told["same"])
    return told


def _group(answer: Mapping[str, Any]) -> dict[str, Any]:
    names = {"newest": "incident", "count": "incident_count", "domains": "domain_count"}
    return {names.get(key, key): value for key, value in answer.items() if key in _OF_GROUP}


_OF_GROUP: Final = ("count", "domains", "first_at", "last_at", "newest")


def _panic(answer: Mapping[str, Any]) -> dict[str, Any]:
    known = {"hash": answer["signature"], "title": answer["title"], "frames": answer["frames"]}
    return {"signature": known, **_group(answer)}


def _audit(answer: Mapping[str, Any]) -> dict[str, Any]:
    exposed = [_renamed(each, reasons="exposures") for each in answer["exposed"]]
    return {"domain_count": answer["domains"], "exposed": exposed}


def _guest(answer: Mapping[str, Any]) -> dict[str, Any]:
    return _renamed(answer, arguments="qemu_arguments", libvirt="libvirt_xml")


def _log(answer: Mapping[str, Any]) -> dict[str, Any]:
    lines = [{"text": each} if isinstance(each, str) else each for each in answer["lines"]]
    told = _renamed(answer, dump="dump_path", file="log_file")
    return told | {"lines": [_renamed(each, level="severity") for each in lines]}


_SHAPES: Final[dict[str, Callable[[Any], Any]]] = {
    "status": _status,
    "explain": lambda answer: answer | {"status": _domain(answer["status"])},
    "incidents": lambda answer: {"incidents": [_incident(each) for each in answer]},
    "incident": _incident,
    "incident-log": _log,
    "panics": lambda answer: {"panics": [_panic(each) for each in answer]},
    "audit": _audit,
    "act": lambda answer: _renamed(answer, state="incident_state"),
    "release": lambda answer: _renamed(answer, state="incident_state"),
    "hold": lambda answer: _renamed(answer, domains="matches"),
    "unhold": lambda answer: _renamed(answer, domains="matches"),
    "reload": lambda answer: _renamed(
        answer, monitors="monitor_count", rules="rule_count", domains="changed"
    ),
    "probe": lambda answer: _renamed(answer, name="domain", exposed="exposures"),
    "advise": lambda answer: {"guests": [_guest(each) for each in answer]},
}
"""How a command's answer differs in its document."""
