import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.rules.qapi import (
    MAX_FIELDS,
    MAX_TEXT,
    DumpCompletedEvent,
    Event,
    GuestCrashloadedEvent,
    GuestPanickedEvent,
    GuestPvshutdownEvent,
    JobStatusEvent,
    MigrationEvent,
    PanicAction,
    PanicInformation,
    ResetEvent,
    ResumeEvent,
    RunState,
    ShutdownEvent,
    StopEvent,
    SuspendEvent,
    parse_event,
)

AT = 1795388589.60824
HYPER_V = PanicInformation("hyper-v", (("arg1", 1), ("arg2", 2**64 - 1)))


# Lines as QEMU sent them, or as its schema has them.
@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("GUEST_PANICKED", {"action": "pause"}, GuestPanickedEvent(AT, PanicAction.PAUSE, None)),
        ("GUEST_PANICKED", {"action": "poweroff"},
         GuestPanickedEvent(AT, PanicAction.POWEROFF, None)),
        ("GUEST_PANICKED", {"action": "run"}, GuestPanickedEvent(AT, PanicAction.RUN, None)),
        (
            "GUEST_PANICKED",
            {"action": "pause", "info": {"type": "hyper-v", "arg1": 1, "arg2": 2**64 - 1}},
            GuestPanickedEvent(AT, PanicAction.PAUSE, HYPER_V),
        ),
        (
            "GUEST_PANICKED",
            {"action": "pause", "info": {"type": "s390", "core": 0, "reason": "disabled-wait"}},
            GuestPanickedEvent(
                AT,
                PanicAction.PAUSE,
                PanicInformation("s390", (("core", 0), ("reason", "disabled-wait"))),
            ),
        ),
        ("GUEST_CRASHLOADED", {"action": "run"}, GuestCrashloadedEvent(AT, None)),
        ("STOP", None, StopEvent(AT)),
        ("RESUME", None, ResumeEvent(AT)),
        ("RESET", {"guest": False, "reason": "host-qmp-system-reset"},
         ResetEvent(AT, guest=False, reason="host-qmp-system-reset")),
        ("RESET", {"guest": True, "reason": "guest-reset"},
         ResetEvent(AT, guest=True, reason="guest-reset")),
        ("RESET", None, ResetEvent(AT, guest=False, reason="")),
        ("SHUTDOWN", {"guest": True, "reason": "guest-panic"},
         ShutdownEvent(AT, guest=True, reason="guest-panic")),
        ("DUMP_COMPLETED", {"result": {"total": 8, "status": "completed", "completed": 8}},
         DumpCompletedEvent(AT, completed=True, written=8, error="")),
        ("DUMP_COMPLETED",
         {"result": {"total": 8, "status": "failed", "completed": 3}, "error": "No space left"},
         DumpCompletedEvent(AT, completed=False, written=3, error="No space left")),
        ("GUEST_PVSHUTDOWN", None, GuestPvshutdownEvent(AT)),
        ("JOB_STATUS_CHANGE", {"id": "mirror", "status": "null"},
         JobStatusEvent(AT, "mirror", "null")),
        ("JOB_STATUS_CHANGE", {"id": "x" * (MAX_TEXT + 1), "status": "null"},
         JobStatusEvent(AT, "", "null")),
        ("JOB_STATUS_CHANGE", {"id": 7, "status": []}, JobStatusEvent(AT, "", "")),
        ("MIGRATION", {"status": "active"}, MigrationEvent(AT, "active")),
        ("MIGRATION", None, MigrationEvent(AT, "")),
        ("SUSPEND", None, SuspendEvent(AT)),
        ("POWERDOWN", None, None),
    ],
)  # fmt: skip
def test_event(name: str, data: object, expected: Event | None) -> None:
    stamp = {"seconds": 1795388589, "microseconds": 608240}
    message: dict[str, object] = {"timestamp": stamp, "event": name}
    if data is not None:
        message["data"] = data
    event = parse_event(json.loads(json.dumps(message)))
    assert event == expected
    assert type(event) is type(expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, GuestPanickedEvent(0, PanicAction.UNKNOWN, None)),
        ({"action": 7}, GuestPanickedEvent(0, PanicAction.UNKNOWN, None)),
        ({"action": ["pause"]}, GuestPanickedEvent(0, PanicAction.UNKNOWN, None)),
        ({"action": "pause", "info": "x"}, GuestPanickedEvent(0, PanicAction.PAUSE, None)),
        ({"action": "pause", "info": {}}, GuestPanickedEvent(0, PanicAction.PAUSE, None)),
        (
            {"action": "pause", "info": {"type": 1, "a": None, "b": [1], "c": 2**64, "d": 1.5}},
            GuestPanickedEvent(0, PanicAction.PAUSE, PanicInformation("")),
        ),
        (
            {"action": "pause", "info": {"type": "x" * 999, "k" * 999: "v" * 999}},
            GuestPanickedEvent(
                0,
                PanicAction.PAUSE,
                PanicInformation("x" * MAX_TEXT, (("k" * MAX_TEXT, "v" * MAX_TEXT),)),
            ),
        ),
    ],
)
def test_a_panic_is_a_panic_whatever_it_says(data: object, expected: Event) -> None:
    assert parse_event({"event": "GUEST_PANICKED", "data": data}) == expected


def test_a_payload_of_many_fields_is_cut() -> None:
    info = {"type": "x", **{f"field-{n}": n for n in range(1000)}}
    event = parse_event({"event": "GUEST_PANICKED", "data": {"action": "run", "info": info}})
    assert isinstance(event, GuestPanickedEvent)
    assert event.information is not None
    assert 0 < len(event.information.fields) <= MAX_FIELDS


@pytest.mark.parametrize(
    "stamp",
    [
        None,
        7,
        {},
        {"seconds": "1", "microseconds": 0},
        {"seconds": -1, "microseconds": -1},
        {"seconds": 2**70, "microseconds": 0},
        {"seconds": 0, "microseconds": 10**6},
        {"seconds": True, "microseconds": False},
    ],
)
def test_a_time_stamp_that_is_none(stamp: object) -> None:
    assert parse_event({"event": "STOP", "timestamp": stamp}) == StopEvent(0.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["GUEST_PANICKED", "GUEST_CRASHLOADED", "RESET", "SHUTDOWN", "STOP"])
keys = st.sampled_from(["action", "info", "guest", "reason", "result", "error"]) | st.text()
hostile = st.fixed_dictionaries(
    {"event": names | json_values},
    optional={
        "data": st.dictionaries(keys, json_values) | json_values,
        "timestamp": json_values,
    },
)


@given(hostile)
def test_nothing_that_a_monitor_sends_makes_it_fail(message: dict[str, object]) -> None:
    event = parse_event(message)
    if message["event"] == "GUEST_PANICKED":
        assert isinstance(event, GuestPanickedEvent)
    information = getattr(event, "information", None)
    if information is not None:
        assert len(information.type) <= MAX_TEXT
        assert len(information.fields) <= MAX_FIELDS
        texts = [text for field in information.fields for text in field if isinstance(text, str)]
        assert all(len(text) <= MAX_TEXT for text in texts)


@pytest.mark.parametrize("value", [None, 7, [], {}, "", "RUNNING", "no-such-state"])
def test_a_run_state_that_is_none(value: object) -> None:
    assert RunState.parse(value) is RunState.UNKNOWN
    assert RunState.parse(value).executes


@pytest.mark.parametrize("state", RunState)
def test_which_states_may_be_executing(state: RunState) -> None:
    assert RunState.parse(state.value) is state
    assert state.executes is (state.value in {"running", "suspended", "colo", "unknown"})
