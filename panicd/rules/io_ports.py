"""Which devices answer on an I/O port, from HMP's ``info mtree``.

A pvpanic can be put on any port (``ioport=``). If another device has the same port, the guest's
writes to that device raise a panic. Port 0, once proposed as a way to disable pvpanic, is the DMA
controller's.

Source: QEMU, ``softmmu/memory.c``, ``mtree_print_mr``; seen on 1.5, 1.6, 1.7, 7.2 and 10.0.
"""

import re
from typing import Final

INDENTS: Final = {"I/O": 2, "address-space: I/O": 4}
"""How deep an address space's devices stand below its heading: up to 1.7, and later.

A more deeply nested region is part of a device; its address need not be the real one.
"""

_REGION: Final = re.compile(
    r"( *)([0-9a-f]{8,16})-([0-9a-f]{8,16}) \(prio -?\d+, ([^)]+)\): (.+)", re.IGNORECASE
)
_PORTS: Final = {"i/o", "RW"}


def devices_on(mtree: str, port: int) -> tuple[str, ...]:
    """Return the names of the regions of a machine that hold an I/O port, in their order.

    Args:
        mtree: what ``info mtree`` printed.
        port: the port.
    """
    indent, found = None, []
    for line in mtree.splitlines():
        region = _REGION.fullmatch(line)
        if region is None:
            indent = INDENTS.get(line, indent if line.startswith(" ") else None)
            continue
        depth, first, last, kind, name = region.groups()
        if len(depth) != indent or kind not in _PORTS or "[disabled]" in name:
            continue
        if int(first, 16) <= port <= int(last, 16):
            found.append(name)
    return tuple(found)
