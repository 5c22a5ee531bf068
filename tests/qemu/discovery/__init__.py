"""Finding monitors: ``panicd.qemu.discovery``."""
