"""docs/machine.md: the machine's table, as it is."""

from __future__ import annotations

import inspect
import re
from typing import Final

from panicd.rules.incident import TRANSITIONS, State
from panicd.rules.machine import inputs
from panicd.rules.machine.state import ACTING
from panicd.rules.machine.table import TABLE

_INPUTS: Final = (
    *(inputs.Heard, inputs.Answered, inputs.Durable, inputs.Elapsed, inputs.Finished),
    *(inputs.Told, inputs.TurnCame, inputs.Gone, inputs.Lost, inputs.Departed),
    *(inputs.Asked, inputs.Reconsider, inputs.LookAgain, inputs.Attached, inputs.Adopted),
)

_HEAD: Final = """\
# The machine

One machine decides everything about a panic: `step(state, input, moment)` in `panicd/rules/machine`
returns the next state and the effects. This page is written from the code by `make reference`.

"""


def machine_document() -> str:
    """Return docs/machine.md."""
    return "".join([_HEAD, _phases(), _table(), _inputs(), _incident()])


def _phases() -> str:
    lines = ["## Phases: what is under way\n\n| phase | |\n|---|---|\n"]
    for phase in TABLE:
        acting = " (a plan is carried out)" if phase in ACTING else ""
        lines.append(f"| {phase.__name__} | {_says(phase)}{acting} |\n")
    return "".join(lines)


def _table() -> str:
    lines = [
        "\n## Which input each phase takes\n\n",
        "An answer that nobody waits for any more is dropped. ",
        "Anything else that has no place here raises.\n\n",
        f"| | {' | '.join(each.__name__ for each in _INPUTS)} |\n",
        f"|---|{'---|' * len(_INPUTS)}\n",
    ]
    for phase, row in TABLE.items():
        cells = ["●" if each in row else "" for each in _INPUTS]
        lines.append(f"| {phase.__name__} | {' | '.join(cells)} |\n")
    return "".join(lines)


def _inputs() -> str:
    lines = ["\n## Inputs: what has happened\n\n| input | |\n|---|---|\n"]
    lines += [f"| {each.__name__} | {_says(each)} |\n" for each in _INPUTS]
    return "".join(lines)


def _incident() -> str:
    lines = ["\n## Where an incident stands\n\n| state | leads to |\n|---|---|\n"]
    for state in State:
        to = sorted({after for (before, _), after in TRANSITIONS.items() if before is state})
        lines.append(f"| {state} | {', '.join(to) or 'its end'} |\n")
    return "".join(lines)


def _says(kind: type) -> str:
    """Return a docstring's first sentence, as one line."""
    first = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return re.sub(r"``", "`", " ".join(first.split()))
