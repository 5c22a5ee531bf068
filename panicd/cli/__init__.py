"""What people type, and what they see: the commands.

``program`` knows where each of them is, ``base`` has what they share, ``render`` what they print. A
command's module is loaded when the command is called: a line of help needs no event loop.
"""

from panicd.cli.program import main

__all__ = ["main"]
