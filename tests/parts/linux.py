"""A real Linux guest that really panics: Debian's cloud kernel and an initramfs of our own.

The kernel is downloaded once by apt and unpacked into ``$PANICD_TEST_CACHE``, or else
``~/.cache/panicd-tests``; nothing is installed. The initramfs holds busybox, the modules for the
panic devices, and an init that ends in some trouble: ``echo c > /proc/sysrq-trigger``, if no other
is wanted (``tests.parts.linux_trouble``). It runs under TCG, where a panic takes some seconds:
under a nested KVM, Linux may stall.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts.apt import Apt, MissingError, need
from tests.parts.machines import Machine
from tests.parts.qemu import RealQemu

_META_PACKAGE = "linux-image-cloud-amd64"

_BUSYBOX_PLACES = ("/bin/busybox", "/usr/bin/busybox")

_MODULES = ("pvpanic", "pvpanic-mmio", "pvpanic-pci", "qemu_fw_cfg")
"""What the panic devices and vmcoreinfo need, in the order of loading; some may be built in."""

_SCRIPT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
for module in {modules}; do /bin/busybox insmod /$module.ko; done
{then}
"""

CRASH_KEY = "/bin/busybox echo c > /proc/sysrq-trigger"

_MEMORY = "128M"

BUSY_HOST = "no_timer_check"
"""Lets a kernel boot on a busy host (kernel-parameters.txt): without it, the kernel checks its
timer, and panics if that is too slow (IO-APIC + timer doesn't work)."""


@dataclass(frozen=True)
class Kernel:
    """A kernel and its modules.

    Attributes:
        image: The kernel, for ``-kernel``.
        modules: The files of the modules that are not built in, in the order of loading.
        busybox: A statically linked busybox.
        machine: What it runs on; None: a PC.
        console: The serial console's name.
    """

    image: Path
    modules: tuple[Path, ...]
    busybox: Path
    machine: Machine | None = None
    console: str = "ttyS0"


@dataclass(frozen=True)
class Trouble:
    """How a guest is made to panic.

    Attributes:
        then: What its init does once the panic devices have their drivers.
        append: Further arguments for its kernel.
        cpus: How many it has.
        module: A further module, which init loads itself.
        script: The file in its root that is its init; another one is run by its kernel.
    """

    then: str = CRASH_KEY
    append: str = ""
    cpus: int = 1
    module: Path | None = None
    script: str = "init"


@dataclass(frozen=True)
class LinuxGuest:
    """A QEMU with a Linux guest.

    Attributes:
        vm: The QEMU.
        console: The file with all that the guest wrote to its serial console.
    """

    vm: RealQemu
    console: Path


def find_kernel() -> Kernel:
    """The kernel to test with, downloaded if need be.

    Raises:
        MissingError: It can't be had; says why.
    """
    busybox = next((Path(place) for place in _BUSYBOX_PLACES if Path(place).exists()), None)
    if busybox is None:
        raise MissingError("no busybox: apt-get install busybox-static")
    unpacked = cache_directory() / "linux"
    with one_at_a_time():
        unpack_kernel(Apt(), _META_PACKAGE, unpacked)
    return Kernel(*kernel_in(unpacked), busybox)


