"""What people type, and what they see: the commands.

::

    program        the options, and where each command is; deferred: loaded when it is called
    base           what commands share; configured: what they read themselves; moment: times
    completing     what a shell offers for a half-typed word
    commands       status, explain, audit, reload; selecting: which domains; watching: again
    operator_commands   hold, act, release, ack: what an operator decides
    incident_commands, incident_log, export, filtering    commands that show what has happened
    checking, probing, advising, arguments, demonstrating, running    one command each
    render         what is printed; render_status, render_incident, render_changes, render_dumps:
                   parts of it; phrases: words that several of them share
    documents      what --json prints

A command's module is loaded when the command is called: a line of help needs no event loop.
"""

from panicd.cli.program import main

__all__ = ["main"]
