"""The kernel's ring buffer of log records, since Linux 5.10.

A record is a descriptor, an info of the same index, and a block of text. Descriptors have ids that
count up. If a descriptor's state or a text block does not bear that id, the record is being written
or was overwritten.

Source: Linux, ``kernel/printk/printk_ringbuffer.[ch]``, 5.10 and later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from panicd.rules.guest_memory.memory import PAGE, VirtualMemory
from panicd.rules.guest_memory.reading import NotReadableError, Reading
from panicd.rules.guest_memory.vmcoreinfo import Structure, Vmcoreinfo

MAX_TEXT: Final = 2048  # bytes kept of a record: Linux, PRINTK_MESSAGE_MAX

_LONG: Final = 8  # bytes; of a pointer too
_LONG_MASK: Final = (1 << 64) - 1
_ID_BITS: Final = 62  # of a descriptor's state; the two above are the state itself
_ID_MASK: Final = (1 << _ID_BITS) - 1
_COMMITTED: Final = 1
_FINALIZED: Final = 2
_REUSABLE: Final = 3
_EMPTY_LINE: Final = 3  # a text position of a record without text
_NO_BLOCK: Final = 1  # in a text position: there is no block
_MAX_BITS: Final = 31  # Linux, LOG_BUF_LEN_MAX
_CALLER_IS_CPU: Final = 1 << 31
_TEXT_LENGTH: Final = 0xFFFF  # the bits of it beside what kind of record it is


class Record(NamedTuple):
    """A log record.

    Attributes:
        seq: its number since boot.
        timestamp_ns: the kernel's own clock, nanoseconds since boot.
        level: 0 (emergency) to 7 (debug).
        facility: 0: the kernel itself; anything else was written to /dev/kmsg.
        caller: ``T1``: the task with that number; ``C0``: that CPU, in an interrupt.
        text: at most ``MAX_TEXT`` bytes.
    """

    seq: int
    timestamp_ns: int
    level: int
    facility: int
    caller: str
    text: bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a record's text in the text buffer; ``length`` includes the id before it."""

    id: int
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


