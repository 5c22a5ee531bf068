"""One QEMU: its monitor, its process, what its guest's memory holds.

::

    monitor        one QMP connection: events in, commands out. Only it knows asyncio and qemu.qmp
    callbacks, event_outlet, guard, limits, line_reader, monitor_error, pace, pending,
    tokens         its parts
    exchange       the interface to one VM: commands and events, over QMP or libvirt's API
    session        a connected VM; probe: the first questions to it
    process        the process at the other end, and how to end exactly that one; other_end,
                   process_identity, process_arguments, process_list, pidfd_info, socket_table:
                   what the kernel says of it
    guest_memory   memory of a stopped guest, and its kernel log; dump_error: why a dump failed
    file_rights    opens a file that another user names; threads: work that may hang

Imports from ``panicd.rules`` and ``panicd.host.timers`` only.
"""
