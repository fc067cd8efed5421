"""Layout: a declared table of the members of a C structure, on x64.

Law: offsets and sizes stand in tables; whatever packs or unpacks is generated from them, and a test
compares every row with a C compiler. The structures are in `structs`, `v1_structs`, `offload_structs` and
`oob`.

Source: the x64 ABI of Windows: little-endian, pointers and handles of 8 bytes, natural alignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, calcsize
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview
"""What a reader takes; it changes nothing and keeps no reference."""


class Member(NamedTuple):
    """One member: its name as C would reach it from the structure, and where it is."""

    name: str
    offset: int
    code: str
    """Format of `struct`, without byte order: B, H, I, Q, h, or Ns for N raw bytes."""

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return calcsize("<" + self.code)


class Bits(NamedTuple):
    """One bit-field of an integer, counted from the least significant bit."""

    name: str
    shift: int
    width: int

    def of(self, value: int) -> int:
        """Give what the bit-field holds in `value`."""
        return (value >> self.shift) & ((1 << self.width) - 1)

    @property
    def limit(self) -> int:
        """Largest number it can hold."""
        return (1 << self.width) - 1


@dataclass(frozen=True)
class Layout:
    """A structure: `size` is its sizeof, `members` do not overlap and are in order.

    `views` are other names of the same bytes (members of a union); they are in no generated format.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    views: tuple[Member, ...] = ()

    def offset_of(self, name: str) -> int:
        """Bytes from the start of the structure to the member."""
        return self._named(name).offset

    def end_of(self, name: str) -> int:
        """Bytes from the start of the structure to the end of the member: NDIS_SIZEOF_THROUGH_FIELD."""
        member = self._named(name)
        return member.offset + member.size

    def struct(self, first: str = "", last: str = "", *, skip: tuple[str, ...] = ()) -> Struct:
        """Give a Struct of the members from `first` to `last` but those of `skip`.

        It counts from the start of the structure, whatever comes first, and ends behind the last member.
        """
        names = [member.name for member in self.members]
        begin = names.index(first) if first else 0
        end = names.index(last) + 1 if last else len(names)
        form, position = "<", 0
        for member in self.members[begin:end]:
            if member.name in skip:
                continue
            form += f"{member.offset - position}x{member.code}"
            position = member.offset + member.size
        return Struct(form)

    def within(self, name: str, offset: int) -> tuple[Member, ...]:
        """Give the members as those of the member `name` of a larger structure."""
        return tuple(Member(f"{name}.{inner}", offset + at, code) for inner, at, code in self.members)

    def _named(self, name: str) -> Member:
        for member in self.members + self.views:
            if member.name == name:
                return member
        raise KeyError(name)


OBJECT_HEADER = Layout(
    "NDIS_OBJECT_HEADER", 4, (Member("Type", 0, "B"), Member("Revision", 1, "B"), Member("Size", 2, "H"))
)

OBJECT_TYPE_DEFAULT = 0x80
OBJECT_TYPE_OFFLOAD = 0xA7
OBJECT_TYPE_OFFLOAD_ENCAPSULATION = 0xA8
