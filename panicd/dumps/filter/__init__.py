"""Dumps that leave out what nobody debugs a kernel panic with, or are of another kind than QEMU's.

::

    page_classes   what each page is used for, by the kernel's array of page structures
    page_bitmap    the bitmap of the pages that are kept; its program asks for the memory that it
                   needs, and is run before the dump
    kdump_writer   the kdump-compressed format, page by page
    page_filter    a program: an ELF core comes in, the kept pages go out as a kdump
    windows_filter a program: an ELF core of a Windows comes in, a dump for WinDbg goes out
    core_stream    what comes in

What a guest wrote is worked on in processes of their own: a lie costs time and memory there, within
limits, and not in the daemon. numpy does it for many pages at once.
"""
