"""Which card to model: messages of capabilities and keywords to values of the contract.

Law: pure translation. One spelling of every feature: the members of `Capabilities` are the keys of the
configuration, the words of the command and the names in JSON. Every refusal names word, value and what is
allowed.

Source: NDIS_IPSEC_OFFLOAD_V1, NDIS_IPSEC_OFFLOAD_V2 (sheet §2), standardized keywords (sheet §3.1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from vnic.control.interface import Capabilities, UdpEspWord, V1Capabilities, parameters_of
from vnic.errors import RequestError
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, Encryption, Integrity
from vnic.ndis import keywords as names
from vnic.ndis.capabilities import (
    ALL_UDP_ESP,
    NO_IPSEC,
    NO_IPSEC_V1,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.keywords import IpsecKeyword, Keywords

Row = TypeVar("Row", Encryption, Integrity)

MAX_SA_CAPACITY = 1 << 20
"""SA bundles; a million take some 3 GB."""

UDP_ESP_BITS: dict[str, int] = {
    "udp_transport": UDP_ESP_TRANSPORT,
    "udp_tunnel": UDP_ESP_TUNNEL,
    "transport_over_udp_tunnel": TRANSPORT_OVER_UDP_ESP_TUNNEL,
    "udp_transport_over_tunnel": UDP_ESP_TRANSPORT_OVER_TUNNEL,
}
"""The four kinds of UDP-ESP by name."""

KEYWORDS = {names.V1_IPV4: "v1_ipv4", names.V2: "v2", names.V2_IPV4: "v2_ipv4"}
"""Standardized keywords and the members of `Keywords` they are."""

_KEYWORD_MEMBERS = {name.lower().removeprefix("*"): member for name, member in KEYWORDS.items()}
_V1_SWITCHES = tuple(
    f"{protocol}_{what}"
    for protocol, whats in (
        ("ah", ("md5", "sha1", "transport", "tunnel", "send", "receive")),
        ("esp", ("des", "triple_des", "null", "transport", "tunnel", "send", "receive")),
    )
    for what in whats
)
_ALGORITHM_LISTS = {"encr": "encryptions", "auth": "integrities"}
_FEATURE_MEMBERS = {
    "ah-esp": "ah_esp_combined",
    "transport-tunnel": "transport_tunnel_combined",
    "md5": "ah_md5",
    "sha1": "ah_sha1",
    "esp-3des": "esp_triple_des",
}
_SHOWN_LENGTH = 64


def hardware_of(message: Capabilities | None) -> TaskOffload:
    """Read which card to model; what is left out is all that the rest allows.

    A card with neither AH nor ESP is one without IPsec V2; V1 is said apart.

    Raises:
        RequestError: a name is not known, a number is out of range, or two members contradict each other.
    """
    message = message or Capabilities()
    return TaskOffload(ipsec_v2=_v2_of(message), ipsec_v1=_v1_of(message.v1 or V1Capabilities()))


def _v2_of(message: Capabilities) -> OffloadCapabilities:
    encryption = _identifiers(message.encryptions, ENCRYPTION_BY_NAME, "capabilities.encryptions")
    integrity = _identifiers(message.integrities, INTEGRITY_BY_NAME, "capabilities.integrities")
    esp = _follows(message.esp, "esp", encryption != 0, "an encryption algorithm (`null` is one)")
    ah = _follows(message.ah, "ah", integrity != 0, "an integrity algorithm")
    transport = message.transport is not False
    tunnel = message.tunnel is not False
    if not tunnel and (ah or esp):
        raise RequestError(
            "every NIC with IPsec offload does tunnels (R29)",
            field="capabilities.tunnel",
            value="false",
            allowed="true; a card without IPsec has ah and esp false",
        )
    capacity = message.sa_capacity
    if capacity is not None and not 1 <= capacity <= MAX_SA_CAPACITY:
        raise RequestError(
            "out of range",
            field="capabilities.sa_capacity",
            value=str(capacity)[:_SHOWN_LENGTH],
            allowed=f"1 to {MAX_SA_CAPACITY}",
        )
    ah_esp = _follows(message.ah_esp_combined, "ah_esp_combined", ah and esp, "ah and esp")
    both = _follows(
        message.transport_tunnel_combined,
        "transport_tunnel_combined",
        transport and tunnel,
        "transport and tunnel",
    )
    ipv6 = message.ipv6 is not False
    extension = _follows(message.ipv6_extension_headers, "ipv6_extension_headers", ipv6, "ipv6")
    udp_esp = _udp_esp_of(message.udp_esp, "capabilities.udp_esp")
    if udp_esp and not esp:
        if message.udp_esp is not None:
            raise _contradiction("udp_esp", ", ".join(message.udp_esp), "esp")
        udp_esp = 0
    if not ah and not esp:
        return NO_IPSEC
    return OffloadCapabilities(
        ipv6_supported=ipv6,
        ipv4_options=message.ipv4_options is not False,
        ipv6_non_ipsec_extension_headers=extension,
        ah=ah,
        esp=esp,
        ah_esp_combined=ah_esp,
        transport=transport,
        tunnel=tunnel,
        transport_tunnel_combined=both,
        lso_supported=message.lso is not False,
        extended_sequence_numbers=message.esn is not False,
        udp_esp=udp_esp,
        authentication_algorithms=integrity,
        encryption_algorithms=encryption,
        sa_offload_capacity=OffloadCapabilities().sa_offload_capacity if capacity is None else capacity,
    )


def _v1_of(message: V1Capabilities) -> OffloadCapabilitiesV1:
    if message.enabled is False:
        for name, given in parameters_of(message).items():
            if name != "enabled" and given:
                raise _contradiction(f"v1.{name}", "true" if given is True else str(given), "v1.enabled")
        return NO_IPSEC_V1
    on = {name: getattr(message, name) is not False for name in _V1_SWITCHES}
    if not (on["ah_md5"] or on["ah_sha1"]):
        # ESP of V1 may do without an algorithm of integrity, AH may not.
        for name in ("ah_transport", "ah_tunnel", "ah_send", "ah_receive"):
            on[name] = _follows(getattr(message, name), f"v1.{name}", False, "v1.ah_md5 or v1.ah_sha1")
    ah = (on["ah_transport"] or on["ah_tunnel"]) and (on["ah_send"] or on["ah_receive"])
    esp = (on["esp_transport"] or on["esp_tunnel"]) and (on["esp_send"] or on["esp_receive"])
    esp = esp and (on["esp_des"] or on["esp_triple_des"] or on["esp_null"])
    combined = _follows(message.ah_esp_combined, "v1.ah_esp_combined", ah and esp, "AH and ESP by V1")
    modes = (on["ah_transport"] or on["esp_transport"]) and (on["ah_tunnel"] or on["esp_tunnel"])
    both = _follows(
        message.transport_tunnel_combined, "v1.transport_tunnel_combined", modes, "both modes by V1"
    )
    if not ah and not esp:
        return NO_IPSEC_V1
    return OffloadCapabilitiesV1(
        ah_esp_combined=combined,
        transport_tunnel_combined=both,
        ipv4_options=message.ipv4_options is not False,
        udp_esp=_udp_esp_of(message.udp_esp, "capabilities.v1.udp_esp") if esp else 0,
        **on,
    )


def _follows(given: bool | None, name: str, possible: bool, needs: str) -> bool:
    """Take a switch as given; one left out is on where it can be."""
    if given and not possible:
        raise _contradiction(name, "true", needs)
    return possible if given is None else given


def _contradiction(name: str, value: str, needs: str) -> RequestError:
    return RequestError(
        f"contradicts what else is said of the card: it needs {needs}",
        field=f"capabilities.{name}",
        value=value[:_SHOWN_LENGTH],
        allowed=f"false, or {needs}",
    )


def _identifiers(names: list[str] | None, table: dict[str, Row], field: str) -> int:
    """Give the bits of named algorithms; None is all of them."""
    chosen = table if names is None else names
    bits = 0
    for name in chosen:
        row = table.get(name)
        if row is None:
            raise RequestError(
                "there is no such algorithm",
                field=field,
                value=name[:_SHOWN_LENGTH],
                allowed=", ".join(table),
            )
        bits |= row.ndis_identifier
    return bits


def _udp_esp_of(words: list[UdpEspWord] | None, field: str) -> int:
    """Give the bits of named kinds of UDP-ESP; None is all of them."""
    if words is None:
        return ALL_UDP_ESP
    bits = 0
    for word in words:
        if word not in UDP_ESP_BITS:
            raise RequestError(
                "there is no such kind of UDP-ESP",
                field=field,
                value=word[:_SHOWN_LENGTH],
                allowed=", ".join(UDP_ESP_BITS),
            )
        bits |= UDP_ESP_BITS[word]
    return bits


def keywords_of(given: dict[str, int] | None, base: Keywords | None = None) -> Keywords:
    """Read standardized keywords; what is left out stays as in `base`, or is on.

    As in a registry capitals do not matter; the asterisk may be left out.

    Raises:
        RequestError: there is no such keyword, or its value is none of 0 to 3.
    """
    changes: dict[str, Any] = {}
    for name, value in (given or {}).items():
        member = _KEYWORD_MEMBERS.get(name.lower().removeprefix("*"))
        if member is None:
            raise RequestError(
                "there is no such keyword",
                field="keywords",
                value=name[:_SHOWN_LENGTH],
                allowed=", ".join(KEYWORDS),
            )
        if isinstance(value, bool) or value not in tuple(IpsecKeyword):
            raise RequestError(
                "not a value of a keyword",
                field=f"keywords.{name}"[:_SHOWN_LENGTH],
                value=str(value)[:_SHOWN_LENGTH],
                allowed="0 (disabled), 1 (AH), 2 (ESP), 3 (AH and ESP)",
            )
        changes[member] = IpsecKeyword(value)
    return replace(base or Keywords(), **changes)


def keywords_message(keywords: Keywords) -> dict[str, int]:
    """Write the standardized keywords of IPsec, by name."""
    return {name: int(getattr(keywords, member)) for name, member in KEYWORDS.items()}


def feature_name(name: str) -> str:
    """Give a feature of the NIC the name that the configuration has for it.

    `ipsec-v2-ipv4-options` is `ipv4_options`, `ipsec-v1-esp-3des` is `v1.esp_triple_des`,
    `ipsec-v2-encr-aes-gcm-128` is `encryptions.aes-gcm-128`.
    """
    version, _, rest = name.removeprefix("ipsec-").partition("-")
    if not name.startswith("ipsec-") or version not in ("v1", "v2"):
        return name.replace("-", "_")
    place = "v1." if version == "v1" else ""
    if not rest:
        return "v1.enabled" if place else "ipsec_v2"
    kind, _, algorithm = rest.partition("-")
    if kind in _ALGORITHM_LISTS:
        return f"{place}{_ALGORITHM_LISTS[kind]}.{algorithm}"
    member = rest.replace("-", "_")
    if member in UDP_ESP_BITS:
        return f"{place}udp_esp.{member}"
    return place + _FEATURE_MEMBERS.get(rest, member)
