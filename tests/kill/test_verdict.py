"""The matrix's verdict finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from panicd.rules.incident import (
    Closed,
    Ending,
    Incident,
    Opened,
    Settled,
    Source,
    State,
    apply,
)
from tests.kill.scenarios import DUMP, SCENARIOS
from tests.kill.subjects import carried_out
from tests.kill.verdict import Counters, Evidence, judge

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
AT = 1_800_000_000.0
OPENED = Opened(AT, "vm", "", "/vm.qmp", "", Source.EVENT)
OPEN = Incident("one", OPENED, State.ACTING)
RESTARTED = apply(OPEN, Closed(AT, Ending.RESTARTED))
PRESERVED = apply(OPEN, Settled(AT, State.PRESERVED))
COUNTED = Counters(panics=1, domain_panics=1, restarts=1, failures=0, actions={"restart": 1})
GOOD = Evidence("running", ["system_reset", "cont"], [RESTARTED], counters=COUNTED)
DUMPED = replace(
    GOOD, commands=["getfd", DUMP, *GOOD.commands], files=[Path("dumps/one.elf")], struck=True
)


def test_what_is_as_it_should_be_is_no_violation() -> None:
    assert judge(BY_NAME["restart"], GOOD) == []
    assert judge(BY_NAME["coredump-restart"], DUMPED) == []


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"commands": ["system_reset", "system_reset", "cont"]}, "commands"),
        ({"commands": ["system_reset", "cont", "cont"]}, "commands"),
        ({"commands": ["system_reset", "cont", "quit"]}, "commands"),
        ({"guest": "prelaunch"}, "guest"),
        ({"journal": []}, "became"),
        ({"journal": [RESTARTED, PRESERVED]}, "became"),
        ({"journal": [OPEN]}, "became"),
        ({"counters": replace(COUNTED, panics=2)}, "panics"),
        ({"counters": replace(COUNTED, restarts=2)}, "restarts"),
        ({"counters": replace(COUNTED, actions={})}, "actions"),
    ],
)
def test_what_is_lost_or_done_twice_is_found(wrong: dict[str, object], what: str) -> None:
    (violation,) = judge(BY_NAME["restart"], replace(GOOD, **wrong))  # type: ignore[arg-type]  # by name
    assert violation.startswith(f"{what}: ")


def test_dump_is_begun_anew_only_where_it_had_not_been_complete() -> None:
    twice = replace(DUMPED, commands=[DUMP, DUMP, *GOOD.commands])
    assert judge(BY_NAME["coredump-restart"], twice) == []
    (violation,) = judge(BY_NAME["coredump-restart"], replace(twice, dumped_at_blow=True))
    assert violation.startswith("commands: ")


def test_partial_dump_that_is_left_is_found() -> None:
    left = replace(DUMPED, files=[*DUMPED.files, Path("dumps/one.elf.partial")])
    (violation,) = judge(BY_NAME["coredump-restart"], left)
    assert violation.startswith("dumps: ")


def test_nothing_is_known_of_a_guest_that_ran_on_unheard() -> None:
    unheard = Evidence("running", [], [], struck=True, at_blow=[])
    assert judge(BY_NAME["ignore"], unheard) == []
    assert judge(BY_NAME["ignore"], replace(unheard, commands=["stop"])) != []


RESET = "qmp_exit_system_reset 0x5 1"
RUNS = "vm_state_notify running 1 reason 9 (running)"


@pytest.mark.parametrize(
    ("trace", "done"),
    [
        ([RESET], ["system_reset"]),
        ([RESET, RUNS], ["system_reset", "cont"]),  # killed before it had answered
        ([RESET, RUNS, "qmp_exit_cont 0x5 1"], ["system_reset", "cont"]),
        ([RESET, "qmp_exit_cont 0x5 0"], ["system_reset"]),
    ],
)
def test_a_guest_that_runs_was_let_run(tmp_path: Path, trace: list[str], done: list[str]) -> None:
    file = tmp_path / "trace"
    file.write_text("\n".join(trace) + "\n")
    assert carried_out(file) == done
