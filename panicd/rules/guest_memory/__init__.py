"""A stopped guest's own words, read from its memory a few pages at a time.

::

    dump_file    what QEMU wrote of a range: ELF headers, notes, the range itself
    vmcoreinfo   the kernel's note on itself: addresses and layouts
    reading      one request for memory, and how a reader asks for it
    memory       guest-physical pages, each read once, within limits; virtual addresses
    page_tables  how these lead to physical ones, on x86 and on Arm
    printk       the kernel's ring buffer of log records
    page_layout  what the kernel writes about each page
    page_map     where it does
    kdump_head   the beginning of a dump in the kdump-compressed format
    windows      what a Windows leaves instead: the header of a dump, and its bug check by that
    windows_dump what makes a dump of it, for WinDbg

``panicd.rules.kernel_log`` makes lines of it. Nothing here reads anything: a reader is a generator
that yields ``ReadRequest`` and is sent the bytes. The guest wrote all of it and may lie, so every
malformed thing ends in ``NotReadableError``.
"""
