"""Logs of a made-up Linux guest, written and read."""

from panicd.rules.guest_memory.memory import Limits
from panicd.rules.kernel_log import KernelLog, read_log
from tests.rules.linux_memory import LinuxMemory, Served, messages, serve

LIMITS = Limits(lines=60)
PANIC = "Kernel panic - not syncing: sysrq triggered crash"


def guest(*texts: str, **properties: object) -> LinuxMemory:
    memory = LinuxMemory(**properties)  # type: ignore[arg-type]  # whichever the test is about
    for message in messages(*texts):
        memory.log(message)
    memory.finish()
    return memory


def read(memory: LinuxMemory, limits: Limits = LIMITS, served: Served | None = None) -> KernelLog:
    return serve(read_log(memory.info(), limits), memory, served)


def texts(log: KernelLog) -> list[str]:
    return [line.text for line in log.lines]
