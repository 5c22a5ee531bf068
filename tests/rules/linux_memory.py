"""The memory of a made-up Linux guest: page tables, a printk ring, and VMCOREINFO.

The ring is written as the kernel writes it (Linux, ``kernel/printk/printk_ringbuffer.c``): ids and
text positions count up and start shortly before they wrap around, the oldest records give way, and
a text that doesn't fit before the buffer's end goes to its beginning.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from panicd.rules.guest_memory.memory import PAGE
from panicd.rules.guest_memory.reading import NotReadableError, ReadRequest
from panicd.rules.guest_memory.vmcoreinfo import Vmcoreinfo

T = TypeVar("T")

U64 = (1 << 64) - 1
IDS = (1 << 62) - 1
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
FAILED, EMPTY = 1, 3  # text positions without a block
IMAGE = 0xFFFFFFFF80000000
DIRECT_MAP = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}

# Where the kernel's own things lie in guest-physical memory.
TEXT_BASE = 0x2000_0000
TOP_TABLE = TEXT_BASE + 0x1000
RING_POINTER = TEXT_BASE + 0x2C8
RING = TEXT_BASE + 0x3FE0  # across the end of a page
DESCRIPTORS, INFOS, TEXTS = 0x2010_0000, 0x2020_0100, 0x2030_0000
TABLES = 0x5000_0000

# The layout of Linux 6.1 on x86-64.
LAYOUT = {
    "printk_ringbuffer": (88, {"desc_ring": 0, "text_data_ring": 48, "fail": 80}),
    "prb_desc_ring": (48, {"count_bits": 0, "descs": 8, "infos": 16, "head_id": 24, "tail_id": 32}),
    "prb_desc": (24, {"state_var": 0, "text_blk_lpos": 8}),
    "prb_data_blk_lpos": (16, {"begin": 0, "next": 8}),
    "printk_info": (88, {"seq": 0, "ts_nsec": 8, "text_len": 16, "caller_id": 20, "dev_info": 24}),
    "prb_data_ring": (32, {"size_bits": 0, "data": 8, "head_lpos": 16, "tail_lpos": 24}),
}
# What a later kernel might make of it.
OTHER_LAYOUT = {
    "printk_ringbuffer": (120, {"fail": 0, "text_data_ring": 8, "desc_ring": 56}),
    "prb_desc_ring": (
        64,
        {"tail_id": 0, "head_id": 8, "infos": 24, "descs": 40, "count_bits": 56},
    ),
    "prb_desc": (40, {"text_blk_lpos": 8, "state_var": 32}),
    "prb_data_blk_lpos": (24, {"next": 0, "begin": 16}),
    "printk_info": (104, {"caller_id": 4, "text_len": 8, "ts_nsec": 16, "seq": 96, "dev_info": 24}),
    "prb_data_ring": (48, {"tail_lpos": 0, "head_lpos": 8, "data": 24, "size_bits": 40}),
}


@dataclass(frozen=True)
class Message:
    """What was logged."""

    text: bytes
    timestamp_ns: int = 0
    level: int = 6
    facility: int = 0
    caller: int = 1


@dataclass
class LinuxMemory:
    """A guest. Log into it, then ``read``.

    Attributes:
        count_bits: The ring has room for 2**count_bits records,
        size_bits: and for 2**size_bits bytes of text.
        allocated: The ring's buffers lie where the kernel allocated them, and not in its image.
        large: log2 of the pages that map what was allocated.
        levels: Of the page tables.
        fills_to_the_end: A text may end where the buffer does, as since Linux 6.18.
        edits: Entries of VMCOREINFO that differ; None: missing.
        pages: Guest-physical memory.
    """

    count_bits: int = 6
    size_bits: int = 12
    allocated: bool = False
    large: int = 21
    levels: int = 4
    fills_to_the_end: bool = False
    layout: Mapping[str, tuple[int, Mapping[str, int]]] = field(default_factory=lambda: LAYOUT)
    edits: dict[str, str | None] = field(default_factory=dict)
    pages: dict[int, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._phys_base = TEXT_BASE - 0x3200_0000  # below zero, as KASLR may have it
        self._next_table = TABLES
        self._sequence = 0
        self._head = self._tail = -(self.count + 1) & IDS
        self._head_lpos = self._tail_lpos = -self.size & U64
        self._blocks: list[tuple[int, int]] = []  # id and end, of the texts that are there
        self.set_descriptor(self._tail, REUSABLE, FAILED, FAILED)
        self._write_ring()

    @property
    def count(self) -> int:
        return 1 << self.count_bits

    @property
    def size(self) -> int:
        return 1 << self.size_bits

    # -- memory

    def read(self, physical: int, length: int) -> bytes:
        assert physical % PAGE == length % PAGE == 0
        assert length > 0
        data = b""
        for page in range(physical, physical + length, PAGE):
            if page not in self.pages:
                raise NotReadableError(f"QEMU: nothing at {page:#x}")
            data += self.pages[page]
        return data

    def write(self, physical: int, data: bytes) -> None:
        for offset, byte in enumerate(data, physical):
            page = self.pages.setdefault(offset // PAGE * PAGE, bytearray(PAGE))
            page[offset % PAGE] = byte

    def write_number(self, physical: int, number: int, width: int = 8) -> None:
        self.write(physical, number.to_bytes(width, "little"))

    def number(self, physical: int) -> int:
        page = self.pages.get(physical // PAGE * PAGE, bytes(PAGE))
        return int.from_bytes(page[physical % PAGE :][:8], "little")

    def image_address(self, physical: int) -> int:
        return IMAGE + physical - self._phys_base

    def buffer_address(self, physical: int) -> int:
        return (
            DIRECT_MAP[self.levels] + physical if self.allocated else self.image_address(physical)
        )

    def map(self, address: int, physical: int) -> None:
        """Map the page of an address, with all the tables that lead to it."""
        shifts = [12 + 9 * level for level in range(self.levels)][::-1]
        table = TOP_TABLE
        for shift in shifts:
            entry = table + 8 * (address >> shift & 511)
            if shift == self.large:
                large = 0x80 if shift > 12 else 0
                self.write_number(entry, physical >> shift << shift | large | 1 | 1 << 63)
                return
            if not self.number(entry) & 1:
                self.write_number(entry, self._next_table | 0x63)
                self._next_table += PAGE
            table = self.number(entry) & 0xFFFFFFFFFF000

    # -- the ring

    def log(self, message: Message, state: int = FINALIZED) -> None:
        """Write a record, as printk() does."""
        id_ = self._head + 1 & IDS
        if id_ - self._tail & IDS >= self.count:
            self._give_way()
        self._head = id_
        begin, end = self._allocate(id_, message.text)
        self.set_descriptor(id_, state, begin, end)
        size, at = self._structure("printk_info")
        info = INFOS + id_ % self.count * size
        self.write_number(info + at["seq"], self._sequence)
        self.write_number(info + at["ts_nsec"], message.timestamp_ns)
        self.write_number(info + at["text_len"], len(message.text), 2)
        self.write_number(info + at["text_len"] + 2, message.facility, 1)
        self.write_number(info + at["text_len"] + 3, message.level << 5 | 0b10101, 1)
        self.write_number(info + at["caller_id"], message.caller, 4)
        self._sequence += 1
        self._write_ring()

    def set_descriptor(self, id_: int, state: int, begin: int, end: int) -> None:
        size, at = self._structure("prb_desc")
        descriptor = DESCRIPTORS + id_ % self.count * size
        self.write_number(descriptor + at["state_var"], state << 62 | id_)
        _, position = self._structure("prb_data_blk_lpos")
        self.write_number(descriptor + at["text_blk_lpos"] + position["begin"], begin)
        self.write_number(descriptor + at["text_blk_lpos"] + position["next"], end)

    def last_id(self) -> int:
        return self._head

    def _structure(self, name: str) -> tuple[int, Mapping[str, int]]:
        return self.layout[name]

    def _give_way(self) -> None:
        """The oldest record's place is needed."""
        if self._blocks and self._blocks[0][0] == self._tail:
            self._drop_block()
        self._tail = self._tail + 1 & IDS

    def _drop_block(self) -> None:
        """The oldest text's place is needed: its record is none any longer."""
        id_, end = self._blocks.pop(0)
        size, at = self._structure("prb_desc")
        self.write_number(
            DESCRIPTORS + id_ % self.count * size + at["state_var"], REUSABLE << 62 | id_
        )
        self._tail_lpos = end

    def _allocate(self, id_: int, text: bytes) -> tuple[int, int]:
        if not text:
            return EMPTY, EMPTY
        length = -(-(8 + len(text)) // 8) * 8
        begin = self._head_lpos
        end = begin + length & U64
        last = end - 1 & U64 if self.fills_to_the_end else end
        wrapped = last // self.size != begin // self.size
        if wrapped:
            end = (end // self.size * self.size) + length & U64
        while (end - self._tail_lpos & U64) > self.size:
            self._drop_block()
        self._head_lpos = end
        self._blocks.append((id_, end))
        self.write(TEXTS + (0 if wrapped else begin % self.size), id_.to_bytes(8, "little") + text)
        return begin, end

    def _write_ring(self) -> None:
        self.write_number(RING_POINTER, self.image_address(RING))
        _, parts = self._structure("printk_ringbuffer")
        _, at = self._structure("prb_desc_ring")
        ring = RING + parts["desc_ring"]
        self.write_number(ring + at["count_bits"], self.count_bits, 4)
        self.write_number(ring + at["descs"], self.buffer_address(DESCRIPTORS))
        self.write_number(ring + at["infos"], self.buffer_address(INFOS))
        self.write_number(ring + at["head_id"], self._head)
        self.write_number(ring + at["tail_id"], self._tail)
        _, at = self._structure("prb_data_ring")
        ring = RING + parts["text_data_ring"]
        self.write_number(ring + at["size_bits"], self.size_bits, 4)
        self.write_number(ring + at["data"], self.buffer_address(TEXTS))
        self.write_number(ring + at["head_lpos"], self._head_lpos)
        self.write_number(ring + at["tail_lpos"], self._tail_lpos)

    # -- what the kernel tells

    def finish(self) -> None:
        """Map what was allocated, and have memory wherever the kernel may look."""
        for start, length in (
            (DESCRIPTORS, self.count * self._structure("prb_desc")[0]),
            (INFOS, self.count * self._structure("printk_info")[0]),
            (TEXTS, self.size),
        ):
            for page in range(start // PAGE * PAGE, start + length, PAGE):
                self.pages.setdefault(page, bytearray(PAGE))
                if self.allocated:
                    self.map(self.buffer_address(page), page)

    def note(self) -> bytes:
        """VMCOREINFO."""
        entries: dict[str, str | None] = {
            "OSRELEASE": "6.1.0-test",
            "PAGESIZE": "4096",
            "SYMBOL(swapper_pg_dir)": f"{self.image_address(TOP_TABLE):x}",
            "SYMBOL(prb)": f"{self.image_address(RING_POINTER):x}",
            "NUMBER(phys_base)": f"{self._phys_base}",
            "NUMBER(pgtable_l5_enabled)": f"{int(self.levels == 5)}",
            "NUMBER(sme_mask)": "0",
        }
        for name, (size, members) in self.layout.items():
            entries[f"SIZE({name})"] = f"{size}"
            entries |= {f"OFFSET({name}.{member})": f"{at}" for member, at in members.items()}
        entries |= self.edits
        lines = (f"{key}={value}\n" for key, value in entries.items() if value is not None)
        return "".join(lines).encode()

    def info(self) -> Vmcoreinfo:
        return Vmcoreinfo.parse(self.note())


@dataclass
class Served:
    """How much was asked for."""

    requests: list[ReadRequest] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(request.length for request in self.requests)


class GuestMemory(Protocol):
    """Whatever has pages that can be read."""

    def read(self, physical: int, length: int) -> bytes:
        """Return whole pages."""


def serve(
    reader: Generator[ReadRequest, bytes, T], memory: GuestMemory, served: Served | None = None
) -> T:
    """Serve a reader from memory to its end, and return what it read."""
    served = served or Served()
    try:
        request = next(reader)
        while True:
            served.requests.append(request)
            try:
                data = memory.read(request.physical, request.length)
            except NotReadableError as error:
                request = reader.throw(error)
            else:
                request = reader.send(data)
    except StopIteration as end:
        result: T = end.value
        return result


def messages(*texts: str) -> Iterator[Message]:
    for number, text in enumerate(texts):
        yield Message(text.encode(), timestamp_ns=number * 1_500_000_000)
