"""Where one JSON value ends and the next begins."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.parts.wire import JsonSplitter

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=3)


@given(st.lists(OBJECTS, max_size=3), st.sampled_from(["", " ", "\n", "\r\n"]), st.integers(1, 7))
def test_hands_out_every_object_however_it_is_cut(
    messages: list[object], separator: str, step: int
) -> None:
    stream = separator.join(json.dumps(message) for message in messages).encode()
    splitter = JsonSplitter()
    values = [
        value
        for start in range(0, len(stream), step)
        for value in splitter.feed(stream[start : start + step])
    ]
    assert [json.loads(value) for value in values] == messages


def test_hands_out_what_is_no_object_by_line() -> None:
    splitter = JsonSplitter()
    assert splitter.feed(b'garbage\n"text" {"a": "}"} more') == [
        b"garbage",
        b'"text"',
        b'{"a": "}"}',
    ]
    assert splitter.feed(b"\n") == [b"more"]
