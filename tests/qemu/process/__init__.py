"""The process behind a monitor: ``panicd.qemu.process``."""
