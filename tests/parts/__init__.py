"""What tests are built from: a real QEMU, a fake one, a QMP client and a proxy of their own."""