def cache_directory() -> Path:
    """Where the tests' downloads are kept."""
    return Path(
        os.environ.get("PANICD_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "panicd-tests"
    )


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lock the downloads against other processes."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def linux_guest(
    directory: Path,
    kernel: Kernel,
    *,
    devices: Sequence[str] = ("pvpanic",),
    reboots_after: int = 0,
    paused: bool = False,
    proxied: bool = False,
    dial: Path | None = None,
    screen: bool = False,
    trouble: Trouble = Trouble(),
    extra: Sequence[str] = (),
) -> AsyncIterator[LinuxGuest]:
    """Start a Linux guest, which panics as soon as it has booted.

    Args:
        directory: For its files and sockets: the fixture ``socket_dir``.
        kernel: From :func:`find_kernel`.
        devices: The panic devices, a ``-device`` each.
        reboots_after: The kernel's ``panic=``: so many seconds after a panic the guest resets
            itself; 0: never.
        paused: As for ``RealQemu.start``.
        proxied: As for ``RealQemu.start``.
        dial: As for ``RealQemu.start``.
        screen: It has a VGA adapter, in text mode, with the kernel's console on it too.
        trouble: How it comes to panic.
        extra: Further arguments for QEMU.
    """
    # 60 lines, so that a panic and its trace are seen whole (admin-guide/svga.rst).
    words = ["vga=0x0f07 console=tty0"] if screen else []
    words += [f"console={kernel.console}", f"panic={reboots_after}", trouble.append]
    words += [] if kernel.machine else [BUSY_HOST]  # a PC's kernel
    initramfs, console = directory / "initramfs", directory / "console"
    initramfs.write_bytes(make_initramfs(kernel, trouble))
    async with RealQemu.start(
        directory,
        guest=None,
        devices=(*devices, "vmcoreinfo"),
        machine=kernel.machine,
        name="linux",
        paused=paused,
        proxied=proxied,
        dial=dial,
        accel="tcg",
        extra=(
            *("-m", _MEMORY, "-kernel", str(kernel.image), "-initrd", str(initramfs)),
            *("-append", " ".join(words)),
            *("-smp", str(trouble.cpus)),
            *(("-device", "VGA") if screen else ()),
            *("-serial", f"file:{console}"),
            *extra,
        ),
    ) as vm:
        yield LinuxGuest(vm, console)


def unpack_kernel(apt: Apt, meta_package: str, target: Path) -> None:
    """Have the kernel that a package depends on in a directory, downloaded unless it is there.

    Raises:
        MissingError: It can't be had; says why.
    """
    if target.exists():
        return
    need("apt-get", "apt-cache", "dpkg-deb")
    target.parent.mkdir(parents=True, exist_ok=True)
    found = [name for name in apt.depends(meta_package) if name.startswith("linux-image-")]
    if not found:
        raise MissingError(f"{meta_package} depends on no kernel")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        # After Debian 13 the kernel and its modules are in packages of their own.
        parts = ("linux-binary-", "linux-modules-")
        found[1:] = [name for name in apt.depends(found[0]) if name.startswith(parts)]
        apt.unpack(Path(scratch, "unpacked"), *found)
        Path(scratch, "unpacked").rename(target)


def kernel_in(unpacked: Path) -> tuple[Path, tuple[Path, ...]]:
    """The kernel in a directory, and those of the modules that are not built in.

    Raises:
        MissingError: There is none.
    """
    image = next(unpacked.rglob("vmlinuz*"), None)
    if image is None:
        raise MissingError(f"no kernel in {unpacked}, which may be deleted")
    found = (next(unpacked.rglob(f"{name}.ko*"), None) for name in _MODULES)
    return image, tuple(path for path in found if path is not None)


def make_initramfs(kernel: Kernel, trouble: Trouble) -> bytes:
    """A cpio archive in the 'newc' format, which the kernel unpacks as its root."""
    names = [_module_name(path) for path in kernel.modules]
    script = _SCRIPT.format(modules=" ".join(names), then=trouble.then).encode()
    modules = [*zip(names, kernel.modules, strict=True)]
    if trouble.module is not None:
        modules.append((_module_name(trouble.module), trouble.module))
    executable, file = stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    return b"".join(
        (
            *(_cpio_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "sbin")),
            _cpio_entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            _cpio_entry("bin/busybox", executable, kernel.busybox.read_bytes()),
            *(_cpio_entry(f"{name}.ko", file, _module(path)) for name, path in modules),
            _cpio_entry(trouble.script, executable, script),
            _cpio_entry("TRAILER!!!", 0),
        )
    )


def _cpio_entry(
    name: str, mode: int, contents: bytes = b"", *, device: tuple[int, int] = (0, 0)
) -> bytes:
    """One entry: thirteen hexadecimal fields, name, contents; each part padded to four bytes.

    The format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    inode = user = group = modified = checksum = disk = 0
    links = 1
    encoded = name.encode() + b"\0"
    fields = (
        *(inode, mode, user, group, links, modified, len(contents)),
        *(disk, disk, *device, len(encoded), checksum),
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0]


def _module(path: Path) -> bytes:
    packed = path.read_bytes()
    return lzma.decompress(packed) if path.suffix == ".xz" else packed
