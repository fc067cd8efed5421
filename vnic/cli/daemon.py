"""`vnic daemon`: the daemon itself.

Law: one message to text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnic.cli.grammar import Found, Object, Verb
from vnic.control.interface import GetDaemon

if TYPE_CHECKING:
    from vnic.cli.session import Session


def show(session: Session, found: Found) -> None:
    """Show the daemon."""
    reply = session.ask(GetDaemon())
    session.answer(
        reply,
        lambda: (
            f"vnicd {reply.version} pid {reply.pid} engine {reply.engine} loop {reply.loop}\n"
            f"    ciphers {reply.ciphers}\n"
            + (f"    not native: {reply.engine_reason}\n" if reply.engine_reason else "")
            + f"    socket {session.options.socket_path} config {reply.config or '-'}\n"
            f"    adapters {reply.adapter_count} started {reply.started} up {reply.uptime_s:.0f} s\n"
        ),
    )


DAEMON = Object(
    "daemon",
    "the daemon itself",
    default="show",
    verbs=(Verb("show", "show version, engine, configuration and age of the daemon", show),),
)
