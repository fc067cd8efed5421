"""What an adapter may be asked to be, whether a file or a client asks.

Law: pure checks on the message; whether devices exist is asked when the adapter is made.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import fields, replace
from ipaddress import ip_address
from typing import NamedTuple

from vnic.control.interface import AddAdapter, SetAdapter, Wire
from vnic.daemon.hardware import hardware_of, keywords_message, keywords_of
from vnic.errors import RequestError
from vnic.netlink.links import check_address, check_mac, check_name
from vnic.netlink.namespaces import path_of
from vnic.packet.udp import NAT_TRAVERSAL_PORT
from vnic.ports.offloads import check_offloads
from vnic.ports.tap import check_queues
from vnic.ports.udp import End

NO_WIRE = Wire(kind="none")

_MAX_KEEPALIVE_S = 3600

MIN_MTU = 68  # RFC 791
MAX_MTU = 65_521
"""The kernel's limit for a TAP: 65,535 less the Ethernet header."""

DEFAULT_REASSEMBLY = 4 << 20
"""Bytes of memory for the fragments of one adapter."""
MIN_REASSEMBLY = 128 << 10
"""One packet of 65,535 bytes, and what keeping its fragments costs."""
MAX_REASSEMBLY = 1 << 30

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")

SOCKET_PATH_LIMIT = 107
"""Bytes of a socket's path: struct sockaddr_un has 108 with the terminating zero."""

_SETTABLE = frozenset(
    {
        "mtu",
        "mac",
        "wire",
        "non_ip",
        "fragments",
        "policy_default_in",
        "policy_default_out",
        "fragmentation",
        "vlan",
        "prohibited",
        "reassembly",
        "cipher_limits",
        "addresses",
        "keywords",
    }
)
"""What `SetAdapter` can change; all else needs a new adapter."""

_INLINE_ONLY = (
    "tap",
    "netns",
    "addresses",
    "mac",
    "mtu",
    "non_ip",
    "fragments",
    "features_off",
    "policy_default_in",
    "policy_default_out",
    "fragmentation",
    "vlan",
    "prohibited",
    "reassembly",
    "cipher_limits",
    "software",
    "queues",
)
"""What only the inline transport has: a TAP, policies, software IPsec."""


def checked(settings: AddAdapter) -> AddAdapter:
    """Give the settings with what was left out filled in; `mtu` stays None for the default, and of an
    external transport all that it has not.

    Raises:
        RequestError: a value no adapter can have.
    """
    if not _NAME.fullmatch(settings.name):
        raise RequestError(
            "not a name for an adapter",
            field="name",
            value=settings.name[:64],
            allowed="1 to 32 letters, digits, '_', '.' and '-'",
        )
    wire = settings.wire or NO_WIRE
    check_wire(settings.name, wire)
    hardware_of(settings.capabilities)
    filled = replace(
        settings,
        wire=wire,
        transport=settings.transport or "inline",
        keywords=keywords_message(keywords_of(settings.keywords)),
    )
    return _checked_external(filled) if filled.transport == "external" else _checked_inline(filled, wire)


def _checked_inline(settings: AddAdapter, wire: Wire) -> AddAdapter:
    if settings.tap is None:
        raise RequestError(
            "an adapter needs a TAP, the device the host sees",
            field="tap",
            allowed="a device name, or transport external",
        )
    if settings.nbl_socket is not None:
        raise RequestError(
            "only an external transport has an NBL socket",
            field="nbl_socket",
            value=settings.nbl_socket[:64],
            allowed="transport external",
        )
    check_name(settings.tap, "tap")
    check_namespace(settings.netns)
    check_mtu(settings.mtu)
    check_reassembly(settings.reassembly)
    if settings.mac is not None:
        check_mac(settings.mac)
    for address in settings.addresses or ():
        check_address(address)
    check_offloads(settings.features_off or ())
    check_queues(1 if settings.queues is None else settings.queues)
    if wire.kind == "tap" and (wire.name, wire.netns) == (settings.tap, settings.netns):
        raise RequestError(
            "host side and wire are the same TAP",
            field="wire.name",
            value=settings.tap,
            allowed="another device",
        )
    return replace(
        settings,
        addresses=settings.addresses or [],
        features_off=settings.features_off or [],
        non_ip=settings.non_ip or "pass",
        fragments=settings.fragments or "drop",
        policy_default_in=settings.policy_default_in or "allow",
        policy_default_out=settings.policy_default_out or "allow",
        fragmentation=settings.fragmentation or "before",
        vlan=settings.vlan or "protect",
        prohibited=settings.prohibited or "silent",
        reassembly=DEFAULT_REASSEMBLY if settings.reassembly is None else settings.reassembly,
        cipher_limits=settings.cipher_limits or "warn",
        software=settings.software is not False,
        queues=settings.queues or 1,
    )


def check_reassembly(limit: int | None) -> None:
    """Refuse memory for fragments that is too little for one packet, or more than a machine spares.

    Raises:
        RequestError: it is.
    """
    if limit is not None and not MIN_REASSEMBLY <= limit <= MAX_REASSEMBLY:
        raise RequestError(
            "memory for fragments out of range",
            field="reassembly",
            value=str(limit),
            allowed=f"{MIN_REASSEMBLY} (128K) to {MAX_REASSEMBLY} (1G) bytes",
        )


def shown(value: object) -> str:
    """Write a value for a message, as a caller wrote it and not too long."""
    return str(value).lower() if isinstance(value, bool) else str(value)[:64]


