"""Reactions that go as foreseen at first, seen from outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from panicd.incident.reaction import Reaction


def note_reactions(monkeypatch: pytest.MonkeyPatch) -> list[Reaction]:
    """Return a list that every reaction is added to when it begins."""
    begun: list[Reaction] = []
    begin = Reaction.begin

    def noted(reaction: Reaction, *how: Callable[..., None]) -> None:
        begun.append(reaction)
        begin(reaction, *how)

    monkeypatch.setattr(Reaction, "begin", noted)
    return begun
