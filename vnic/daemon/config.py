"""The configuration file: TOML to the same messages that clients send.

Law: reading and checking only; needs no root and asks no device. An error names file, key, value and what
is allowed. No keys of SAs in here: they have no place in a file that many may read.

Source: TOML 1.0.0.
"""

from __future__ import annotations

import os
import re
import tomllib
import typing
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import msgspec

from vnic.control.client import DEFAULT_SOCKET
from vnic.control.interface import (
    AddAdapter,
    Capabilities,
    CipherLimitsWord,
    DefaultWord,
    FragmentationWord,
    FragmentsWord,
    NonIpWord,
    ProhibitedWord,
    TransportWord,
    UdpEspWord,
    V1Capabilities,
    VlanWord,
    Wire,
)
from vnic.daemon.cards import EngineWord
from vnic.daemon.settings import NO_WIRE, check_socket_path, checked
from vnic.errors import ConfigError, RequestError
from vnic.ndis.keywords import HostSwitches

DEFAULT_PATH = "/etc/vnic/vnic.toml"

SIZE_LIMIT = 16 << 20

_PLACE = re.compile(r" - at `\$(?P<place>[^`]*)`$")
_STEP = re.compile(r"\.(?P<member>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"unknown field `(?P<member>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<member>[^`]*)`")
_SHOWN_LENGTH = 80


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [control]."""

    socket: str = DEFAULT_SOCKET
    reader_group: str = "vnic"
    """Members may look; the socket's file belongs to this group. "" is nobody."""
    administrator_group: str = ""
    """Members may do what root may."""
    reveal_keys: bool = True
    """Whether administrators may see keys when they ask."""


class WireTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Value of `wire` when it is a table: exactly one of link, netdev, tap and udp."""

    link: str | None = None
    netdev: str | None = None
    tap: str | None = None
    udp: str | None = None
    """Address to bind, with or without a port."""
    remote: str | None = None
    keepalive: int | None = None
    follow: bool | None = None
    netns: str | None = None


class V1Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [adapter.capabilities.v1]; the keys are the members of `V1Capabilities`."""

    enabled: bool | None = None
    ah_esp_combined: bool | None = None
    transport_tunnel_combined: bool | None = None
    ipv4_options: bool | None = None
    udp_esp: list[UdpEspWord] | None = None
    ah_md5: bool | None = None
    ah_sha1: bool | None = None
    ah_transport: bool | None = None
    ah_tunnel: bool | None = None
    ah_send: bool | None = None
    ah_receive: bool | None = None
    esp_des: bool | None = None
    esp_triple_des: bool | None = None
    esp_null: bool | None = None
    esp_transport: bool | None = None
    esp_tunnel: bool | None = None
    esp_send: bool | None = None
    esp_receive: bool | None = None


class CapabilitiesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [adapter.capabilities]; the keys are the members of `Capabilities`."""

    encryptions: list[str] | None = None
    integrities: list[str] | None = None
    ah: bool | None = None
    esp: bool | None = None
    ah_esp_combined: bool | None = None
    transport: bool | None = None
    tunnel: bool | None = None
    transport_tunnel_combined: bool | None = None
    ipv4_options: bool | None = None
    ipv6: bool | None = None
    ipv6_extension_headers: bool | None = None
    esn: bool | None = None
    lso: bool | None = None
    udp_esp: list[UdpEspWord] | None = None
    sa_capacity: int | None = None
    v1: V1Table | None = None


class AdapterTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table [[adapter]]; None is what `settings.checked` fills in."""

    name: str
    tap: str | None = None
    netns: str | None = None
    addresses: list[str] | None = None
    mac: str | None = None
    mtu: int | Literal["default"] = "default"
    wire: WireTable | Literal["none"] = "none"
    non_ip: NonIpWord | None = None
    fragments: FragmentsWord | None = None
    policy_default_in: DefaultWord | None = None
    policy_default_out: DefaultWord | None = None
    fragmentation: FragmentationWord | None = None
    vlan: VlanWord | None = None
    prohibited: ProhibitedWord | None = None
    reassembly: int | None = None
    cipher_limits: CipherLimitsWord | None = None
    features_off: list[str] | None = None
    transport: TransportWord = "inline"
    nbl_socket: str | None = None
    software: bool | None = None
    queues: int | None = None
    capabilities: CapabilitiesTable | None = None
    keywords: dict[str, int] | None = None


class HostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [host]: what the whole host has switched off (R39)."""

    disable_task_offload: bool = False
    enable_ipsec_offload: bool = True


class StateTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [state]."""

    directory: str = ""
    """Where reserved sequence numbers are kept; "" is nowhere."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    log_level: Literal["error", "warning", "info", "debug"] = "info"
    engine: EngineWord = "auto"
    control: Control = Control()
    host: HostTable = HostTable()
    state: StateTable = StateTable()
    adapter: list[AdapterTable] = []


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A checked configuration."""

    path: str | None = None
    """The file it is from, or None."""
    log_level: str = "info"
    engine: EngineWord = "auto"
    control: Control = Control()
    host: HostSwitches = HostSwitches()
    state: StateTable = StateTable()
    adapters: tuple[AddAdapter, ...] = ()


def load(path: str | None) -> Config:
    """Read a configuration file.

    Args:
        path: the file, which must be there; None is DEFAULT_PATH, which need not.

    Raises:
        ConfigError: it cannot be read, is no TOML, or a key or value is wrong.
    """
    name = DEFAULT_PATH if path is None else path
    try:
        with Path(name).open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigError("there is no such file", path=name) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot be read: {reason}", path=name) from error
    if len(data) > SIZE_LIMIT:
        raise ConfigError("too long for a configuration", path=name, allowed=f"{SIZE_LIMIT} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"not UTF-8 text (at line {line})", path=name) from error
    return parse(text, name)


def parse(text: str, path: str) -> Config:
    """Read a configuration from its text; `path` is for the errors.

    Raises:
        ConfigError: it is no TOML, or a key or value is wrong.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"not TOML: {error}", path=path) from error
    try:
        file = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise _misfit(error, document, path) from None
    _check_control(file.control, path)
    _check_state(file.state, path)
    adapters = tuple(_adapter(table, path) for table in file.adapter)
    _check_together(adapters, path)
    host = HostSwitches(file.host.disable_task_offload, file.host.enable_ipsec_offload)
    return Config(
        path=path,
        log_level=file.log_level,
        engine=file.engine,
        control=file.control,
        host=host,
        state=file.state,
        adapters=adapters,
    )


def _check_control(control: Control, path: str) -> None:
    try:
        check_socket_path(control.socket, "control.socket")
    except RequestError as error:
        raise ConfigError(
            error.message, path=path, field=error.field, value=_short(error.value), allowed=error.allowed
        ) from error


def _check_state(state: StateTable, path: str) -> None:
    if state.directory and (not os.path.isabs(state.directory) or "\0" in state.directory):
        raise ConfigError(
            "not an absolute path",
            path=path,
            field="state.directory",
            value=_short(state.directory),
            allowed="as in /var/lib/vnic",
        )


def _adapter(table: AdapterTable, path: str) -> AddAdapter:
    """Make the message of one table."""
    try:
        return checked(
            AddAdapter(
                name=table.name,
                tap=table.tap,
                netns=table.netns,
                addresses=table.addresses,
                mac=table.mac,
                mtu=None if table.mtu == "default" else table.mtu,
                wire=_wire(table.wire),
                non_ip=table.non_ip,
                fragments=table.fragments,
                policy_default_in=table.policy_default_in,
                policy_default_out=table.policy_default_out,
                fragmentation=table.fragmentation,
                vlan=table.vlan,
                prohibited=table.prohibited,
                reassembly=table.reassembly,
                cipher_limits=table.cipher_limits,
                features_off=table.features_off,
                transport=table.transport,
                nbl_socket=table.nbl_socket,
                software=table.software,
                queues=table.queues,
                capabilities=_capabilities(table.capabilities),
                keywords=table.keywords,
            )
        )
    except RequestError as error:
        raise _in_adapter(table.name, error, path) from error


def _capabilities(table: CapabilitiesTable | None) -> Capabilities | None:
    if table is None:
        return None
    given = msgspec.structs.asdict(table)
    v1 = None if table.v1 is None else V1Capabilities(**msgspec.structs.asdict(table.v1))
    return Capabilities(**{**given, "v1": v1})


def _wire(table: WireTable | Literal["none"]) -> Wire:
    if isinstance(table, str):
        return NO_WIRE
    kinds = ("link", "netdev", "tap", "udp")
    given = {kind: name for kind in kinds if (name := getattr(table, kind)) is not None}
    if len(given) != 1:
        raise RequestError(
            "a wire is one thing",
            field="wire",
            value=", ".join(given),
            allowed='"none", or exactly one of link, netdev, tap and udp',
        )
    ((kind, name),) = given.items()
    return Wire(
        kind=kind,  # type: ignore[arg-type]
        name=None if kind == "udp" else name,
        netns=table.netns,
        local=table.udp,
        remote=table.remote,
        keepalive=table.keepalive,
        follow=table.follow,
    )


def _check_together(adapters: tuple[AddAdapter, ...], path: str) -> None:
    """Refuse adapters that cannot be side by side."""
    by_name: dict[str, AddAdapter] = {}
    devices: dict[tuple[str | None, str], str] = {}
    sockets: dict[str, str] = {}
    ends: dict[str, str] = {}
    for adapter in adapters:
        if adapter.name in by_name:
            error = RequestError("a second adapter of this name", field="name", allowed="a name of its own")
            raise _in_adapter(adapter.name, error, path)
        by_name[adapter.name] = adapter
        wire = adapter.wire or NO_WIRE
        used = [] if adapter.tap is None else [("tap", adapter.netns, adapter.tap)]
        if wire.kind == "tap":
            used.append(("wire.tap", wire.netns, wire.name or ""))
        if (own := adapter.nbl_socket) and (other := sockets.setdefault(own, adapter.name)) != adapter.name:
            error = RequestError(
                f"adapter {other} has this socket already",
                field="nbl_socket",
                value=own,
                allowed="another path",
            )
            raise _in_adapter(adapter.name, error, path)
        for field, netns, device in used:
            if (other := devices.setdefault((netns, device), adapter.name)) != adapter.name:
                error = RequestError(
                    f"adapter {other} has this TAP already", field=field, value=device, allowed="another name"
                )
                raise _in_adapter(adapter.name, error, path)
    for adapter in adapters:
        wire = adapter.wire or NO_WIRE
        if wire.kind != "link" or wire.name is None:
            continue
        peer = by_name.get(wire.name)
        peer_wire = peer.wire or NO_WIRE if peer is not None else NO_WIRE
        if peer is None:
            problem = "there is no such adapter in this file"
        elif peer_wire.kind != "none" and (peer_wire.kind, peer_wire.name) != ("link", adapter.name):
            problem = f"the wire of {peer.name} is something else"
        elif ends.setdefault(peer.name, adapter.name) != adapter.name:
            problem = f"{peer.name} is linked to {ends[peer.name]}"
        else:
            continue
        allowed = 'an adapter whose wire is "none", or a link back'
        error = RequestError(problem, field="wire.link", value=wire.name, allowed=allowed)
        raise _in_adapter(adapter.name, error, path)


def _in_adapter(name: str, error: RequestError, path: str) -> ConfigError:
    """Give the error of one adapter's table with the key as it stands in the file."""
    field = {"wire.name": "wire", "netns": "netns", "offload": "features_off", "address": "addresses"}.get(
        error.field, error.field
    )
    return ConfigError(
        error.message,
        path=path,
        field=f"adapter.{_short(name)}.{field}" if field else f"adapter.{_short(name)}",
        value=_short(error.value),
        allowed=error.allowed,
    )


def _misfit(error: msgspec.ValidationError, document: dict[str, Any], path: str) -> ConfigError:
    """Turn msgspec's message, which names the place, into one that names key, value and what is allowed."""
    text = str(error)
    place = _PLACE.search(text)
    message = _PLACE.sub("", text)
    value: Any = document
    expected: Any = _File
    field = ""
    for step in _STEP.finditer(place["place"] if place else ""):
        if step["member"] is not None:
            field += f".{step['member']}"
            value = value.get(step["member"]) if isinstance(value, dict) else None
            expected = _member_type(expected, step["member"])
        else:
            value = value[int(step["index"])] if isinstance(value, list) else None
            named = value.get("name") if isinstance(value, dict) else None
            field += f".{named}" if isinstance(named, str) else f"[{step['index']}]"
            expected = next(iter(typing.get_args(expected)), None)
    if unknown := _UNKNOWN.search(message):
        message, shown = "there is no such key", ""
        field += f".{unknown['member']}"
    elif missing := _MISSING.search(message):
        message, shown = "this key is missing", ""
        field += f".{missing['member']}"
        expected = _member_type(expected, missing["member"])
    else:
        shown = repr(value) if not isinstance(value, dict | list) else ""
        message = (
            "no such choice" if message.startswith("Invalid enum value") else "a value of the wrong type"
        )
    return ConfigError(
        message,
        path=path,
        field=_short(field.removeprefix(".")),
        value=_short(shown),
        allowed=_allowed(expected),
    )


def _member_type(expected: Any, member: str) -> Any:
    """Give the type of a member, of the one struct that `expected` is or may be."""
    for option in typing.get_args(expected) or (expected,):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return typing.get_type_hints(option).get(member)
    return None


def _allowed(expected: Any) -> str:
    """Say which values a type takes."""
    origin = typing.get_origin(expected)
    if origin is Literal:
        return ", ".join(f'"{choice}"' for choice in typing.get_args(expected))
    if origin in (typing.Union, UnionType):
        parts = [_allowed(option) for option in typing.get_args(expected) if option is not type(None)]
        return ", or ".join(parts)
    if origin is dict:
        return f"a table of names, each with {_allowed(typing.get_args(expected)[1])}"
    if origin is list:
        return f"a list, each {_allowed(typing.get_args(expected)[0])}"
    if isinstance(expected, type) and issubclass(expected, msgspec.Struct):
        return f"a table with {', '.join(expected.__struct_fields__)}"
    return {str: "a text", int: "an integer", bool: "true or false"}.get(expected, "")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"
