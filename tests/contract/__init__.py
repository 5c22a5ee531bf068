"""What panicd relies on in a QEMU 7.2 or later. Each test runs on the fake and on a real one."""
