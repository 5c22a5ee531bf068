"""A stopped guest's own words on its panic, read from its memory, whichever system it is."""

from panicd.rules.guest_memory.dump_file import find_vmcoreinfo
from panicd.rules.guest_memory.memory import Limits
from panicd.rules.guest_memory.reading import Reading
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo
from panicd.rules.guest_memory.windows import WindowsCrash, WindowsHeader, read_crash
from panicd.rules.kernel_log import KernelLog, read_log

GuestWords = KernelLog | WindowsCrash


def read_guest_words(notes: bytes, limits: Limits) -> Reading[GuestWords]:
    """Read the end of a Linux guest's log, or a Windows guest's bug check.

    Args:
        notes: the notes of a dump of the guest.
        limits: how much the reading may cost.

    Raises:
        NotReadableError: neither can be read; the text says why.
    """
    header = WindowsHeader.find(notes)
    if header is not None:
        return (yield from read_crash(header, limits))
    return (yield from read_log(Vmcoreinfo.parse(find_vmcoreinfo(notes)), limits))