class PrintkRing:
    """The ring buffer, opened with ``open_ring``.

    Attributes:
        count: how many records it holds, readable or not.
        lost: how many of the records read were incomplete or overwritten.
    """

    def __init__(self, memory: VirtualMemory, layout: "_Layout", ring: bytes) -> None:
        descriptors = layout.ring.part(ring, "desc_ring")
        texts = layout.ring.part(ring, "text_data_ring")
        count_bits = layout.descriptors.unsigned(descriptors, "count_bits")
        size_bits = layout.texts.unsigned(texts, "size_bits")
        if not (0 < count_bits <= _MAX_BITS and 0 < size_bits <= _MAX_BITS):
            raise NotReadableError(f"a ring of 2^{count_bits} records, 2^{size_bits} bytes")
        self._memory = memory
        self._layout = layout
        self._capacity = 1 << count_bits
        self._size_bits = size_bits
        self._descriptors = layout.descriptors.unsigned(descriptors, "descs")
        self._infos = layout.descriptors.unsigned(descriptors, "infos")
        self._texts = layout.texts.unsigned(texts, "data")
        self._newest = layout.descriptors.unsigned(descriptors, "head_id") & _ID_MASK
        oldest = layout.descriptors.unsigned(descriptors, "tail_id") & _ID_MASK
        self.count = (self._newest - oldest & _ID_MASK) + 1
        self.lost = 0
        if self.count > self._capacity:
            raise NotReadableError(f"a ring of {self._capacity} records holds {self.count}")

    def read(self, skip: int, count: int) -> Reading[list[Record]]:
        """Return records, oldest first, without incomplete ones.

        Args:
            skip: how many of the newest to leave out.
            count: how many to read.

        Raises:
            NotReadableError: the ring's memory can't be read.
        """
        layout = self._layout
        first = self._newest - skip - count + 1
        descriptors = yield from self._entries(self._descriptors, layout.descriptor, first, count)
        infos = yield from self._entries(self._infos, layout.info, first, count)
        ids = [id_ & _ID_MASK for id_ in range(first, first + count)]
        states = layout.descriptor.column(descriptors, "state_var")
        begins = layout.positions.column(descriptors, "begin")
        ends = layout.positions.column(descriptors, "next")
        lengths = layout.info.column(infos, "text_len")
        places = []
        for id_, state, begin, end, length in zip(ids, states, begins, ends, lengths, strict=True):
            if state == _REUSABLE << _ID_BITS | id_:
                self.lost -= 1  # the oldest descriptor may no longer be a record
            elif state in {_COMMITTED << _ID_BITS | id_, _FINALIZED << _ID_BITS | id_}:
                places += self._place(id_, begin, end, length & _TEXT_LENGTH)
        texts = yield from self._read_texts(places)
        self.lost += count - len(texts)
        sequence = layout.info.column(infos, "seq")
        times = layout.info.column(infos, "ts_nsec")
        callers = layout.info.column(infos, "caller_id")
        described = zip(ids, sequence, times, lengths, callers, strict=True)
        return [
            _record(seq, time, length, caller, texts[id_])
            for id_, seq, time, length, caller in described
            if id_ in texts
        ]

    def _entries(self, array: int, entry: Structure, first: int, count: int) -> Reading[bytes]:
        """Return the entries of an array that belong to ``count`` ids, which may wrap around."""
        start = first % self._capacity
        before_end = min(count, self._capacity - start)
        data = yield from self._memory.read(array + start * entry.size, before_end * entry.size)
        data += yield from self._memory.read(array, (count - before_end) * entry.size)
        return data

    def _place(self, id_: int, begin: int, end: int, text_length: int) -> list[_Place]:
        """Return the place of a record's text; empty if it has no plausible block.

        Args:
            id_: its descriptor's id.
            begin: its block's position, as the descriptor has it.
            end: the next block's position.
            text_length: the text's length in bytes.
        """
        if begin == end == _EMPTY_LINE:
            return [_Place(id_, 0, 0)]
        if begin & _NO_BLOCK or end & _NO_BLOCK:
            return []
        # Positions count up and, soon after boot, past 2^64. The last byte's position tells the
        # wrap: a block may fill the buffer to its end (Linux 6.18 and later).
        size = 1 << self._size_bits
        last = end - 1 & _LONG_MASK
        wraps = (last >> self._size_bits) - (begin >> self._size_bits) & _LONG_MASK // size
        match wraps:
            case 0:
                start, room = begin % size, end - begin & _LONG_MASK
            case 1:  # the block did not fit before the buffer's end
                start, room = 0, last % size + 1
            case _:
                return []
        length = _LONG + text_length
        if length > room or start + length > size:
            return []
        return [_Place(id_, start, min(length, _LONG + MAX_TEXT))]

    def _read_texts(self, places: Sequence[_Place]) -> Reading[dict[int, bytes]]:
        """Return texts by their records' ids, with a few large requests instead of many small."""
        texts = {place.id: b"" for place in places if not place.length}
        group: list[_Place] = []
        blocks = sorted((place for place in places if place.length), key=lambda place: place.start)
        for place in blocks:
            if group and place.start - group[-1].stop > PAGE:
                texts |= yield from self._read_group(group)
                group = []
            group.append(place)
        if group:
            texts |= yield from self._read_group(group)
        return texts

    def _read_group(self, group: list[_Place]) -> Reading[dict[int, bytes]]:
        start = group[0].start
        length = max(place.stop for place in group) - start
        data = yield from self._memory.read(self._texts + start, length)
        blocks = {place.id: data[place.start - start : place.stop - start] for place in group}
        return {
            id_: block[_LONG:]
            for id_, block in blocks.items()
            if int.from_bytes(block[:_LONG], "little") == id_
        }


def open_ring(memory: VirtualMemory, info: Vmcoreinfo) -> Reading[PrintkRing]:
    """Return the kernel's ring buffer.

    Raises:
        NotReadableError: there is no plausible one.
    """
    layout = _Layout(info)
    pointer = yield from memory.read(info.symbol("prb"), _LONG)
    address = int.from_bytes(pointer, "little")
    return PrintkRing(memory, layout, (yield from memory.read(address, layout.ring.size)))


class _Layout:
    """The structures that the ring is made of."""

    def __init__(self, info: Vmcoreinfo) -> None:
        self.descriptors = info.structure(
            "prb_desc_ring",
            {"count_bits": 4, "descs": _LONG, "infos": _LONG, "head_id": _LONG, "tail_id": _LONG},
        )
        self.texts = info.structure("prb_data_ring", {"size_bits": 4, "data": _LONG})
        self.ring = info.structure(
            "printk_ringbuffer",
            {"desc_ring": self.descriptors.size, "text_data_ring": self.texts.size},
        )
        position = info.structure("prb_data_blk_lpos", {"begin": _LONG, "next": _LONG})
        self.descriptor = info.structure(
            "prb_desc", {"state_var": _LONG, "text_blk_lpos": position.size}
        )
        self.positions = self.descriptor.inner("text_blk_lpos", position)
        # Behind text_len's 16 bits lie facility (8), flags (5) and level (3), without an offset
        # of their own.
        self.info = info.structure(
            "printk_info", {"seq": 8, "ts_nsec": 8, "text_len": 4, "caller_id": 4}
        )


def _record(seq: int, time: int, length_and_kind: int, caller: int, text: bytes) -> Record:
    return Record(
        seq,
        time,
        length_and_kind >> 29,
        length_and_kind >> 16 & 0xFF,
        f"C{caller - _CALLER_IS_CPU}" if caller & _CALLER_IS_CPU else f"T{caller}",
        text,
    )
