"""The binary form of configuration: NDIS_OFFLOAD_PARAMETERS and NDIS_OFFLOAD_ENCAPSULATION.

Law: as `ndis.structs`: bytes of any content give a value or a StructError. A reader takes every revision
whose size holds what it reads. What a setting does is `miniport.configuration`.

Source: sheet §3.2, §3.4 (R43, R48, R49, R57).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final

from vnic.errors import RequestError
from vnic.ndis.capabilities import ENCAPSULATION_NOT_SUPPORTED
from vnic.ndis.layout import (
    OBJECT_HEADER,
    OBJECT_TYPE_DEFAULT,
    OBJECT_TYPE_OFFLOAD_ENCAPSULATION,
    Buffer,
    Layout,
    Member,
)
from vnic.ndis.offload_structs import revision_and_size
from vnic.ndis.structs import packed, refuse, require_header

_HEADER = OBJECT_HEADER.struct()

# --- NDIS_OFFLOAD_PARAMETERS -------------------------------------------------------------------------------


class IpsecParameter(IntEnum):
    """What IPsecV1, IPsecV2 and IPsecV2IPv4 may hold: the keyword's value plus one."""

    NO_CHANGE = 0
    DISABLED = 1
    AH_ENABLED = 2
    ESP_ENABLED = 3
    AH_AND_ESP_ENABLED = 4


class SwitchParameter(IntEnum):
    """What the LSO, connection and RSC members may hold."""

    NO_CHANGE = 0
    DISABLED = 1
    ENABLED = 2


OFFLOAD_PARAMETERS: Final = Layout(
    "NDIS_OFFLOAD_PARAMETERS",
    28,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        Member("IPv4Checksum", 0x04, "B"),
        Member("TCPIPv4Checksum", 0x05, "B"),
        Member("UDPIPv4Checksum", 0x06, "B"),
        Member("TCPIPv6Checksum", 0x07, "B"),
        Member("UDPIPv6Checksum", 0x08, "B"),
        Member("LsoV1", 0x09, "B"),
        Member("IPsecV1", 0x0A, "B"),
        Member("LsoV2IPv4", 0x0B, "B"),
        Member("LsoV2IPv6", 0x0C, "B"),
        Member("TcpConnectionIPv4", 0x0D, "B"),
        Member("TcpConnectionIPv6", 0x0E, "B"),
        Member("Flags", 0x10, "I"),
        Member("IPsecV2", 0x14, "B"),
        Member("IPsecV2IPv4", 0x15, "B"),
        Member("RscIPv4", 0x16, "B"),
        Member("RscIPv6", 0x17, "B"),
        Member("EncapsulatedPacketTaskOffload", 0x18, "B"),
        Member("EncapsulationTypes", 0x19, "B"),
    ),
)
"""The structure of revision 3; earlier ones are its beginning, of later ones this is the beginning."""

SIZEOF_OFFLOAD_PARAMETERS: Final[Mapping[int, int]] = {1: 20, 2: 22, 3: 26}
SKIP_REGISTRY_UPDATE = 0x1
"""NDIS_OFFLOAD_PARAMETERS_SKIP_REGISTRY_UPDATE: the keywords stay as they are."""

_PARAMETERS = OFFLOAD_PARAMETERS.struct("IPv4Checksum")
_MAX_CHECKSUM = 4
_MAX_ENCAPSULATION_TYPES = 0x3


@dataclass(frozen=True, slots=True)
class OffloadParameters:
    """NDIS_OFFLOAD_PARAMETERS; the members are named as there. 0 is NO_CHANGE (R48)."""

    ipv4_checksum: int = 0
    tcp_ipv4_checksum: int = 0
    udp_ipv4_checksum: int = 0
    tcp_ipv6_checksum: int = 0
    udp_ipv6_checksum: int = 0
    lso_v1: SwitchParameter = SwitchParameter.NO_CHANGE
    ipsec_v1: IpsecParameter = IpsecParameter.NO_CHANGE
    lso_v2_ipv4: SwitchParameter = SwitchParameter.NO_CHANGE
    lso_v2_ipv6: SwitchParameter = SwitchParameter.NO_CHANGE
    tcp_connection_ipv4: SwitchParameter = SwitchParameter.NO_CHANGE
    tcp_connection_ipv6: SwitchParameter = SwitchParameter.NO_CHANGE
    flags: int = 0
    ipsec_v2: IpsecParameter = IpsecParameter.NO_CHANGE
    """From revision 2 on."""
    ipsec_v2_ipv4: IpsecParameter = IpsecParameter.NO_CHANGE
    rsc_ipv4: SwitchParameter = SwitchParameter.NO_CHANGE
    """From revision 3 on."""
    rsc_ipv6: SwitchParameter = SwitchParameter.NO_CHANGE
    encapsulated_packet_task_offload: int = 0
    """SET_NO_CHANGE, SET_ON or SET_OFF, as in `EncapsulationSwitch`."""
    encapsulation_types: int = 0
    revision: int = 3
    """The revision that was read, 3 for later ones."""

    @property
    def skip_registry_update(self) -> bool:
        """Whether the keywords stay as they are."""
        return bool(self.flags & SKIP_REGISTRY_UPDATE)


