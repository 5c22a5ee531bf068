"""JSON of foreign origin: what can be read can be written."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from panicd.rules.foreign_json import MOST, is_too_nested, loads


@pytest.mark.parametrize("opening", ["[", '{"a": ', '[{"]": '])
@pytest.mark.parametrize("over", [False, True])
def test_the_limit(opening: str, *, over: bool) -> None:
    levels = sum(opening.count(bracket) for bracket in "[{")
    times = MOST // levels + over
    closing = "".join(
        "]" if bracket == "[" else "}" for bracket in opening[::-1] if bracket in "[{"
    )
    text = opening * times + "0" + closing * times
    json.loads(text)
    assert is_too_nested(text.encode()) is over


@pytest.mark.parametrize("text", ["[" * 2000, '\\"[{' * 2000, "\\" * 2001], ids=len)
def test_brackets_in_text_do_not_count(text: str) -> None:
    assert not is_too_nested(json.dumps({text: [text] * 10}).encode())


def test_many_lists_side_by_side() -> None:
    assert not is_too_nested(json.dumps([[]] * 10_000).encode())


@given(st.binary().map(lambda part: part * 300))
@example(b'"' + b'\\"' * (1 << 20) + b"[" * 600)
@example(b"]" * 600 + b"[" * 600)
def test_what_is_no_json_at_all_is_looked_at_quickly(data: bytes) -> None:
    is_too_nested(data)


@given(
    st.recursive(st.text('[]{}"\\'), lambda inner: st.lists(inner, max_size=4)), st.integers(0, 999)
)
def test_as_deep_as_it_is(value: object, around: int) -> None:
    text = json.dumps(value)
    depth, inside = around, [value]
    while lists := [each for each in inside if isinstance(each, list)]:
        depth += 1
        inside = [each for one in lists for each in one]
    assert is_too_nested(f"{'[' * around}{text}{']' * around}".encode()) is (depth > MOST)


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "Infinity", "[" * 5000, "", "1" * 5000])
def test_what_could_not_be_written_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of whichever kind
        loads(text.encode())


def test_what_can_be_written_is_read() -> None:
    value = {"a": [1, -2.5, None, True, "\ud800", 10**400]}
    assert loads(json.dumps(value).encode()) == value
