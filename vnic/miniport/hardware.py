"""What a NIC may claim to be able to do at all.

Law: values in, values out or a RequestError. What one capability cannot do without another goes with it, so
that a card is modelled by naming what it lacks.

Source: sheet §2.2, §2.3; R3, R22, R23, R28, R29.
"""

from __future__ import annotations

from dataclasses import replace

from vnic.errors import RequestError
from vnic.ndis.capabilities import (
    ALL_AUTHENTICATION,
    ALL_ENCRYPTION,
    ALL_UDP_ESP,
    ENCAPSULATION_IEEE_802_3,
    ETHERNET,
    NO_IPSEC,
    NO_IPSEC_V1,
    NO_LARGE_SEND,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)

_MAX_U32 = 0xFFFFFFFF


def check_hardware(hardware: TaskOffload) -> TaskOffload:
    """Give what a NIC like this can do: what one capability cannot do without another goes with it.

    Raises:
        RequestError: it claims what this NIC cannot do (R3), or lacks what every NIC must have (R22, R28,
            R29).
    """
    v2, v1 = hardware.ipsec_v2, hardware.ipsec_v1
    for field, value, able in (
        ("udp_esp", v2.udp_esp, ALL_UDP_ESP),
        ("authentication_algorithms", v2.authentication_algorithms, ALL_AUTHENTICATION),
        ("encryption_algorithms", v2.encryption_algorithms, ALL_ENCRYPTION),
        ("encapsulation", v2.encapsulation, ETHERNET),
        ("v1.udp_esp", v1.udp_esp, ALL_UDP_ESP),
        ("v1.encapsulation", v1.encapsulation, ETHERNET),
    ):
        if value & ~able:
            raise RequestError(
                "the NIC cannot do what these capabilities claim (R3)",
                field=field,
                value=f"{value:#x}",
                allowed=f"bits of {able:#x}",
            )
    for field, value in (
        ("sa_offload_capacity", v2.sa_offload_capacity),
        ("max_offload_size", hardware.large_send.max_offload_size),
        ("min_segment_count", hardware.large_send.min_segment_count),
    ):
        if not 0 <= value <= _MAX_U32:
            raise RequestError(
                "the structure has no room for that number",
                field=field,
                value=str(value),
                allowed=f"0 to {_MAX_U32}",
            )
    v2 = _consistent_v2(v2, hardware)
    v1 = _consistent_v1(v1)
    large_send = hardware.large_send
    if not large_send.ipv4 and not large_send.ipv6:
        large_send = NO_LARGE_SEND
    return replace(hardware, ipsec_v2=v2, ipsec_v1=v1, large_send=large_send)


def _consistent_v2(v2: OffloadCapabilities, hardware: TaskOffload) -> OffloadCapabilities:
    if not v2.ah and not v2.esp:
        return NO_IPSEC
    _check_ethernet(v2.encapsulation, "encapsulation", "R28")
    if not v2.tunnel:
        raise RequestError(
            "a NIC with IPsec offload must do tunnels (R29)", field="tunnel", value="false", allowed="true"
        )
    both = v2.transport_tunnel_combined and v2.transport
    return replace(
        v2,
        ipv6_non_ipsec_extension_headers=v2.ipv6_non_ipsec_extension_headers and v2.ipv6_supported,
        ah_esp_combined=v2.ah_esp_combined and v2.ah and v2.esp,
        transport_tunnel_combined=both,
        lso_supported=v2.lso_supported
        and v2.transport
        and (hardware.large_send.ipv4 or hardware.large_send.ipv6),
        udp_esp=_udp_esp(v2.udp_esp, v2.transport, True, both) if v2.esp else 0,
        encryption_algorithms=v2.encryption_algorithms if v2.esp else 0,
    )


def _consistent_v1(v1: OffloadCapabilitiesV1) -> OffloadCapabilitiesV1:
    """V1 can do AH, or ESP, when it can send or receive it in a mode."""
    ah = (v1.ah_transport or v1.ah_tunnel) and (v1.ah_send or v1.ah_receive) and (v1.ah_md5 or v1.ah_sha1)
    esp = (
        (v1.esp_transport or v1.esp_tunnel)
        and (v1.esp_send or v1.esp_receive)
        and (v1.esp_des or v1.esp_triple_des or v1.esp_null)
    )
    if not ah and not esp:
        return NO_IPSEC_V1
    _check_ethernet(v1.encapsulation, "v1.encapsulation", "R22")
    if not ah:
        v1 = replace(v1, ah_transport=False, ah_tunnel=False, ah_send=False, ah_receive=False)
    if not esp:
        v1 = replace(v1, esp_transport=False, esp_tunnel=False, esp_send=False, esp_receive=False)
        v1 = replace(v1, esp_des=False, esp_triple_des=False, esp_null=False)
    transport = (v1.esp_transport and esp) or (v1.ah_transport and ah)
    tunnel = (v1.esp_tunnel and esp) or (v1.ah_tunnel and ah)
    parses = esp and v1.esp_receive
    both = v1.transport_tunnel_combined and transport and tunnel
    return replace(
        v1,
        # Together they come in all six pairs of integrity algorithms (R14).
        ah_esp_combined=v1.ah_esp_combined and ah and esp and v1.ah_md5 and v1.ah_sha1,
        transport_tunnel_combined=both,
        udp_esp=_udp_esp(v1.udp_esp, v1.esp_transport, v1.esp_tunnel, both) if parses else 0,
    )


def _udp_esp(bits: int, transport: bool, tunnel: bool, both: bool) -> int:
    """The subtypes that remain where a mode is missing."""
    able = UDP_ESP_TRANSPORT if transport else 0
    able |= UDP_ESP_TUNNEL if tunnel else 0
    able |= TRANSPORT_OVER_UDP_ESP_TUNNEL | UDP_ESP_TRANSPORT_OVER_TUNNEL if both else 0
    return bits & able


def _check_ethernet(encapsulation: int, field: str, rule: str) -> None:
    if not encapsulation & ENCAPSULATION_IEEE_802_3:
        raise RequestError(
            f"every NIC does Ethernet ({rule})",
            field=field,
            value=f"{encapsulation:#x}",
            allowed=f"values with {ENCAPSULATION_IEEE_802_3:#x}",
        )
