"""Words that nobody can guess."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from panicd.qemu.tokens import LENGTH, RANDOM, Tokens, hexadecimal, short


@pytest.mark.parametrize(("spell", "letters"), [(hexadecimal, "[0-9a-f]"), (short, r"[\w-]")])
def test_words_are_all_different_and_of_one_length(
    spell: Callable[[bytes], str], letters: str
) -> None:
    tokens = Tokens(spell)
    words = [tokens.next() for _ in range(RANDOM)]  # more than are made at once
    assert len(set(words)) > len(words) - 4  # of 32 bits, two may be the same by chance
    assert all(re.fullmatch(f"{letters}{{{LENGTH}}}", word, re.ASCII) for word in words)
