"""One machine for a panic: what one domain's panic leads to, from the event to its end.

``step(state, input, moment)`` returns the next state and the effects: values in, values out. There
is no clock, no file and no waiting in here. What the machine waits for is a phase of its state.

::

    inputs ──► table.step ──► effects        arrival   finding a domain, and leaving it
                  │                          resting   events while nothing is under way
         phases and their rows               deciding  decisions, and what follows them
                                             steps     how each step of a plan begins

    halting, commands, ending    the steps themselves; results: how each came out
    hearing        events while something is under way; answers: what QEMU's answers say
    ahead          what a panic leads to, known before it comes
    ignoring       a guest that runs on, panic after panic
    state, vm      what the machine knows of the incident and the VM; turn: one step in the making
    work           what QEMU itself is busy with, followed by its events
"""

from panicd.rules.machine.state import State
from panicd.rules.machine.table import TABLE, IllegalInputError, step

__all__ = ["TABLE", "IllegalInputError", "State", "step"]
