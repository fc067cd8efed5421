"""Every capability of the NIC, one row each: where it stands in TaskOffload, and what it needs.

Law: a table, and TaskOffload made of rows. What is switched on is `configuration`.

Source: NDIS_OFFLOAD, NDIS_IPSEC_OFFLOAD_V1, NDIS_IPSEC_OFFLOAD_V2 (sheet §2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES
from vnic.ndis.capabilities import (
    ENCAPSULATION_IEEE_802_3,
    ENCAPSULATION_IEEE_802_3_P_AND_Q,
    NO_IPSEC,
    NO_IPSEC_V1,
    NO_LARGE_SEND,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    TaskOffload,
)

AH, ESP, BOTH, EITHER = 1, 2, 3, 0
"""What a feature needs switched on, as bits of IpsecKeyword; EITHER: AH or ESP, whichever there is."""

_UDP_ESP_NAMES = (
    (UDP_ESP_TRANSPORT, "udp-transport"),
    (UDP_ESP_TUNNEL, "udp-tunnel"),
    (TRANSPORT_OVER_UDP_ESP_TUNNEL, "transport-over-udp-tunnel"),
    (UDP_ESP_TRANSPORT_OVER_TUNNEL, "udp-transport-over-tunnel"),
)


class Feature(NamedTuple):
    """One row: a member of a part of TaskOffload, or one bit of it, and what it needs."""

    name: str
    part: str
    member: str
    bit: int = 0
    """0: the member is a truth value."""
    needs: int = EITHER
    family: int = 0
    """4 or 6: needs that family's encapsulation on; 0: either."""


def _common_rows(part: str, name: str) -> Iterator[Feature]:
    yield Feature(name, part, "encapsulation", ENCAPSULATION_IEEE_802_3)
    yield Feature(f"{name}-vlan", part, "encapsulation", ENCAPSULATION_IEEE_802_3_P_AND_Q)
    yield Feature(f"{name}-ah-esp", part, "ah_esp_combined", needs=BOTH)
    yield Feature(f"{name}-transport-tunnel", part, "transport_tunnel_combined")
    yield Feature(f"{name}-ipv4-options", part, "ipv4_options", family=4)
    for bit, kind in _UDP_ESP_NAMES:
        yield Feature(f"{name}-{kind}", part, "udp_esp", bit, ESP)


def _rows() -> Iterator[Feature]:
    part, name = "ipsec_v2", "ipsec-v2"
    yield from _common_rows(part, name)
    yield Feature(f"{name}-ipv6", part, "ipv6_supported", family=6)
    yield Feature(f"{name}-ipv6-extension-headers", part, "ipv6_non_ipsec_extension_headers", family=6)
    yield Feature(f"{name}-ah", part, "ah", needs=AH)
    yield Feature(f"{name}-esp", part, "esp", needs=ESP)
    yield Feature(f"{name}-transport", part, "transport")
    yield Feature(f"{name}-tunnel", part, "tunnel")
    yield Feature(f"{name}-lso", part, "lso_supported")
    yield Feature(f"{name}-esn", part, "extended_sequence_numbers")
    for integrity in INTEGRITIES:
        bit = integrity.ndis_identifier
        yield Feature(f"{name}-auth-{integrity.name}", part, "authentication_algorithms", bit)
    for encryption in ENCRYPTIONS:
        bit = encryption.ndis_identifier
        yield Feature(f"{name}-encr-{encryption.name}", part, "encryption_algorithms", bit, ESP)
    part, name = "ipsec_v1", "ipsec-v1"
    yield from _common_rows(part, name)
    yield Feature(f"{name}-md5", part, "ah_md5")
    yield Feature(f"{name}-sha1", part, "ah_sha1")
    for member in ("transport", "tunnel", "send", "receive"):
        yield Feature(f"{name}-ah-{member}", part, f"ah_{member}", needs=AH)
    for member in ("des", "triple_des", "null", "transport", "tunnel", "send", "receive"):
        label = "3des" if member == "triple_des" else member
        yield Feature(f"{name}-esp-{label}", part, f"esp_{member}", needs=ESP)
    yield Feature("large-send-ipv4", "large_send", "ipv4", family=4)
    yield Feature("large-send-ipv6", "large_send", "ipv6", family=6)
    yield Feature("checksum-ipv4", "checksum", "ipv4", family=4)
    yield Feature("checksum-ipv6", "checksum", "ipv6", family=6)


FEATURES = tuple(_rows())
"""Every capability there is."""


def has(offload: TaskOffload, feature: Feature) -> bool:
    """Whether it has this capability."""
    value = getattr(getattr(offload, feature.part), feature.member)
    return bool(value & feature.bit) if feature.bit else bool(value)


def only(hardware: TaskOffload, able: Collection[Feature]) -> TaskOffload:
    """Give the part of `hardware` that these rows make up."""
    values: dict[str, dict[str, Any]] = {}
    for feature in FEATURES:
        part = values.setdefault(feature.part, {})
        on = feature in able and has(hardware, feature)
        if feature.bit:
            part[feature.member] = part.get(feature.member, 0) | (feature.bit if on else 0)
        else:
            part[feature.member] = on
    v2, v1, large_send = values["ipsec_v2"], values["ipsec_v1"], values["large_send"]
    return TaskOffload(
        replace(hardware.ipsec_v2, **v2) if v2["encapsulation"] else NO_IPSEC,
        replace(hardware.ipsec_v1, **v1) if v1["encapsulation"] else NO_IPSEC_V1,
        replace(hardware.large_send, **large_send) if any(large_send.values()) else NO_LARGE_SEND,
        replace(hardware.checksum, **values["checksum"]),
    )