_LIMITS: Final[Mapping[str, int]] = {
    "IPv4Checksum": _MAX_CHECKSUM,
    "TCPIPv4Checksum": _MAX_CHECKSUM,
    "UDPIPv4Checksum": _MAX_CHECKSUM,
    "TCPIPv6Checksum": _MAX_CHECKSUM,
    "UDPIPv6Checksum": _MAX_CHECKSUM,
    "LsoV1": max(SwitchParameter),
    "IPsecV1": max(IpsecParameter),
    "LsoV2IPv4": max(SwitchParameter),
    "LsoV2IPv6": max(SwitchParameter),
    "TcpConnectionIPv4": max(SwitchParameter),
    "TcpConnectionIPv6": max(SwitchParameter),
    "Flags": SKIP_REGISTRY_UPDATE,
    "IPsecV2": max(IpsecParameter),
    "IPsecV2IPv4": max(IpsecParameter),
    "RscIPv4": max(SwitchParameter),
    "RscIPv6": max(SwitchParameter),
    "EncapsulatedPacketTaskOffload": 2,
    "EncapsulationTypes": _MAX_ENCAPSULATION_TYPES,
}
"""Largest legal value of each member."""


def read_offload_parameters(buffer: Buffer) -> OffloadParameters:
    """Give an NDIS_OFFLOAD_PARAMETERS. Members its revision does not have are NO_CHANGE.

    Raises:
        StructError: BUFFER_TOO_SHORT; INVALID_LENGTH when Header.Size does not hold its revision;
            INVALID_DATA for another object type, revision 0, or a member that is none of its values (R43).
    """
    name = OFFLOAD_PARAMETERS.name
    revision, _ = revision_and_size(buffer, name, OBJECT_TYPE_DEFAULT, SIZEOF_OFFLOAD_PARAMETERS)
    present = bytes(buffer[: SIZEOF_OFFLOAD_PARAMETERS[revision]])
    values = _PARAMETERS.unpack_from(present.ljust(_PARAMETERS.size, b"\0"))
    for member, value in zip(OFFLOAD_PARAMETERS.members[3:], values, strict=True):
        if value > _LIMITS[member.name]:
            refuse(f"{name} holds an undefined value", member.name, value, f"0 to {_LIMITS[member.name]}")
    return _parameters(values, revision)


def _parameters(values: tuple[int, ...], revision: int) -> OffloadParameters:
    switch = SwitchParameter
    return OffloadParameters(
        ipv4_checksum=values[0],
        tcp_ipv4_checksum=values[1],
        udp_ipv4_checksum=values[2],
        tcp_ipv6_checksum=values[3],
        udp_ipv6_checksum=values[4],
        lso_v1=switch(values[5]),
        ipsec_v1=IpsecParameter(values[6]),
        lso_v2_ipv4=switch(values[7]),
        lso_v2_ipv6=switch(values[8]),
        tcp_connection_ipv4=switch(values[9]),
        tcp_connection_ipv6=switch(values[10]),
        flags=values[11],
        ipsec_v2=IpsecParameter(values[12]),
        ipsec_v2_ipv4=IpsecParameter(values[13]),
        rsc_ipv4=switch(values[14]),
        rsc_ipv6=switch(values[15]),
        encapsulated_packet_task_offload=values[16],
        encapsulation_types=values[17],
        revision=revision,
    )


def pack_offload_parameters(parameters: OffloadParameters) -> bytearray:
    """Build an NDIS_OFFLOAD_PARAMETERS of `parameters.revision`, cut where that revision ends.

    Raises:
        RequestError: another revision than 1, 2 or 3, or a number that does not fit its member.
    """
    size = SIZEOF_OFFLOAD_PARAMETERS.get(parameters.revision)
    if size is None:
        raise RequestError(
            "unknown revision of NDIS_OFFLOAD_PARAMETERS",
            field="revision",
            value=str(parameters.revision),
            allowed="1, 2, 3",
        )
    members: list[Any] = [getattr(parameters, member.name) for member in fields(parameters)[:-1]]
    data = bytearray(packed(_PARAMETERS, *members))
    _HEADER.pack_into(data, 0, OBJECT_TYPE_DEFAULT, parameters.revision, size)
    return data[:size]


