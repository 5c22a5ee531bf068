"""docs/schemas: what ``--json`` prints, as JSON Schema, and docs/json.md for people.

A key means the same wherever it stands, so each is told once; a document, or a part of one, is a
list of keys. A key with ``?`` may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from panicd.cli.documents import TIMES, VERSION
from panicd.rules.capability import Armed
from panicd.rules.incident import Ending, Outcome, Source, State
from panicd.rules.machine.work import Known
from panicd.rules.on_crash import OnCrash
from panicd.rules.panic_device import PanicDevice
from panicd.rules.policy import Reason
from panicd.rules.standing import Standing
from panicd.service.control_client import Answer

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

TEXT: Final = {"type": "string"}
NUMBER: Final = {"type": "number"}
COUNT: Final = {"type": "integer", "minimum": 0}
TRUTH: Final = {"type": "boolean"}
TEXTS: Final = {"type": "array", "items": TEXT}
BY_NAME: Final = {"type": "object", "additionalProperties": TEXT}
ANYTHING: Final = {"type": "object", "additionalProperties": True}


def one_of(words: type, *more: str) -> dict[str, Any]:
    """Return the schema of a word."""
    return {"enum": [*map(str, words), *more]}  # type: ignore[call-overload]  # an enum's class


def maybe(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of what may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def part(name: str) -> dict[str, Any]:
    """Return a reference to a part."""
    return {"$ref": f"#/$defs/{name}"}


def many(name: str) -> dict[str, Any]:
    """Return the schema of a list of parts."""
    return {"type": "array", "items": part(name)}


PARTS: Final[dict[str, tuple[str, str]]] = {
    "domain_status": (
        "How one domain stands.",
        (
            "domain standing uuid monitor connected problem since attempts spare_of silent "
            "silent_since run_state qemu_version armed panic_device on_crash action reason "
            "restarts_left incident incident_state incident_reason opened_at acknowledged "
            "panic_line dump held_until held_why libvirt inherited beyond_signals"
        ),
    ),
    "dump_progress": (
        "A running or waiting memory dump.",
        "state since ahead format done total rate left left_out written expected",
    ),
    "plan": (
        "What a panic leads to.",
        "on_crash unrequested action reason why steps at_once",
    ),
    "step": (
        "One step of a plan.",
        "step does timeout on_failure by_libvirt format? command? unit? libvirt_uri?",
    ),
    "budget": ("The restart budget of a domain.", "used left looping"),
    "incident": (
        "One panic episode of one domain.",
        (
            "incident domain uuid monitor opened_at source information payload panic_line "
            "signature repeats incident_state decisions steps ending detail closed_at "
            "acknowledgement"
        ),
    ),
    "information": ("The panic's payload, as QEMU gave it.", "type fields"),
    "payload": ("The payload in words.", "summary members missing"),
    "signature": ("What a panic is compared by.", "hash title frames"),
    "decision": ("A decision, and why.", "on_crash unrequested action reason why"),
    "step_record": ("How a step went.", "step begun_at ended_at outcome detail"),
    "acknowledgement": ("Who looked at an incident.", "at uid user why"),
    "same": (
        "The incidents of the same panic.",
        "incident_count domain_count first_at last_at incident",
    ),
    "panic": (
        "A panic that is told from others.",
        "signature incident_count domain_count first_at last_at incident",
    ),
    "entry": (
        "One entry of an incident's journal.",
        (
            "at kind domain? uuid? monitor? process? source? information? key? name? count? plan? "
            "index? step? outcome? detail? signature? incident_state? uid? user? what? why? "
            "ending? "
            "panic_line?"
        ),
    ),
    "dump_facts": ("A finished memory dump.", "path size level left_out reason open"),
    "exposed": (
        "A domain that could not be acted on.",
        "domain monitor pid on_crash exposures",
    ),
    "guest": (
        "What suits a guest.",
        "domain has system support device qemu_arguments libvirt_xml why ignore grace kdump",
    ),
    "system": ("What a guest runs.", "id name family released kernel known_by"),
    "support": ("Whether a guest can use a panic device.", "device verdict why source"),
    "log_line": ("A line of a kernel's log.", "text seq? timestamp? severity? caller? by_kernel?"),
}

DOCUMENTS: Final[dict[str, tuple[str, str]]] = {
    "status": (
        "`panicd status`",
        (
            "now journal_fault journal_damaged storm dry_run libvirt_problem problems passed_over "
            "domains"
        ),
    ),
    "explain": ("`panicd explain`", "status budget? device_types? plugged? work? plan then?"),
    "audit": ("`panicd audit`", "domain_count exposed"),
    "incidents": ("`panicd incidents`", "incidents"),
    "incident": (
        "`panicd incident`",
        (
            f"{PARTS['incident'][1]} same history evidence_directory evidence screenshot dump "
            "dumps dump_facts"
        ),
    ),
    "incident-log": (
        "`panicd incident --log`",
        "dump_path? log_file? panic_line lines complete? release?",
    ),
    "panics": ("`panicd panics`", "panics"),
    "hold": ("`panicd hold`", "domain until why matches"),
    "unhold": ("`panicd unhold`", "domain matches still_held"),
    "act": ("`panicd act`", "domain done incident incident_state ending"),
    "release": ("`panicd release`", "domain done incident incident_state ending"),
    "ack": ("`panicd ack`", "incident domain"),
    "arm": ("`panicd arm`", "domain argument taken"),
    "disarm": ("`panicd disarm`", "domain"),
    "reload": ("`panicd reload`", "monitor_count rule_count changed at_next_start"),
    "probe": (
        "`panicd probe`",
        (
            "domain uuid qemu_version run_state panic_device device_types armed why libvirt "
            "libvirt_acts libvirt_problem on_crash policies on_crash_applies unrequested "
            "configured exposures remedies"
        ),
    ),
    "advise": ("`panicd advise`", "guests"),
}

KEYS: Final[dict[str, tuple[Mapping[str, Any], str]]] = {
    # who, where and when
    "domain": (TEXT, "The domain's name, as panicd shows it; of a hold, what was asked for."),
    "uuid": (TEXT, "The UUID that the VM claims; empty if it has none."),
    "monitor": (TEXT, "The address of its monitor: of one that panicd dials, the socket's path."),
    "argument": (TEXT, "What gives another QEMU the same device, as an argument to `-device`."),
    "plugged": (TRUTH, "`panicd arm` gave the VM its panic device while it ran."),
    "work": (one_of(Known), "What QEMU's events tell of its jobs and migrations."),
    "taken": (TRUTH, "The guest's driver has taken the device."),
    "process": (TEXT, "What tells this QEMU process from every other one; empty if unknown."),
    "key": (TEXT, "What the domain's belongings are kept under."),
    "name": (TEXT, "A name, for people."),
    "uid": (COUNT, "The user who asked."),
    "user": (TEXT, "The name of who asked on the page; empty: it was asked by a command."),
    "now": (TEXT, "When the answer was given."),
    "at": (TEXT, "When it happened."),
    "since": (TEXT, "Since when it stands as it does."),
    "until": (maybe(TEXT), "When the hold ends by itself; null: only `unhold` ends it."),
    "silent_since": (maybe(TEXT), "Since when its QEMU does not answer."),
    "held_until": (maybe(TEXT), "When its hold ends by itself."),
    "opened_at": (maybe(TEXT), "When the panic became known; null without an open incident."),
    "closed_at": (maybe(TEXT), "When the incident ended; null while it is open."),
    "begun_at": (TEXT, "When the step began."),
    "ended_at": (maybe(TEXT), "When the step ended; null while it is under way."),
    "first_at": (TEXT, "When the first of them began."),
    "last_at": (TEXT, "When the newest of them began."),
    # the daemon
    "journal_fault": (maybe(TEXT), "Why the journal can't be written."),
    "journal_damaged": (TRUTH, "The journal was damaged: guests are preserved."),
    "storm": (TRUTH, "Many domains panicked at once."),
    "dry_run": (TRUTH, "The daemon decides and records, and does nothing."),
    "libvirt_problem": (TEXT, "Why libvirt does not answer; empty if it does."),
    "problems": (TEXTS, "What keeps panicd from finding VMs, being reached or telling others."),
    "passed_over": (BY_NAME, "Sockets that are not dialled, and why."),
    # domains
    "domains": (many("domain_status"), "The domains that are wanted, in the order asked for."),
    "status": (part("domain_status"), "How the domain stands."),
    "standing": (one_of(Standing), "How the domain stands, in one word."),
    "connected": (TRUTH, "panicd has a session with it."),
    "problem": (TEXT, "Why it has none."),
    "attempts": (COUNT, "Attempts to connect that failed in a row."),
    "spare_of": (TEXT, "The domain that this is a second monitor of."),
    "silent": (TRUTH, "Its QEMU does not answer."),
    "run_state": (TEXT, "QEMU's run state, as last known."),
    "qemu_version": (TEXT, "QEMU's version."),
    "armed": (one_of(Armed), "Whether a panic is known to be left to panicd."),
    "panic_device": (one_of(PanicDevice, ""), "Where its panic device comes from."),
    "device_types": (TEXTS, "The types of its panic devices."),
    "restarts_left": (COUNT, "Restarts that its budget still allows."),
    "held_why": (TEXT, "Why it is held; empty if it is not."),
    "libvirt": (TEXT, "What libvirt itself does about a panic; empty if libvirt does not run it."),
    "libvirt_acts": (TRUTH, "libvirt acts on a panic before panicd can."),
    "inherited": (TRUTH, "`on_crash` is the domain's own, from libvirt."),
    "beyond_signals": (TEXT, "Why its QEMU could not be ended by a signal if it hung."),
    "budget": (part("budget"), "Its restart budget."),
    "used": (COUNT, "Restarts within the window."),
    "left": (maybe(NUMBER), "What is left: restarts of a budget, seconds of a dump."),
    "looping": (TRUTH, "The last restart is too recent."),
    # what is decided
    "on_crash": ({"enum": [*map(str, OnCrash), ""]}, "The policy that is configured."),
    "unrequested": (maybe(TEXT), "The policy of a panic device that nobody asked for."),
    "on_crash_applies": (TRUTH, "`on_crash` applies, and not `unrequested`."),
    "action": (TEXT, "What is done about the panic, or would be now."),
    "reason": ({"enum": [*map(str, Reason), ""]}, "Why that action."),
    "why": (TEXT, "The same in words; of an operator's request, the operator's."),
    "plan": (maybe(part("plan")), "What the panic leads to; null while it is not connected."),
    "then": (maybe(part("plan")), "What follows if the guest does not handle it itself."),
    "policies": (many("plan"), "What each policy would lead to."),
    "configured": (part("plan"), "What the configured policy would lead to."),
    "steps": (
        {"type": "array", "items": {"anyOf": [part("step"), part("step_record")]}},
        "The plan's steps, or how they went.",
    ),
    "at_once": (
        maybe({"type": "array", "items": COUNT}),
        "The first and the last of the steps that panicd takes together.",
    ),
    "step": (TEXT, "The step's name."),
    "does": (TEXT, "What the step does."),
    "timeout": (NUMBER, "Seconds until it counts as failed."),
    "on_failure": (TEXT, "What panicd does if the step fails."),
    "by_libvirt": (TRUTH, "libvirt is told to do it."),
    "command": (TEXTS, "What is run."),
    "unit": (TEXT, "The systemd unit that is started."),
    "libvirt_uri": (TEXT, "The libvirt that starts the domain."),
    "pid": (
        maybe(COUNT),
        "The process of a QEMU that is no domain of panicd's; null for a domain.",
    ),
    "exposures": (BY_NAME, "Why it could not be acted on, and what to do about it."),
    "exposed": (many("exposed"), "The domains that could not be acted on."),
    "remedies": (TEXTS, "What to change."),
    # incidents
    "incident": (TEXT, "An incident's id; empty if there is none."),
    "incidents": (many("incident"), "The incidents, the newest first."),
    "incident_reason": (
        {"enum": [*map(str, Reason), ""]},
        "Why the last decision on the incident.",
    ),
    "incident_state": ({"enum": [*map(str, State), "watched", ""]}, "Where the incident stands."),
    "ending": (
        {"enum": [*map(str, Ending), "", None]},
        "How it ended; null or empty while it is open.",
    ),
    "source": (one_of(Source), "How the panic became known."),
    "information": (maybe(part("information")), "The panic's payload, as QEMU gave it."),
    "type": (TEXT, "The payload's type."),
    "fields": ({"type": "array", "items": {"type": "array"}}, "The payload's members."),
    "payload": (part("payload"), "The payload in words."),
    "summary": (TEXT, "What it says, in one line."),
    "members": ({"type": "array", "items": TEXTS}, "Its members, as text."),
    "missing": (TEXTS, "Members that are not there, or malformed."),
    "panic_line": (TEXT, "The guest's own words for its panic; empty if unknown."),
    "signature": (maybe(part("signature")), "What the panic is compared by."),
    "hash": (TEXT, "The comparison's key; empty: it is not compared."),
    "title": (TEXT, "The kind of trouble."),
    "frames": (TEXTS, "The functions it happened in."),
    "repeats": (COUNT, "Panics that were reported after the first."),
    "decisions": (many("decision"), "Every decision, the latest last."),
    "acknowledged": (TRUTH, "Somebody has looked at the incident."),
    "acknowledgement": (maybe(part("acknowledgement")), "Who looked at it."),
    "outcome": (maybe(one_of(Outcome)), "How the step ended; null while it is under way."),
    "detail": (TEXT, "What there is to say about it."),
    "same": (maybe(part("same")), "The incidents of the same panic."),
    "panics": (many("panic"), "The different panics, the latest seen first."),
    "incident_count": (COUNT, "How many incidents."),
    "domain_count": (COUNT, "How many domains."),
    "history": (many("entry"), "The incident's entries in the journal."),
    "kind": (TEXT, "What kind of entry."),
    "index": (COUNT, "The number of the step in its plan, from 0."),
    "count": (COUNT, "How many more panics."),
    "what": (TEXT, "What was seen, or asked for."),
    "evidence_directory": (TEXT, "Where the evidence lies."),
    "evidence": (
        maybe(ANYTHING),
        "The list of the evidence; null if none is on the disk.",
    ),
    "screenshot": (maybe(TEXT), "The picture of the guest's screen."),
    # dumps
    "dump": (maybe(part("dump_progress")), "The running or waiting memory dump."),
    "state": ({"enum": ["waiting", "dumping"]}, "Where the dump stands."),
    "ahead": (COUNT, "How many dumps wait before it."),
    "format": (TEXT, "The dump's format."),
    "done": ({"type": ["integer", "boolean"]}, "Bytes dumped; of a request, whether it is done."),
    "total": (maybe(COUNT), "Bytes of guest memory that are read."),
    "rate": (maybe(NUMBER), "Bytes of guest memory a second."),
    "left_out": (
        {"anyOf": [COUNT, {"type": "object", "additionalProperties": COUNT}]},
        "Bytes that a dump will not hold; of a finished one, pages, by their use.",
    ),
    "written": (COUNT, "Bytes that its file takes so far."),
    "expected": (maybe(COUNT), "About how many bytes its file will take."),
    "dumps": (TEXTS, "The memory dumps that are there."),
    "dump_facts": (many("dump_facts"), "What these are."),
    "path": (TEXT, "The file."),
    "size": (COUNT, "Bytes of the file."),
    "level": (maybe(COUNT), "makedumpfile's dump level."),
    "open": (TEXTS, "Commands that open it."),
    "dump_path": (TEXT, "The dump that the log was read from."),
    "log_file": (TEXT, "The file that the log was read from."),
    "lines": (many("log_line"), "The lines of the log, the oldest first."),
    "complete": (TRUTH, "Nothing of the log is missing."),
    "release": (TEXT, "The kernel's release."),
    "seq": (COUNT, "The record's number since boot."),
    "text": (TEXT, "What the line says."),
    "timestamp": (NUMBER, "Seconds since the guest booted."),
    "severity": (COUNT, "0 (emergency) to 7 (debug)."),
    "caller": (TEXT, "The task or CPU."),
    "by_kernel": (TRUTH, "The kernel itself said so."),
    # changes
    "matches": (TEXTS, "The domains that it matches now."),
    "still_held": (TEXTS, "Those of them that another hold matches."),
    "monitor_count": (COUNT, "Monitors that are configured."),
    "rule_count": (COUNT, "Domain rules that are configured."),
    "changed": (TEXTS, "Domains whose policy changed."),
    "at_next_start": (TEXTS, "Keys that take effect at the next start."),
    # advice
    "guests": (many("guest"), "What suits each guest."),
    "has": (TEXTS, "The panic devices that libvirt gives it."),
    "system": (part("system"), "What the guest runs."),
    "support": (many("support"), "Which panic devices it can use."),
    "device": (TEXT, "A panic device; empty: none is of use."),
    "qemu_arguments": (TEXT, "How to give QEMU the device."),
    "libvirt_xml": (TEXT, "How to give libvirt the device."),
    "ignore": (TEXT, "Whether `on_crash: ignore` suits it."),
    "grace": (TEXT, "Whether `grace` suits it."),
    "kdump": (TEXT, "What comes of a dump that it makes itself."),
    "id": (TEXT, "libosinfo's id."),
    "family": (TEXT, "libosinfo's word for its kind."),
    "released": (TEXT, "When it was released."),
    "kernel": (maybe({"type": "array", "items": COUNT}), "The version of its Linux."),
    "known_by": (TEXT, "Who says so."),
    "verdict": (TEXT, "Whether the guest can use the device."),
}
"""What each key holds, and what it is."""

OWN: Final[dict[tuple[str, str], tuple[Mapping[str, Any], str]]] = {
    ("plan", "steps"): (many("step"), "Its steps, in their order."),
    ("incident", "steps"): (many("step_record"), "How the steps of its plan went."),
    ("dump_progress", "done"): (COUNT, "Bytes of guest memory read."),
    ("dump_progress", "left_out"): (COUNT, "Bytes of guest memory that it will not hold."),
    ("dump_facts", "left_out"): (
        {"type": "object", "additionalProperties": COUNT},
        "Pages that it leaves out, by their use.",
    ),
    ("dump_facts", "reason"): (TEXT, "Why it leaves out less than was wanted."),
    ("support", "source"): (TEXT, "Where that can be looked up."),
    ("act", "done"): (TRUTH, "It is done; if not, it is still under way."),
    ("release", "done"): (TRUTH, "It is done; if not, it is still under way."),
}
"""What is said of a key in one place in particular."""


def schema(name: str) -> Answer:
    """Return the schema of a document."""
    title, keys = DOCUMENTS[name]
    whole = _object(name, keys)
    whole["required"].insert(0, "schema")
    constant = {"const": f"panicd/{name}/{VERSION}", "description": "The schema and its version."}
    whole["properties"] = {"schema": constant, **whole["properties"]}
    found = {
        "$schema": DRAFT,
        "title": f"What {title} --json prints.".replace("` --json", " --json`"),
        **whole,
    }
    parts = dict(sorted((each, _part(each)) for each in _parts_of(whole)))
    return found | ({"$defs": parts} if parts else {})


def _part(name: str) -> Answer:
    told, keys = PARTS[name]
    return {"description": told, **_object(name, keys)}


def _object(name: str, keys: str) -> Answer:
    known = {}
    for key in keys.replace("?", "").split():
        kind, told = OWN.get((name, key)) or KEYS[key]
        if key in TIMES:
            kind = _as_time(kind)
        known[key] = {**kind, "description": told}
    required = [key for key in keys.split() if not key.endswith("?")]
    return {
        "type": "object",
        "properties": known,
        "required": required,
        "additionalProperties": False,
    }


def _as_time(kind: Mapping[str, Any]) -> Mapping[str, Any]:
    time = {"type": "string", "format": "date-time"}
    return time if kind == TEXT else maybe(time)


def _parts_of(found: Any) -> set[str]:
    """Return the parts that a schema refers to, and those that they do."""
    names = set(_references(found))
    while more := {each for name in names for each in _references(_part(name))} - names:
        names |= more
    return names


def _references(found: Any) -> Iterator[str]:
    match found:
        case {"$ref": str(place)}:
            yield place.rpartition("/")[2]
        case dict():
            for each in found.values():
                yield from _references(each)
        case list():
            for each in found:
                yield from _references(each)


def written(name: str) -> str:
    """Return a document's schema as its file has it."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"


