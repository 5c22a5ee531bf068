"""Entries as texts, and back."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panicd.journal.codec import STEPS, CodecError, decode, encode
from panicd.rules.incident import AnyEntry
from panicd.rules.plan import AnyStep
from tests.journal.entries import later_entries, openings
from tests.journal.journals import decided


@given(openings | later_entries)
def test_an_entry_comes_back_from_its_text(entry: AnyEntry) -> None:
    text = encode(entry)
    assert text.isascii()
    back = decode(text)
    assert back == entry
    assert repr(back) == repr(entry)  # types too: 1 == True == 1.0


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(str))
def test_any_other_text_is_named_as_such(text: str) -> None:
    with pytest.raises(CodecError):
        decode(text)


def test_every_kind_of_step_has_its_name() -> None:
    assert sorted(STEPS) == sorted(kind.__name__ for kind in get_args(AnyStep))


def test_what_the_journal_of_version_1_says_is_still_read() -> None:
    assert (
        decode(
            '{"at":2.0,"plan":{"decision":{"wanted":"restart","action":"restart","coredump":false,'
            '"reason":"on-crash","relaunch":false},"steps":['
            '{"timeout":2.0,"on_failure":"fall-back","step":"EnsureStopped"},'
            '{"timeout":10.0,"on_failure":"fall-back","step":"SystemReset"},'
            '{"timeout":10.0,"on_failure":"preserve","step":"Cont"}]},"kind":"decided"}'
        )
        == decided()
    )