# --- NDIS_OFFLOAD_ENCAPSULATION ----------------------------------------------------------------------------

_SETTING: Final = Layout(
    "NDIS_OFFLOAD_ENCAPSULATION.IPv4",
    12,
    (Member("Enabled", 0x0, "I"), Member("EncapsulationType", 0x4, "I"), Member("HeaderSize", 0x8, "I")),
)
OFFLOAD_ENCAPSULATION: Final = Layout(
    "NDIS_OFFLOAD_ENCAPSULATION",
    28,
    (
        *OBJECT_HEADER.within("Header", 0x00),
        *_SETTING.within("IPv4", 0x04),
        *_SETTING.within("IPv6", 0x10),
    ),
)
SIZEOF_OFFLOAD_ENCAPSULATION_REVISION_1 = OFFLOAD_ENCAPSULATION.end_of("IPv6.HeaderSize")

_ENCAPSULATION = OFFLOAD_ENCAPSULATION.struct()


class EncapsulationSwitch(IntEnum):
    """NDIS_OFFLOAD_SET_…"""

    NO_CHANGE = 0
    ON = 1
    OFF = 2


@dataclass(frozen=True, slots=True)
class EncapsulationSetting:
    """The part of one IP version. Unless `enabled` is ON the others are 0."""

    enabled: EncapsulationSwitch = EncapsulationSwitch.NO_CHANGE
    encapsulation_type: int = ENCAPSULATION_NOT_SUPPORTED
    """One of ENCAPSULATION_… of `ndis.capabilities`; which ones it knows is the NIC's affair (R52, R53)."""
    header_size: int = 0
    """Bytes in front of the IP header."""


@dataclass(frozen=True, slots=True)
class OffloadEncapsulation:
    """NDIS_OFFLOAD_ENCAPSULATION: switches all configured offloads of an IP version on or off (R57)."""

    ipv4: EncapsulationSetting = EncapsulationSetting()
    ipv6: EncapsulationSetting = EncapsulationSetting()


def read_offload_encapsulation(buffer: Buffer) -> OffloadEncapsulation:
    """Give an NDIS_OFFLOAD_ENCAPSULATION.

    Raises:
        StructError: BUFFER_TOO_SHORT; INVALID_LENGTH for another Header.Size; INVALID_DATA for another object
            type or revision, an undefined Enabled, or members that are not 0 beside one that is not ON.
    """
    size = SIZEOF_OFFLOAD_ENCAPSULATION_REVISION_1
    require_header(buffer, OFFLOAD_ENCAPSULATION, OBJECT_TYPE_OFFLOAD_ENCAPSULATION, size)
    values = _ENCAPSULATION.unpack_from(buffer)[3:]
    return OffloadEncapsulation(_setting("IPv4", *values[:3]), _setting("IPv6", *values[3:]))


def _setting(name: str, enabled: int, encapsulation_type: int, header_size: int) -> EncapsulationSetting:
    if enabled > max(EncapsulationSwitch):
        allowed = "0 (no change), 1 (on), 2 (off)"
        refuse("NDIS_OFFLOAD_ENCAPSULATION holds an undefined value", f"{name}.Enabled", enabled, allowed)
    if enabled != EncapsulationSwitch.ON:
        for member, value in (("EncapsulationType", encapsulation_type), ("HeaderSize", header_size)):
            if value:
                refuse(f"{member} is 0 unless Enabled is on", f"{name}.{member}", value, "0")
    return EncapsulationSetting(EncapsulationSwitch(enabled), encapsulation_type, header_size)


def pack_offload_encapsulation(encapsulation: OffloadEncapsulation) -> bytearray:
    """Build an NDIS_OFFLOAD_ENCAPSULATION.

    Raises:
        RequestError: a number does not fit its member.
    """
    header = (OBJECT_TYPE_OFFLOAD_ENCAPSULATION, 1, SIZEOF_OFFLOAD_ENCAPSULATION_REVISION_1)
    members = [
        number
        for part in (encapsulation.ipv4, encapsulation.ipv6)
        for number in (part.enabled, part.encapsulation_type, part.header_size)
    ]
    return bytearray(packed(_ENCAPSULATION, *header, *members))
