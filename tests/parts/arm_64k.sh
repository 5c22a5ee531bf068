#!/bin/sh
# Build a Linux for 64-bit Arm with pages of 64 KiB and addresses of 52 bits: Debian has none.
#
#     tests/parts/arm_64k.sh DIRECTORY
#     export PANICD_TEST_ARM_KERNEL=DIRECTORY/build/arch/arm64/boot/Image
#     .venv/bin/pytest tests/e2e/test_arm.py
#
# Debian's source (linux-source-6.12), little more than Linux' tinyconfig, with what panicd needs
# of a guest built in, and debug information for drgn. It takes 4 minutes of a processor, and 2.5 GB.
# Needs apt-get, make, gcc, flex, bison, bc, xz-utils, gcc-aarch64-linux-gnu.
set -eu

mkdir -p "$1"
cd "$1"
here=$PWD
if [ ! -d linux-source-6.12 ]; then
    apt-get download linux-source-6.12
    dpkg-deb --fsys-tarfile linux-source-6.12_*.deb |
        tar -xO ./usr/src/linux-source-6.12.tar.xz | tar -xJ
fi

linux() {
    make -s -C "$here/linux-source-6.12" O="$here/build" \
        ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- "$@"
}

linux tinyconfig
{
    for on in ARM64_64K_PAGES ARM64_VA_BITS_52 ARM64_PA_BITS_52 RELOCATABLE RANDOMIZE_BASE \
        SMP SUSPEND KEXEC CRASH_DUMP FW_CFG_SYSFS PCI PCI_HOST_GENERIC PVPANIC PVPANIC_PCI \
        PRINTK PRINTK_TIME PRINTK_CALLER BUG KALLSYMS TTY SERIAL_AMBA_PL011 \
        SERIAL_AMBA_PL011_CONSOLE MULTIUSER MODULES BINFMT_ELF BINFMT_SCRIPT BLK_DEV_INITRD \
        PROC_FS SYSFS MAGIC_SYSRQ ARM64_PAN POSIX_TIMERS FUTEX EPOLL SHMEM \
        DEBUG_KERNEL DEBUG_INFO_DWARF5; do
        echo "CONFIG_$on=y"
    done
    for off in VT INPUT HID_SUPPORT USB_SUPPORT I2C PTP_1588_CLOCK RD_BZIP2 RD_LZMA RD_XZ RD_LZO \
        RD_LZ4 RD_ZSTD; do
        echo "CONFIG_$off=n"
    done
} >>build/.config
linux olddefconfig
nice -n 10 make -s -C linux-source-6.12 O="$here/build" \
    ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- -j"$(nproc)" Image
