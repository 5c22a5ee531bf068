"""A stopped guest's own words, read from its memory a few pages at a time.

::

    dump_file    what QEMU wrote of a range: ELF headers, notes, the range itself
    vmcoreinfo   the kernel's note on itself: addresses and layouts
    reading      one request for memory, and how a reader asks for it
    memory       guest-physical pages, each read once, within limits; virtual addresses
    page_tables  how these lead to physical ones, on x86 and on Arm
    printk       the kernel's ring buffer of log records
    page_layout  the layout of the kernel's structure for each page
    page_map     the place of the array of these structures
    kdump_head   the beginning of a dump in the kdump-compressed format
    windows      a Windows guest's own note: the header of a dump, which leads to the bug check
    windows_dump the parts of a dump for WinDbg besides the memory

``panicd.rules.kernel_log`` makes lines of the log records. Nothing here reads by itself: a reader
is a generator that yields ``ReadRequest`` and is sent the bytes. The guest wrote all of these bytes
and may lie, so any malformed thing ends in ``NotReadableError``.
"""
