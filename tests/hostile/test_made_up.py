"""Monitors whose every word is made up by Hypothesis: at worst a ``MonitorError`` comes of it."""

from __future__ import annotations

import gc
import json
from functools import partial
from typing import Any

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from panicd.qemu.monitor import event_loop
from tests.hostile.monitors import NESTED, STATUS, greeting
from tests.hostile.scale import whole
from tests.hostile.sessions import ID, SILENCE, Course, converse
from tests.parts.patience import patience
from tests.parts.vitals import open_files

MARK = ID.decode()
EXAMPLES = 5_000 if whole() else 60

NAMES = ["GUEST_PANICKED", "GUEST_CRASHLOADED", "STOP", "RESUME", "RESET", "SHUTDOWN"]
KEYS = ["return", "error", "id", "event", "data", "timestamp", "QMP", "class", "desc", "status"]
KEYS += ["seconds", "microseconds", "action", "info", "type", "guest", "reason", "result", "name"]
WORDS = [*NAMES, "DUMP_COMPLETED", "pause", "run", "poweroff", "hyper-v", "s390", MARK, "running"]

scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 2**63, 1e308])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
)
keys = st.sampled_from(KEYS) | st.text(max_size=4)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)
stamps = st.just({"seconds": 1, "microseconds": 2}) | values
events = st.fixed_dictionaries(
    {"event": st.sampled_from(NAMES) | values, "timestamp": stamps},
    optional={"data": values | st.fixed_dictionaries({"action": st.sampled_from(WORDS)})},
)
sane = st.sampled_from(
    [{}, STATUS, {"name": "vm"}, {"UUID": "x"}, [], [{"type": "child<pvpanic>"}]]
)
replies = (
    st.fixed_dictionaries({"return": sane, "id": st.just(MARK)})
    | st.fixed_dictionaries({"return": values, "id": st.just(MARK)})
    | st.fixed_dictionaries({"error": values, "id": st.just(MARK)})
    | st.fixed_dictionaries({"return": sane, "id": values})
    | st.dictionaries(keys, values, max_size=4)
)


def encoded(message: object) -> bytes:
    # The mark stands for the id, whatever type that has.
    return json.dumps(message).encode().replace(b'"' + ID + b'"', ID) + b"\r\n"


lines = (events | replies).map(encoded) | st.binary(max_size=40).map(lambda data: data + b"\n")
answers = st.lists(
    st.lists(lines, min_size=1, max_size=3).map(b"".join)
    | replies.map(encoded)
    | st.fixed_dictionaries({"return": sane, "id": st.just(MARK)}).map(encoded),
    max_size=14,
)
greetings = (
    st.just(greeting({"major": 7, "minor": 2, "micro": 0}))
    | values.map(greeting)
    | st.dictionaries(keys, values, max_size=3).map(encoded)
    | st.binary(max_size=60)
)


def run(hello: bytes, script: list[bytes], last: bytes, silence: float = SILENCE) -> Course:
    async def main() -> Course:
        async with event_loop():
            return await converse(hello, script, last, silence)

    return trio.run(main)


@settings(max_examples=EXAMPLES)
@given(greetings, answers, st.binary(max_size=20) | lines)
@example(greeting(), [encoded({"return": {}, "id": MARK}), encoded({"return": {}, "id": {}})], b"")
@example(greeting(), [encoded({"return": {}, "id": MARK})] * 14, NESTED)
@example(greeting(), [encoded({"return": {}, "id": MARK}), NESTED + b"\n"], b"")
def test_whatever_is_said_the_session_ends_in_order(
    hello: bytes, script: list[bytes], last: bytes
) -> None:
    run(hello, script, last)


def test_one_that_behaves_is_looked_after() -> None:
    answer = encoded({"return": STATUS, "id": MARK})
    panic = encoded({"event": "GUEST_PANICKED", "timestamp": {"seconds": 1, "microseconds": 2}})
    hello = greeting({"major": 7, "minor": 2, "micro": 0})
    course = run(hello, [answer] * 9, panic, silence=patience(0.5))
    assert course.connected
    assert course.probed


def test_sessions_leave_no_file_open() -> None:
    talk = partial(run, greeting(), [encoded({"return": {}, "id": MARK})] * 3, NESTED)
    talk()
    gc.collect()
    before = len(open_files())
    for _ in range(20):
        talk()
    gc.collect()
    assert len(open_files()) <= before
