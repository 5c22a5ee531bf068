"""A guest's memory, from QEMU through a pipe to a file that panicd owns.

::

    coredump       makes a dump; queue: says whose turn it is
    checks         finds out before the dump what it will cost
    page_selection finds out before the dump which pages it leaves out
    nearly_empty   has QEMU write a kdump, where that is faster, for an ELF core to be made of it
    windows        finds out before the dump what a dump for WinDbg has besides memory
    feeding        reads the kept ranges of the memory, instead of all of it
    writer         writes the bytes, in a thread; repair: changes their beginning on the way
    directory      names the files; facts, reader, kdump_reader: tell what a finished one holds
    filter/        separate programs that change the bytes on the way; own_program: starts them,
                   standby: keeps one ready

Enters: a session, or libvirt's pipe. Leaves: a finished dump, or why there is none.
"""
