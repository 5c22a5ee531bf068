"""What people type, and what they see: the commands.

::

    program        the options, and where each command is; deferred: loaded when it is called
    base           what commands share; configured: what they read themselves; moment: a time typed
    commands       those that ask the daemon, or tell it to do something; watching: again and again
    incident_commands, incident_log, export, filtering    those that show what has happened
    checking, probing, advising, arguments, demonstrating, running    one command each
    render         what is printed; render_changes, render_dumps, render_incident: parts of it
    terminal       what people see, made printable

A command's module is loaded when the command is called: a line of help needs no event loop.
"""

from panicd.cli.program import main

__all__ = ["main"]
