"""Which devices answer on an I/O port, from HMP's ``info mtree``.

A pvpanic can be put on any port (``ioport=``). On one that another device has, what the guest
writes for that device raises a panic: port 0, which was once proposed to be rid of the device, is
the DMA controller's.

Source: QEMU, ``softmmu/memory.c``, ``mtree_print_mr``; seen on 7.2 and 10.0.
"""

import re
from typing import Final

_SPACE: Final = re.compile(r"^address-space: I/O\r?$|^I/O\r?$", re.MULTILINE)
_END: Final = re.compile(r"^[^\s]", re.MULTILINE)
# What is nested more deeply is part of a device, and need not be where it says.
_DEVICE: Final = re.compile(
    r"^    ([0-9a-f]{8,16})-([0-9a-f]{8,16}) \(prio -?\d+, (?:i/o|RW)\): ([^\r\n]+?)\r?$",
    re.MULTILINE | re.IGNORECASE,
)


def devices_on(mtree: str, port: int) -> tuple[str, ...]:
    """Return the names of the regions of a machine that hold an I/O port, in their order.

    Args:
        mtree: what ``info mtree`` printed.
        port: the port.
    """
    start = _SPACE.search(mtree)
    if start is None:
        return ()
    end = _END.search(mtree, start.end() + 1)
    section = mtree[start.end() : end.start() if end is not None else len(mtree)]
    return tuple(
        match[3]
        for match in _DEVICE.finditer(section)
        if int(match[1], 16) <= port <= int(match[2], 16) and "[disabled]" not in match[3]
    )
