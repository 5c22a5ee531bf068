"""What people type, and what they see: the commands.

``commands`` has the tree of them, ``base`` what they share, ``render`` what they print. Importing
it is cheap: what only the daemon or one command needs is loaded by that command.
"""

from panicd.cli.commands import main

__all__ = ["main"]
