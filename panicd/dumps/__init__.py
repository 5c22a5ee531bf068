"""A guest's memory, from QEMU through a pipe to a file that panicd owns.

::

    coredump       makes one; queue: whose turn it is
    checks, page_selection    what is found out before: what it costs, which pages are left out;
                   windows: what one for WinDbg has besides
    feeding        what is read of the memory, where that is not all of it
    writer         the bytes, in a thread of its own; repair, elf_filter: what is mended on the way
    directory      the files; facts, reader, kdump_reader: what a finished one is, and holds
    filter/        programs of their own that leave pages out

Enters: a session, or libvirt's pipe. Leaves: a finished dump, or why there is none.
"""