HEAD: Final = """\
# What `--json` prints

Each command that takes `--json` prints one JSON object. Its `schema` is the command's name and a
version, such as `panicd/status/1`. The JSON Schema of each is in [schemas](schemas). A release that
only adds keys leaves the version as it is. One that changes or removes a key raises it, and the
[changelog](../CHANGELOG.md) says so.

- The same thing has the same key in every document.
- A time is one of RFC 3339, in UTC, to a millisecond: `2026-11-23T04:43:10.120Z`.
- A text is given as it is known, and a guest's text may hold anything. It is escaped as JSON, so
  no terminal acts on it.
- What is not known is an empty text, or null where null is allowed.

```
panicd status --json | jq -r '.domains[] | select(.standing == "preserved") | .domain'
panicd incidents --open --json | jq -r '.incidents[] | [.incident, .domain, .panic_line] | @tsv'
```
"""


def json_document() -> str:
    """Return docs/json.md."""
    parts = [HEAD, "\n## Documents\n\n| schema | command | keys |\n|---|---|---|\n"]
    for name, (title, keys) in DOCUMENTS.items():
        link = f"[`panicd/{name}/{VERSION}`](schemas/{name}.json)"
        parts.append(f"| {link} | {title} | {_listed(keys)} |\n")
    parts.append("\n## Parts\n\n| part | | keys |\n|---|---|---|\n")
    parts += [f"| {name} | {told} | {_listed(keys)} |\n" for name, (told, keys) in PARTS.items()]
    parts.append("\n## Keys\n\n| key | | |\n|---|---|---|\n")
    parts += [f"| `{key}` | {_kind(key)} | {told} |\n" for key, (_, told) in sorted(KEYS.items())]
    return "".join(parts)


def _listed(keys: str) -> str:
    return " ".join(f"`{key}`" for key in keys.replace("?", "").split())


def _kind(key: str) -> str:
    """Return in a word or two what a key holds."""
    if key in TIMES:
        return "time" if KEYS[key][0] == TEXT else "time or null"
    return _in_words(KEYS[key][0])


def _in_words(kind: Mapping[str, Any]) -> str:
    match kind:
        case {"$ref": str(place)}:
            return place.rpartition("/")[2]
        case {"enum": [*words]}:
            return " ".join(f"`{word}`" for word in words if word)
        case {"anyOf": [*kinds]}:
            return " or ".join(_in_words(each) for each in kinds)
        case {"type": "array", "items": items}:
            return f"list of {_in_words(items)}"
        case {"type": [*kinds]}:
            return " or ".join(kinds)
        case {"type": "string"}:
            return "text"
        case _:
            return str(kind["type"])
