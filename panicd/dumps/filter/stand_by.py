"""Waits, with all loaded that the ELF filter needs, for the dump that it is to filter: a program.

Its argument is the number of a socket. There it gets one message: the filter's arguments, with
the input and the output as descriptors (unix(7), SCM_RIGHTS). It answers with the exit status, when
all is written and before the kernel takes back its memory. If nobody needs it any more, the socket
ends, and so does the program.
"""

import errno
import os
import socket
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

from panicd.dumps.filter import elf_filter

MESSAGE: Final = 1 << 16  # bytes; a dump's text about itself has some hundreds
SEPARATOR: Final = "\0"
_PAGE: Final = 4096


def main(arguments: list[str]) -> int:
    """Wait, then filter; return the exit status."""
    (number,) = arguments
    _warm_up()
    with socket.socket(fileno=int(number)) as orders:
        said, files, flags, _ = socket.recv_fds(orders, MESSAGE, 2)
        if not said:
            return 0
        if flags & socket.MSG_TRUNC:
            return errno.EMSGSIZE
        if len(files) != 2:  # the kernel had no room for them
            return errno.EMFILE
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        status = elf_filter.main(said.decode(errors="surrogateescape").split(SEPARATOR))
        with suppress(OSError):  # panicd has ended
            orders.send(bytes([status]))
    return status


def _warm_up() -> None:
    """Do once what the filter does; standard output is nowhere yet.

    What runs for the first time waits for its code to be mapped, and a filter's end is short.
    """
    text = zlib.decompress(zlib.compress(Path(os.__file__).read_bytes()))
    output = elf_filter.Packed(b"")
    for start in range(0, len(text), _PAGE):
        output.write(text[start : start + _PAGE])
    output.skip(2 * elf_filter.RUN)
    output.end()
