"""What panicd relies on in QEMU, asserted of a real QEMU and of the fake alike."""
