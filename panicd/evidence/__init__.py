"""What is kept of a panic besides a dump: log, screen, registers, consoles.

::

    bundle         takes it, before panicd changes anything and within a time budget
    screen, console_log    a picture of the screen, the ends of the consoles' logs
    bundle_store   bundles on the disk; retention removes those beyond the limits

Enters: a stopped guest's session. Leaves: a directory with a manifest.
"""
