"""What touches a QEMU: its monitor, its process, its sockets, its memory.

::

    discovery  which monitor sockets there are
    monitor    one QMP connection: events in, commands out
    process    who is at its other end, and how to end exactly that process; process_list: all of
               them on this host
    coredump   the guest's memory, to a file: dump_checks and page_selection before, dump_writer for
               the bytes (with dump_repair, elf_filter), dump_directory for the files, dump_reader
               (with kdump_reader) and dump_facts to read a finished one
    evidence   what else is kept of a panic: log, screen, registers

Imports from ``panicd.rules`` only. Only ``monitor`` knows asyncio and qemu.qmp; the rest is trio.
"""
