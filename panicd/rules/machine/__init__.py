"""One machine for a panic: what one domain's panic leads to, from the event to its end.

``step(state, input, moment)`` returns the next state and the effects: values in, values out. There
is no clock, no file and no waiting in here. What the machine waits for is a phase of its state.

::

    inputs ──► table.step ──► effects        arrival   how a domain is found, and left
                  │                          resting   what is heard while nothing is under way
         phases and their rows               deciding  what is decided, and what follows
                                             steps     how each step of a plan begins

    halting, commands, ending    the steps themselves; results: how each came out
    hearing        what is heard while something is under way; answers: what QEMU's answers say
    ahead          what a panic leads to, known before it comes
    ignoring       a guest that runs on, panic after panic
    state, vm      what is known of the incident, and of the VM; turn: one step in the making
"""

from panicd.rules.machine.state import State
from panicd.rules.machine.table import TABLE, IllegalInputError, step

__all__ = ["TABLE", "IllegalInputError", "State", "step"]
