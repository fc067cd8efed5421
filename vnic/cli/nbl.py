"""`vnic nbl`: frames with their out-of-band information, as they pass between transport and NIC.

Law: every frame is written out at once; Ctrl-C is the ordinary end.

Source: sheet §5.
"""

from __future__ import annotations

from vnic.cli import values
from vnic.cli.frame_text import summary
from vnic.cli.grammar import ADAPTERS, Found, Object, Value, Verb, Vocabulary, Word
from vnic.cli.hexdump import dump
from vnic.cli.render import paint, plural
from vnic.cli.session import Session
from vnic.control.interface import Nbl, WatchNbls

_SUMMARY_BYTES = 256
"""Enough of a frame for its line; the daemon need not send what is not shown."""

_MAX_SNAP = 1 << 20


def watch(session: Session, found: Found) -> None:
    """Write frames until interrupted, or as many as were asked for."""
    length = found.get("snaplen", int)
    if length is None and not session.options.json and not session.options.details:
        length = _SUMMARY_BYTES
    left = found.get("count", int)
    request = WatchNbls(adapter=found.need("adapter", str), snap_length=length)
    for reply in session.listen(request):
        if session.options.json:
            session.document(reply.nbl, lines=True)
        else:
            session.out.write(nbl_text(session, reply.nbl))
        session.out.flush()
        if left is not None:
            left -= 1
            if left <= 0:
                return


def nbl_text(session: Session, nbl: Nbl) -> str:
    """Write a frame on one line; -t puts its time in front, -d its bytes below."""
    frame = bytes.fromhex(nbl.frame)
    lost = f"{plural(nbl.lost, 'frame')} lost: this command did not keep up\n" if nbl.lost else ""
    time = f"[{nbl.time}] " if session.options.timestamp else ""
    members = " ".join(f"{name} {value}" for name, value in nbl.oob.members.items()) or "none"
    status = nbl.status_name.removeprefix("NDIS_STATUS_")
    text = (
        f"{lost}{time}{paint(nbl.direction, 'head', session)} {nbl.length} bytes: {summary(frame)}; "
        f"oob {members}"
    )
    if nbl.direction == "send":
        text += f"; {paint(status, 'bad' if nbl.status else 'good', session)}"
        if nbl.reason:
            text += f": {nbl.reason}"
    return text + "\n" + (dump(frame) if session.options.details else "")


NBL = Object(
    "nbl",
    "frames with their out-of-band information",
    verbs=(
        Verb(
            "watch",
            "write each frame that passes between transport and NIC, until Ctrl-C",
            watch,
            Vocabulary(
                Word("snaplen", Value("BYTES", values.integer(0, _MAX_SNAP, "bytes")), "no more of a frame"),
                Word("count", Value("NUMBER", values.integer(1, values.MAX_U32)), "end after so many frames"),
            ),
            positional=(Word("adapter", Value("ADAPTER", values.text, (ADAPTERS,)), required=True),),
            endless=True,
            examples=("vnic nbl watch left", "vnic -d nbl watch left count 1", "vnic -j nbl watch left"),
        ),
    ),
    notes="A send is shown as it leaves the NIC, sealed; a receive as the NIC opened it, before anything is "
    "stripped. -t adds the time, -d the bytes.",
)
