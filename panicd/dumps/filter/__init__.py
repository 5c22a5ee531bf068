"""Makes dumps that leave out what no debugger of a kernel panic needs, and dumps for WinDbg.

::

    page_classes   tells what each page is used for, by the kernel's array of page structures
    page_bitmap    a program that runs before the dump: asks for the memory that it needs, and
                   makes a bitmap of the kept pages
    kdump_writer   writes the kdump-compressed format, page by page
    page_filter    a program: reads an ELF core, writes its kept pages as a kdump
    elf_filter     a program: reads an ELF core, or QEMU's kdump; compresses it, leaves holes
    stand_by       a program: waits until it is to be the elf_filter of a dump
    kdump_stream   makes an ELF core of QEMU's kdump of a nearly empty guest
    windows_filter a program: reads an ELF core of a Windows, writes a dump for WinDbg
    core_stream    reads what comes in

Separate processes work on what a guest wrote. There a lie costs time and memory within limits, and
costs the daemon nothing. numpy handles many pages at a time.
"""
