"""What panicd relies on in a QEMU 7.2 or later. Each test runs on the fake and on a real one.

``test_exchange`` has what it relies on in a VM whichever way that is reached: by a QMP monitor or
by libvirt, each a fake and a real one.
"""