def _checked_external(settings: AddAdapter) -> AddAdapter:
    for name in _INLINE_ONLY:
        given = getattr(settings, name)
        if given not in (None, []):
            raise RequestError(
                "an external transport has no TAP, policies or software IPsec: its driver is all that",
                field=name,
                value=shown(given),
                allowed="nothing, or transport inline",
            )
    if settings.nbl_socket is not None:
        check_socket_path(settings.nbl_socket, "nbl_socket")
    return settings


def check_socket_path(path: str, field: str) -> None:
    """Refuse what cannot be the path of a socket.

    Raises:
        RequestError: it is relative or too long.
    """
    if not os.path.isabs(path) or "\0" in path or len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise RequestError(
            "not a path for a socket",
            field=field,
            value=path[:64],
            allowed=f"an absolute path of at most {SOCKET_PATH_LIMIT} bytes",
        )


def check_mtu(mtu: int | None) -> None:
    """Refuse an MTU that no TAP takes; None is the default and passes.

    Raises:
        RequestError: it is out of range.
    """
    if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
        raise RequestError(
            "MTU out of range", field="mtu", value=str(mtu), allowed=f"{MIN_MTU} to {MAX_MTU}, or the default"
        )


def check_namespace(netns: str | None, field: str = "netns") -> None:
    """Refuse what cannot be the name of a namespace; None is the daemon's own and passes.

    Raises:
        RequestError: it is no name.
    """
    if netns is not None:
        try:
            path_of(netns)
        except RequestError as error:
            raise RequestError(error.message, field=field, value=error.value, allowed=error.allowed) from None


def check_wire(adapter: str, wire: Wire) -> None:
    """Refuse a wire whose members do not fit its kind.

    Raises:
        RequestError: a member is missing, too many, or no name.
    """
    if wire.kind == "udp":
        if wire.name is not None:
            raise RequestError(
                "a UDP wire has no name", field="wire.name", value=wire.name, allowed="nothing"
            )
        check_namespace(wire.netns, "wire.netns")
        udp_ends(wire)
        return
    for member in ("local", "remote", "keepalive", "follow"):
        if getattr(wire, member) is not None:
            raise RequestError(
                f"a wire of {wire.kind} has no such thing",
                field=f"wire.{member}",
                value=str(getattr(wire, member)),
                allowed="nothing; a wire of udp has it",
            )
    if wire.kind == "none":
        if wire.name is not None or wire.netns is not None:
            raise RequestError("a wire of none has no name", field="wire.name", value=wire.name or "")
        return
    if wire.name is None:
        what = "an adapter" if wire.kind == "link" else "a device"
        raise RequestError(
            f"a wire of {wire.kind} needs a name", field="wire.name", allowed=f"name of {what}"
        )
    if wire.kind != "link":
        check_name(wire.name, "wire.name")
        check_namespace(wire.netns, "wire.netns")
        return
    if wire.netns is not None:
        raise RequestError("a link has no namespace", field="wire.netns", value=wire.netns, allowed="nothing")
    if wire.name == adapter:
        raise RequestError(
            "an adapter cannot be linked to itself",
            field="wire.name",
            value=adapter,
            allowed="another adapter",
        )


def udp_ends(wire: Wire) -> tuple[End, End]:
    """Give both ends of a UDP wire.

    Raises:
        RequestError: one is missing or no address of one host, they are of two families, or the keepalive
            is out of range.
    """
    local, remote = (_end(getattr(wire, member), f"wire.{member}") for member in ("local", "remote"))
    if local.address.version != remote.address.version:
        raise RequestError(
            "both ends of a UDP wire are of one IP version",
            field="wire.remote",
            value=str(remote),
            allowed=f"an IPv{local.address.version} address",
        )
    if wire.keepalive is not None and not 0 <= wire.keepalive <= _MAX_KEEPALIVE_S:
        raise RequestError(
            "no time between keepalives",
            field="wire.keepalive",
            value=str(wire.keepalive),
            allowed=f"0 (never) to {_MAX_KEEPALIVE_S} seconds",
        )
    return local, remote


def _end(text: str | None, field: str) -> End:
    address, port = text or "", str(NAT_TRAVERSAL_PORT)
    if address.startswith("["):
        address, bracket, rest = address[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            address = ""
        port = rest[1:] if rest else port
    elif address.count(":") == 1:
        address, _, port = address.partition(":")
    try:
        parsed = ip_address(address)
        number = int(port) if port.isascii() and port.isdecimal() else 0
    except ValueError:
        number = 0
    if not 0 < number < 65536 or parsed.is_multicast or parsed.is_unspecified:
        raise RequestError(
            "no end of a UDP wire",
            field=field,
            value=text or "",
            allowed="the address of one host, ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT",
        )
    return End(parsed, number)


class Change(NamedTuple):
    """How to get from one setting of an adapter to another."""

    remake: bool
    """It has to be deleted and made anew; `request` is empty."""
    request: SetAdapter | None
    """What to set; None if nothing."""


def change(old: AddAdapter, new: AddAdapter) -> Change:
    """Compare two checked settings of the same adapter."""
    different = {one.name for one in fields(new) if getattr(old, one.name) != getattr(new, one.name)}
    if hardware_of(old.capabilities) == hardware_of(new.capabilities):
        different.discard("capabilities")
    if not different:
        return Change(remake=False, request=None)
    old_addresses, new_addresses = old.addresses or [], new.addresses or []
    if not different <= _SETTABLE or not set(old_addresses) <= set(new_addresses):
        return Change(remake=True, request=None)
    if new.mac is None and "mac" in different:
        return Change(remake=True, request=None)
    values = {name: getattr(new, name) for name in different}
    if "mtu" in values:
        values["mtu"] = new.mtu or 0
    if "addresses" in values:
        values["addresses"] = [address for address in new_addresses if address not in old_addresses]
    return Change(remake=False, request=SetAdapter(name=new.name, **values))
