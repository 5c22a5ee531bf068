"""What libvirt passes on of a QEMU's answer."""

from __future__ import annotations

import pytest

from panicd.fleet.plugging import _answer
from panicd.qemu.monitor import CommandError


@pytest.mark.parametrize(
    "reply",
    ["", "{", f'{{"return": {"9" * 5000}}}', f'{{"return": {"[" * 100_000}', "[]", '{"error": 1}'],
    ids=["nothing", "half", "too large a number", "nested", "a list", "no error"],
)
def test_an_answer_that_makes_no_sense_is_a_refusal(reply: str) -> None:
    with pytest.raises(CommandError, match="makes no sense"):
        _answer(reply)


def test_an_answer_is_passed_on() -> None:
    assert _answer('{"return": [1]}') == [1]
    with pytest.raises(CommandError, match="no such bus"):
        _answer('{"error": {"class": "GenericError", "desc": "no such bus"}}')
