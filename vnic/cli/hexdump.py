"""Bytes for a person: offset, hexadecimal, printable characters.

Law: bytes to text.
"""

from __future__ import annotations

COLUMNS = 16


def dump(data: bytes, indent: str = "    ") -> str:
    """Write bytes, 16 a line."""
    lines = []
    for offset in range(0, len(data), COLUMNS):
        row = data[offset : offset + COLUMNS]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{indent}{offset:04x}  {row.hex(' '):<{COLUMNS * 3 - 1}}  {shown}\n")
    return "".join(lines)
