"""What is kept of a panic besides a dump: log, screen, registers, consoles.

::

    bundle         takes it into memory, before panicd changes anything and within a time budget
    qemu_view      QEMU's part of it: the screen, registers, state
    bundle_writer  writes bundles to the disk, while their actions go on
    host_facts     what the kernel says of the host's load and of QEMU's process
    screen, console_log    a picture as it comes, the ends of the consoles' logs
    bundle_store   bundles on the disk; retention removes those beyond the limits

Enters: a stopped guest's session. Leaves: a directory with a manifest.
"""
