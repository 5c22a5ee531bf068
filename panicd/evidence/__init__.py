"""What is kept of a panic besides a dump: log, screen, registers, consoles.

::

    bundle         takes it, before anything is changed and inside a time budget
    screen, console_log    a picture of the screen, the ends of the consoles' logs
    bundle_store   bundles on the disk; retention removes those that are one too many

Enters: a stopped guest's session. Leaves: a directory with a manifest.
"""
