"""A real Linux guest on 64-bit Arm, under TCG: Debian's cloud kernel, as ``tests.parts.linux``.

Debian builds its arm64 kernels without a driver for a panic device (CONFIG_PVPANIC), so the guest
brings one of the tests' own.

Debian has none with pages of 64 KiB: ``tests/parts/arm_64k.sh`` builds one, with the drivers in it,
and ``PANICD_TEST_ARM_KERNEL`` has the tests take its image.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.parts.apt import Apt, need
from tests.parts.linux import Kernel, cache_directory, kernel_in, one_at_a_time, unpack_kernel
from tests.parts.linux_module import built_module
from tests.parts.machines import PVPANIC_PCI, Machine

_QEMU = "qemu-system-aarch64"
_CROSS = ("arm64", "aarch64-linux-gnu-")
_CPU = "max,pauth-impdef=on"  # with the architected algorithm, TCG takes twice as long


def find_arm_kernel() -> Kernel:
    """The kernel to test with, downloaded if need be.

    Raises:
        MissingError: It can't be had here; says why.
    """
    need(_QEMU, "apt-get")
    home = cache_directory() / "linux-arm64"
    kernel, busybox = home / "kernel", home / "busybox"
    machine = Machine(_QEMU, "virt", _CPU, (PVPANIC_PCI,))
    with one_at_a_time():
        apt = Apt.of("arm64", home / "apt")
        if not busybox.exists():
            apt.unpack(busybox, "busybox-static")
        program = next(busybox.glob("**/bin/busybox"))
        if own := os.environ.get("PANICD_TEST_ARM_KERNEL"):
            return Kernel(Path(own), (), program, machine, "ttyAMA0")
        unpack_kernel(apt, "linux-image-cloud-arm64", kernel)
        image, modules = kernel_in(kernel)
        driver = built_module("pvpanic", image, apt, cross=_CROSS)
    return Kernel(image, (*modules, driver), program, machine, "ttyAMA0")
