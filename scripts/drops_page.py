"""Write docs/drops.md from the table of drop reasons. Run it after a change of the table."""

from __future__ import annotations

from pathlib import Path

from vnic.ipsec.drops import DropReason

PAGE = Path(__file__).parent.parent / "docs" / "drops.md"

_HEAD = """# Why a frame was dropped

Made from the table in `vnic/ipsec/drops.py` by `python -m scripts.drops_page`; do not edit by hand.

Every frame that ends in the card is counted under exactly one of these names. `vnic stats` shows them,
JSON uses the names as keys, and `vnic monitor` tells the first of a kind each second. Where the kernel counts
the same event in `/proc/net/xfrm_stat`, its name stands beside ours.

| name | the frame is dropped because | kernel's name |
| --- | --- | --- |
"""


def page() -> str:
    """The page as Markdown."""
    rows = (f"| `{reason.value}` | {reason.text} | {reason.xfrm_stat or '-'} |" for reason in DropReason)
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
