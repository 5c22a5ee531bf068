"""What `panicd incident ID` shows."""

from __future__ import annotations

import pytest

from panicd.incident_page import duration, timeline


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0004, "0.4 ms"),
        (0.25, "250.0 ms"),
        (12.345, "12.35 s"),
        (61.0, "1 min 1 s"),
        (7200.0, "2 h"),
        (90061.0, "1 d 1 h 1 min 1 s"),
    ],
)
def test_durations_are_as_people_read_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_each_step_is_a_line_with_its_duration() -> None:
    moments = timeline(
        [
            {"kind": "opened", "at": 100.0, "source": "event"},
            {"kind": "step-begun", "at": 100.1, "index": 0, "step": "Collect"},
            {"kind": "repeated", "at": 100.2, "count": 3},
            {
                "kind": "step-ended",
                "at": 100.6,
                "index": 0,
                "step": "Collect",
                "outcome": "done",
                "detail": "\x1b[31m[bold]",
            },
            {"kind": "step-begun", "at": 101.0, "index": 1, "step": "Quit"},
        ]
    )
    assert [(m.what, m.took if m.took is None else round(m.took, 3)) for m in moments] == [
        ("opened", None),
        ("Collect", 0.5),
        ("repeated", None),
        ("Quit", None),
    ]
    assert moments[1].about == r"done: \x1b[31m\[bold]"
    assert "not ended" in moments[3].about


def test_step_s_end_without_its_beginning_is_shown_all_the_same() -> None:
    end = {"kind": "step-ended", "at": 5.0, "index": 2, "step": "Kill", "outcome": "done"}
    assert [m.what for m in timeline([end | {"detail": ""}])] == ["step ended"]
