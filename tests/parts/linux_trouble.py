"""The troubles that a real Linux guest panics of, and the module that makes some of them.

The module is built once for the kernel of ``tests.parts.linux``, with gcc and the kernel's own
headers, which apt downloads; nothing is installed.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.parts.linux import Kernel, LinuxMissingError, Trouble, cache_directory, run

_SOURCE = Path(__file__).parent / "trouble" / "trouble.c"


@dataclass(frozen=True)
class Kind:
    """A kind of panic.

    Attributes:
        line: What the line that says why begins with.
        title: Of its signature.
        frame: The first of its functions; empty: whichever.
        then: As for ``Trouble``, as the rest.
    """

    line: str
    title: str
    frame: str = ""
    then: str = ""
    append: str = ""
    cpus: int = 1
    script: str = "init"


def _load(kind: str, *settings: str) -> str:
    written = [f"/bin/busybox sysctl -w {setting}" for setting in settings]
    return "\n".join([*written, f"/bin/busybox insmod /trouble.ko kind={kind}", _STAY])


_STAY = "while true; do /bin/busybox sleep 1; done"

KINDS = {
    "null": Kind(
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "NULL pointer dereference",
        "write_to_nowhere",
        _load("null", "kernel.panic_on_oops=1"),
    ),
    "bug": Kind(
        "kernel BUG at ",
        "kernel BUG at trouble.c",
        "meet_a_bug",
        _load("bug", "kernel.panic_on_oops=1"),
    ),
    "warn": Kind(
        "WARNING: CPU: 0 PID: ",
        "WARNING at trouble.c",
        "warn_of_something",
        _load("warn", "kernel.panic_on_warn=1"),
    ),
    "stuck": Kind(
        "watchdog: BUG: soft lockup - CPU#",
        "soft lockup",
        "never_give_way",
        _load(
            "stuck",
            "kernel.watchdog_thresh=2",
            "kernel.softlockup_all_cpu_backtrace=1",
            "kernel.softlockup_panic=1",
        ),
        cpus=4,
    ),
    "hung": Kind(
        "INFO: task waiter:",
        "hung task",
        "wait_for_ever",
        _load("hung", "kernel.hung_task_timeout_secs=2", "kernel.hung_task_panic=1"),
    ),
    "init": Kind("Kernel panic - not syncing: Attempted to kill init!", "init killed"),
    "memory": Kind(
        "Kernel panic - not syncing: Out of memory",
        "out of memory",
        then="\n".join(
            [
                "/bin/busybox sysctl -w vm.panic_on_oom=1",
                "/bin/busybox mount -t ramfs none /sbin",
                "/bin/busybox yes > /sbin/full",
                _STAY,
            ]
        ),
    ),
    "root": Kind(
        "Kernel panic - not syncing: VFS: Unable to mount root fs",
        "no root file system",
        # Its kernel runs this to find a module for the file system.
        append="root=/dev/nowhere rootfstype=nosuchfs",
        script="sbin/modprobe",
    ),
}


def make_trouble(kind: Kind, kernel: Kernel) -> Trouble:
    """How a guest comes to panic of a kind.

    Raises:
        LinuxMissingError: The module for it can't be had here; says why.
    """
    module = _built_module(kernel) if "trouble.ko" in kind.then else None
    return Trouble(kind.then, kind.append, kind.cpus, module, kind.script)


def _built_module(kernel: Kernel) -> Path:
    release = kernel.image.name.removeprefix("vmlinuz-")
    source = _SOURCE.read_bytes()
    target = cache_directory() / f"trouble-{release}" / "trouble.ko"
    if target.exists() and target.with_name("trouble.c").read_bytes() == source:
        return target
    for tool in ("gcc", "make"):
        if shutil.which(tool) is None:
            raise LinuxMissingError(f"no {tool}, with which a module for the guest is built")
    with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
        headers = _headers(Path(scratch), release)
        module = Path(scratch, "trouble")
        module.mkdir()
        Path(module, "trouble.c").write_bytes(source)
        Path(module, "Kbuild").write_text("obj-m := trouble.o\n")
        no_types = "CONFIG_DEBUG_INFO_BTF_MODULES="  # they take pahole
        run(scratch, "make", "-C", str(headers), f"M={module}", "CC=gcc", no_types, "modules")
        shutil.rmtree(target.parent, ignore_errors=True)
        module.rename(target.parent)
    return target


def _headers(scratch: Path, release: str) -> Path:
    package = f"linux-headers-{release}"
    depends = run(scratch, "apt-cache", "depends", "--important", package).split()
    others = [name for name in depends if name.startswith(("linux-headers-", "linux-kbuild-"))]
    run(scratch, "apt-get", "download", *{package, *others})
    root = scratch / "root"
    for archive in scratch.glob("*.deb"):
        run(scratch, "dpkg-deb", "-x", archive.name, str(root))
    headers = root / "usr" / "src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("include /usr/", f"include {root}/usr/"))
    return headers
