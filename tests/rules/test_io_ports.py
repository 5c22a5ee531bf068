import pytest

from panicd.rules.io_ports import devices_on

# Shortened from QEMU 7.2's, with -device pvpanic,ioport=0.
MTREE = """\
address-space: cpu-memory-0
  0000000000000000-ffffffffffffffff (prio 0, i/o): system

address-space: I/O
  0000000000000000-000000000000ffff (prio 0, i/o): io
    0000000000000000-0000000000000000 (prio 0, i/o): pvpanic
      0000000000000000-0000000000000003 (prio 0, i/o): acpi-evt
    0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
    0000000000000020-0000000000000021 (prio 0, i/o): pic
    0000000000000505-0000000000000505 (prio 0, i/o): acpi-off [disabled]

address-space: elsewhere
    0000000000000505-0000000000000505 (prio 0, i/o): not a port
"""


@pytest.mark.parametrize(
    ("port", "expected"),
    [(0, ("pvpanic", "dma-chan")), (1, ("dma-chan",)), (0x21, ("pic",)), (0x505, ())],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_who_has_a_port(port: int, expected: tuple[str, ...], line_end: str) -> None:
    assert devices_on(MTREE.replace("\n", line_end), port) == expected


# As QEMU 1.5, 1.6 and 1.7 print it: each space's own region stands at the margin.
OLD_MTREE = """\
memory
0000000000000000-7ffffffffffffffe (prio 0, RW): system
  0000000000000000-0000000000ffffff (prio 0, RW): alias ram-below-4g @pc.ram
I/O
0000000000000000-000000000000ffff (prio 0, RW): io
  0000000000000000-0000000000000000 (prio 0, RW): pvpanic
  0000000000000000-0000000000000007 (prio 0, RW): dma-chan
    0000000000000000-0000000000000003 (prio 0, RW): acpi-evt
  0000000000000008-000000000000000f (prio 0, RW): dma-cont
  0000000000000081-0000000000000083 (prio 0, RW): alias dma-page @dma-page 81-83
dma-page
0000000000000000-7ffffffffffffffe (prio 0, RW): dma-page
  0000000000000000-0000000000000000 (prio 0, RW): not a port
"""


@pytest.mark.parametrize(
    ("port", "expected"), [(0, ("pvpanic", "dma-chan")), (8, ("dma-cont",)), (0x505, ())]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_who_has_a_port_of_an_old_qemu(port: int, expected: tuple[str, ...], line_end: str) -> None:
    assert devices_on(OLD_MTREE.replace("\n", line_end), port) == expected


@pytest.mark.parametrize("nonsense", ["", "address-space: I/O", "unknown command: 'info mtree'"])
def test_what_is_no_map_has_no_devices(nonsense: str) -> None:
    assert devices_on(nonsense, 0) == ()
