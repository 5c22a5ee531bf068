"""One QEMU: its monitor, its process, what its guest's memory holds.

::

    monitor        one QMP connection: events in, commands out. Only it knows asyncio and qemu.qmp
    monitor_error, event_outlet, line_reader, pace, pending, tokens    its parts
    exchange       what a VM is told and asked, whichever way it is reached
    session        a connected VM; probe: what it is asked first
    process        who is at the other end, and how to end exactly that process; other_end,
                   process_identity, process_list, socket_table: what the kernel says of it
    guest_memory   memory of a stopped guest, and its kernel log; dump_error: why it can't be had
    file_rights    opens a file that somebody else names; threads: work that may hang

Imports from ``panicd.rules`` only.
"""
