"""The current configuration of the NIC: what it does now of what it could do.

Law: one table, `_FEATURES`, says of every capability what it needs besides the hardware. The current
configuration is worked out from it, and so is every reason that `features` gives; admission and the data
path read the result and nothing else. Values and a queue of indications: no SA, no packet.

    hardware ∩ keywords, or OID_TCP_OFFLOAD_PARAMETERS since                     offered: an SA may be added
             ∩ OID_OFFLOAD_ENCAPSULATION, or OID_TCP_TASK_OFFLOAD since          current: it is worked on
             ∩ not below a load-balancing master
             ∩ switched on before the last OID_OFFLOAD_ENCAPSULATION (R47)       receiving

Source: sheet §2, §3; R3, R18, R20-R29, R35, R38-R63.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vnic.errors import OidError, RequestError
from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES
from vnic.ndis.capabilities import (
    ALL_AUTHENTICATION,
    ALL_ENCRYPTION,
    ALL_UDP_ESP,
    ENCAPSULATION_IEEE_802_3,
    ENCAPSULATION_IEEE_802_3_P_AND_Q,
    ETHERNET,
    NO_IPSEC,
    NO_IPSEC_V1,
    NO_LARGE_SEND,
    NO_TASK_OFFLOAD,
    TRANSPORT_OVER_UDP_ESP_TUNNEL,
    UDP_ESP_TRANSPORT,
    UDP_ESP_TRANSPORT_OVER_TUNNEL,
    UDP_ESP_TUNNEL,
    ChecksumCapabilities,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    IpsecParameter,
    OffloadEncapsulation,
    OffloadParameters,
    SwitchParameter,
)
from vnic.ndis.keywords import V1_IPV4, V2, V2_IPV4, IpsecKeyword, Keywords
from vnic.ndis.offload_structs import pack_offload
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication
from vnic.packet.ethernet import ETHERNET_LENGTH

HARDWARE_CANNOT = "the hardware cannot"

_MAX_INDICATIONS = 256
_MAX_U32 = 0xFFFFFFFF

_AH, _ESP, _BOTH, _EITHER = 1, 2, 3, 0
"""What a feature needs switched on, as bits of IpsecKeyword; _EITHER: AH or ESP, whichever there is."""

_TRANSMIT_ENABLED = (2, 4)
"""TX_ENABLED_RX_DISABLED and TX_RX_ENABLED of the checksum members of NDIS_OFFLOAD_PARAMETERS; 1 and 3 are
off for transmit, 0 is no change."""

LSO_V1 = "*LsoV1IPv4"
LSO_V2_IPV4 = "*LsoV2IPv4"
LSO_V2_IPV6 = "*LsoV2IPv6"
_KEYWORDS = {
    V1_IPV4: "v1_ipv4",
    V2: "v2",
    V2_IPV4: "v2_ipv4",
    LSO_V1: "lso_v1_ipv4",
    LSO_V2_IPV4: "lso_v2_ipv4",
    LSO_V2_IPV6: "lso_v2_ipv6",
}
"""Members of `_Settings`."""

_ON = EncapsulationSetting(EncapsulationSwitch.ON, ENCAPSULATION_IEEE_802_3, ETHERNET_LENGTH)
_OFF = EncapsulationSetting(EncapsulationSwitch.OFF)
_SWITCHED = {
    EncapsulationSwitch.NO_CHANGE: None,
    EncapsulationSwitch.ON: True,
    EncapsulationSwitch.OFF: False,
}
_VLAN_TAG_LENGTH = 4
_HEADER_SIZES = range(ETHERNET_LENGTH, ETHERNET_LENGTH + 8 * _VLAN_TAG_LENGTH + 1, _VLAN_TAG_LENGTH)

_UDP_ESP_NAMES = (
    (UDP_ESP_TRANSPORT, "udp-transport"),
    (UDP_ESP_TUNNEL, "udp-tunnel"),
    (TRANSPORT_OVER_UDP_ESP_TUNNEL, "transport-over-udp-tunnel"),
    (UDP_ESP_TRANSPORT_OVER_TUNNEL, "udp-transport-over-tunnel"),
)


@dataclass(frozen=True, slots=True)
class FeatureState:
    """One capability, for `vnic caps show`."""

    name: str
    hardware: bool
    enabled: bool
    reason: str
    """Why it is off, or what it still waits for; "" when it is on."""


class _Feature(NamedTuple):
    """One row: a member of a part of TaskOffload, or one bit of it, and what it needs."""

    name: str
    part: str
    member: str
    bit: int = 0
    """0: the member is a truth value."""
    needs: int = _EITHER
    family: int = 0
    """4 or 6: needs that family's encapsulation on; 0: either."""


def _common_rows(part: str, name: str) -> Iterator[_Feature]:
    yield _Feature(name, part, "encapsulation", ENCAPSULATION_IEEE_802_3)
    yield _Feature(f"{name}-vlan", part, "encapsulation", ENCAPSULATION_IEEE_802_3_P_AND_Q)
    yield _Feature(f"{name}-ah-esp", part, "ah_esp_combined", needs=_BOTH)
    yield _Feature(f"{name}-transport-tunnel", part, "transport_tunnel_combined")
    yield _Feature(f"{name}-ipv4-options", part, "ipv4_options", family=4)
    for bit, kind in _UDP_ESP_NAMES:
        yield _Feature(f"{name}-{kind}", part, "udp_esp", bit, _ESP)


def _rows() -> Iterator[_Feature]:
    part, name = "ipsec_v2", "ipsec-v2"
    yield from _common_rows(part, name)
    yield _Feature(f"{name}-ipv6", part, "ipv6_supported", family=6)
    yield _Feature(f"{name}-ipv6-extension-headers", part, "ipv6_non_ipsec_extension_headers", family=6)
    yield _Feature(f"{name}-ah", part, "ah", needs=_AH)
    yield _Feature(f"{name}-esp", part, "esp", needs=_ESP)
    yield _Feature(f"{name}-transport", part, "transport")
    yield _Feature(f"{name}-tunnel", part, "tunnel")
    yield _Feature(f"{name}-lso", part, "lso_supported")
    yield _Feature(f"{name}-esn", part, "extended_sequence_numbers")
    for integrity in INTEGRITIES:
        bit = integrity.ndis_identifier
        yield _Feature(f"{name}-auth-{integrity.name}", part, "authentication_algorithms", bit)
    for encryption in ENCRYPTIONS:
        bit = encryption.ndis_identifier
        yield _Feature(f"{name}-encr-{encryption.name}", part, "encryption_algorithms", bit, _ESP)
    part, name = "ipsec_v1", "ipsec-v1"
    yield from _common_rows(part, name)
    yield _Feature(f"{name}-md5", part, "ah_md5")
    yield _Feature(f"{name}-sha1", part, "ah_sha1")
    for member in ("transport", "tunnel", "send", "receive"):
        yield _Feature(f"{name}-ah-{member}", part, f"ah_{member}", needs=_AH)
    for member in ("des", "triple_des", "null", "transport", "tunnel", "send", "receive"):
        label = "3des" if member == "triple_des" else member
        yield _Feature(f"{name}-esp-{label}", part, f"esp_{member}", needs=_ESP)
    yield _Feature("large-send-ipv4", "large_send", "ipv4", family=4)
    yield _Feature("large-send-ipv6", "large_send", "ipv6", family=6)
    yield _Feature("checksum-ipv4", "checksum", "ipv4", family=4)
    yield _Feature("checksum-ipv6", "checksum", "ipv6", family=6)


_FEATURES = tuple(_rows())
_NO_PART: dict[str, object] = {
    "ipsec_v2": NO_IPSEC,
    "ipsec_v1": NO_IPSEC_V1,
    "large_send": NO_LARGE_SEND,
    "checksum": ChecksumCapabilities(False, False),
}


def _has(offload: TaskOffload, feature: _Feature) -> bool:
    value = getattr(getattr(offload, feature.part), feature.member)
    return bool(value & feature.bit) if feature.bit else bool(value)


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
        ah_esp_combined=v1.ah_esp_combined and ah and esp,
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


@dataclass(frozen=True, slots=True)
class _Settings:
    """The registry, keyword by keyword; `Keywords` is what the outside sees of it."""

    v1_ipv4: IpsecKeyword
    v2: IpsecKeyword
    v2_ipv4: IpsecKeyword
    lso_v1_ipv4: bool
    lso_v2_ipv4: bool
    lso_v2_ipv6: bool
    checksum_ipv4: bool = True
    checksum_ipv6: bool = True
    """Of sends; this NIC checks none on receive."""

    @classmethod
    def of(cls, keywords: Keywords) -> _Settings:
        lso = keywords.lso
        return cls(keywords.v1_ipv4, keywords.v2, keywords.v2_ipv4, lso, lso, lso)

    def changed(self, parameters: OffloadParameters) -> _Settings:
        """After OFFLOAD_PARAMETERS: an IPsec value is the keyword's plus one, and 0 is no change (R48)."""

        def ipsec(value: int, before: IpsecKeyword) -> IpsecKeyword:
            return IpsecKeyword(value - 1) if value else before

        def lso(value: int, before: bool) -> bool:
            return value == SwitchParameter.ENABLED if value else before

        def checksum(before: bool, *values: int) -> bool:
            """One switch for what NDIS has several of: off with any of them, on when all set are on."""
            given = [value in _TRANSMIT_ENABLED for value in values if value]
            return all(given) if given else before

        return _Settings(
            ipsec(parameters.ipsec_v1, self.v1_ipv4),
            ipsec(parameters.ipsec_v2, self.v2),
            ipsec(parameters.ipsec_v2_ipv4, self.v2_ipv4),
            lso(parameters.lso_v1, self.lso_v1_ipv4),
            lso(parameters.lso_v2_ipv4, self.lso_v2_ipv4),
            lso(parameters.lso_v2_ipv6, self.lso_v2_ipv6),
            checksum(
                self.checksum_ipv4,
                parameters.ipv4_checksum,
                parameters.tcp_ipv4_checksum,
                parameters.udp_ipv4_checksum,
            ),
            checksum(self.checksum_ipv6, parameters.tcp_ipv6_checksum, parameters.udp_ipv6_checksum),
        )

    def keywords(self) -> Keywords:
        lso = self.lso_v1_ipv4 and self.lso_v2_ipv4 and self.lso_v2_ipv6
        return Keywords(self.v1_ipv4, self.v2, self.v2_ipv4, lso)


class Configuration:
    """What the NIC could do, what is switched on, and so what it does.

    Args:
        hardware: all it can do, whatever is switched off.
        keywords: the registry of the adapter, read now and at every `restart` (R38, R40).

    Attributes:
        hardware: as `check_hardware` gives it.
        offered: what an added SA must be covered by: hardware and settings.
        current: what the NIC does on send and reports (R62).
        receiving: what it does on receive; less than `current` while something that was newly switched on
            waits for OID_OFFLOAD_ENCAPSULATION (R47).
        ipv4: whether IPv4 encapsulation is on; NDIS_OFFLOAD has no member that says so of V2.
        generation: grows with every change of any of them.

    Raises:
        RequestError: as `check_hardware`.
    """

    def __init__(self, hardware: TaskOffload, keywords: Keywords) -> None:
        self.hardware = check_hardware(hardware)
        self._registry = _Settings.of(keywords)
        self._settings = self._registry
        self._received_v1 = IpsecKeyword.DISABLED
        self._received_v2 = IpsecKeyword.DISABLED
        self._encapsulation_set = False
        self.ipv4 = False
        self._ipv6 = False
        self._tasks: TaskOffload | None = None
        self._master: str | None = None
        self._indications: deque[StatusIndication] = deque(maxlen=_MAX_INDICATIONS)
        self.generation = 0
        self.offered = self.current = self.receiving = NO_TASK_OFFLOAD
        self._work_out()

    @property
    def sa_capacity(self) -> int:
        """Bundles that fit; a V1 report has no member for it."""
        v2 = self.hardware.ipsec_v2
        if v2.encapsulation or not self.hardware.ipsec_v1.encapsulation:
            return v2.sa_offload_capacity
        return OffloadCapabilities().sa_offload_capacity

    # --------------------------------------------------------------------------------- switches

    @property
    def keywords(self) -> Keywords:
        """The registry. `lso` stands for three keywords and is true when all of them are."""
        return self._registry.keywords()

    def set_keywords(self, keywords: Keywords) -> None:
        """Write the registry; in force after `restart`."""
        if keywords.lso == self.keywords.lso:
            self._registry = replace(
                self._registry, v1_ipv4=keywords.v1_ipv4, v2=keywords.v2, v2_ipv4=keywords.v2_ipv4
            )
        else:
            before = self._registry
            self._registry = replace(
                _Settings.of(keywords),
                checksum_ipv4=before.checksum_ipv4,
                checksum_ipv6=before.checksum_ipv6,
            )

    def restart(self) -> None:
        """Read the registry again (R40); nothing is active before OID_OFFLOAD_ENCAPSULATION (R55)."""
        self._settings = self._registry
        self._encapsulation_set = False
        self.ipv4 = self._ipv6 = False
        self._received_v1 = self._received_v2 = IpsecKeyword.DISABLED
        self._tasks = None
        self._changed()

    @property
    def encapsulation(self) -> OffloadEncapsulation:
        """What OID_OFFLOAD_ENCAPSULATION has set, as a query of it answers."""
        return OffloadEncapsulation(*(_ON if on else _OFF for on in (self.ipv4, self._ipv6)))

    def set_encapsulation(self, ipv4: bool | None, ipv6: bool | None) -> None:
        """Switch all configured offloads of a family on or off (R54, R57); None leaves it as it is.

        Raises:
            OidError: NOT_SUPPORTED: this NIC offloads nothing (R51).
        """
        self.check_offloads()
        self._encapsulation_set = True
        self.ipv4 = self.ipv4 if ipv4 is None else ipv4
        self._ipv6 = self._ipv6 if ipv6 is None else ipv6
        self._received_v1, self._received_v2 = self._settings.v1_ipv4, self._v2()
        self._tasks = None
        self._work_out()
        self.indicate_current()

    def set_parameters(self, parameters: OffloadParameters) -> None:
        """OID_TCP_OFFLOAD_PARAMETERS (R43-R49): into the registry unless it says not to, and into force.

        Raises:
            OidError: INVALID_DATA: a member is out of range, and nothing was changed (R43); NOT_SUPPORTED:
                this NIC offloads nothing (R42).
        """
        self.check_offloads()
        _check_parameters(parameters)
        if not parameters.skip_registry_update:
            self._registry = self._registry.changed(parameters)
        self._settings = self._settings.changed(parameters)
        self._received_v1 = IpsecKeyword(self._received_v1 & self._settings.v1_ipv4)
        self._received_v2 = IpsecKeyword(self._received_v2 & self._v2())
        self._work_out()
        self.indicate_current()

    def set_tasks(self, v1: OffloadCapabilitiesV1) -> None:
        """OID_TCP_TASK_OFFLOAD: only this is on from now on; the next OID_OFFLOAD_ENCAPSULATION ends it."""
        self._encapsulation_set = True
        self.ipv4 = True
        self._ipv6 = False
        self._received_v1, self._received_v2 = self._settings.v1_ipv4, IpsecKeyword.DISABLED
        self._tasks = replace(NO_TASK_OFFLOAD, ipsec_v1=v1)
        self._work_out()
        self.indicate_current()

    def set_load_balanced(self, load_balanced: bool, master: str = "") -> None:
        """Withdraw IPsec offload below a load-balancing master, or take it up again (R18). The master shows
        other hardware to those above it, and says so (R63).

        Args:
            master: its name, for `features`.
        """
        before = self.reported_hardware
        self._master = (master or "a load-balancing master") if load_balanced else None
        if self.reported_hardware != before:
            buffer = pack_offload(self.reported_hardware)
            self.indicate(StatusIndication(IndicationCode.TASK_OFFLOAD_HARDWARE_CAPABILITIES, buffer))
        self._changed()

    # --------------------------------------------------------------------------------- answers

    @property
    def reported_hardware(self) -> TaskOffload:
        """What the query of hardware capabilities answers: no IPsec below a load-balancing master."""
        if self._master is None:
            return self.hardware
        return replace(self.hardware, ipsec_v2=NO_IPSEC, ipsec_v1=NO_IPSEC_V1)

    def features(self) -> list[FeatureState]:
        """Every capability, whether it is on, and why not."""
        states = []
        for feature in _FEATURES:
            hardware = _has(self.hardware, feature)
            reason = self._withheld(feature) or self._inactive(feature) if hardware else HARDWARE_CANNOT
            enabled = not reason
            if enabled and self._awaits(feature):
                reason = "receive waits for OID_OFFLOAD_ENCAPSULATION (R47)"
            states.append(FeatureState(feature.name, hardware, enabled, reason))
        return states

    def indicate_current(self) -> None:
        """Tell everybody above what the NIC does now (R46, R54, R61, R62)."""
        buffer = pack_offload(self.current)
        self.indicate(StatusIndication(IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG, buffer))

    def indicate(self, indication: StatusIndication) -> None:
        """Queue an indication; the oldest goes when nobody takes any."""
        self._indications.append(indication)

    def take_indications(self) -> list[StatusIndication]:
        """Give the indications since the last call, in order."""
        taken = list(self._indications)
        self._indications.clear()
        return taken

    # --------------------------------------------------------------------------------- the table at work

    def _v2(self) -> IpsecKeyword:
        """The V2 setting that rules (R49)."""
        settings = self._settings
        return settings.v2 if self.hardware.ipsec_v2.ipv6_supported else settings.v2_ipv4

    def _changed(self) -> None:
        before = self.current
        self._work_out()
        if self.current != before:
            self.indicate_current()

    def _work_out(self) -> None:
        offered = {feature for feature in _FEATURES if not self._withheld(feature)}
        current = {feature for feature in offered if not self._inactive(feature)}
        receiving = {feature for feature in current if not self._awaits(feature)}
        self.offered = self._built(offered)
        self.current = self._built(current)
        self.receiving = self._built(receiving)
        self.generation += 1

    def _built(self, able: set[_Feature]) -> TaskOffload:
        """The part of the hardware that these rows make up."""
        values: dict[str, dict[str, Any]] = {part: {} for part in _NO_PART}
        for feature in _FEATURES:
            part = values[feature.part]
            has = feature in able and _has(self.hardware, feature)
            if feature.bit:
                part[feature.member] = part.get(feature.member, 0) | (feature.bit if has else 0)
            else:
                part[feature.member] = has
        hardware = self.hardware
        v2, v1, large_send = hardware.ipsec_v2, hardware.ipsec_v1, hardware.large_send
        return TaskOffload(
            replace(v2, **values["ipsec_v2"]) if values["ipsec_v2"]["encapsulation"] else NO_IPSEC,
            replace(v1, **values["ipsec_v1"]) if values["ipsec_v1"]["encapsulation"] else NO_IPSEC_V1,
            replace(large_send, **values["large_send"])
            if any(values["large_send"].values())
            else NO_LARGE_SEND,
            replace(hardware.checksum, **values["checksum"]),
        )

    def _withheld(self, feature: _Feature) -> str:
        """Why the settings keep the NIC from offering this, or ""."""
        if feature.part == "ipsec_v2":
            return self._keyword_reason(
                V2 if self.hardware.ipsec_v2.ipv6_supported else V2_IPV4,
                self._v2(),
                feature.needs,
                _operations(self.hardware.ipsec_v2.ah, self.hardware.ipsec_v2.esp),
            ) or (self._lso_reason() if feature.member == "lso_supported" else "")
        if feature.part == "ipsec_v1":
            v1 = self.hardware.ipsec_v1
            return self._keyword_reason(
                V1_IPV4,
                self._settings.v1_ipv4,
                feature.needs,
                _operations(v1.ah_transport or v1.ah_tunnel, v1.esp_transport or v1.esp_tunnel),
            )
        if feature.part == "large_send":
            return self._lso_reason(feature.family)
        settings = self._settings
        on = settings.checksum_ipv4 if feature.family == 4 else settings.checksum_ipv6
        return "" if on else "OID_TCP_OFFLOAD_PARAMETERS has switched it off"

    def _until(self, keyword: str) -> str:
        """A remark, when the registry says otherwise by now."""
        member = _KEYWORDS[keyword]
        if getattr(self._settings, member) == getattr(self._registry, member):
            return ""
        return " until the adapter restarts"

    def _keyword_reason(self, keyword: str, value: IpsecKeyword, needs: int, hardware: int) -> str:
        """Why a keyword keeps what needs these operations off, or ""; `hardware`: those it can do."""
        able = value & hardware
        if (able & needs == needs) if needs else able:
            return ""
        return f"keyword {keyword} is {value.value} ({value.name.replace('_', ' ')}){self._until(keyword)}"

    def _lso_reason(self, family: int = 0) -> str:
        settings = self._settings
        off4, off6 = (
            [
                f"keyword {name} is 0 (DISABLED){self._until(name)}"
                for name in names
                if not getattr(settings, _KEYWORDS[name])
            ]
            for names in ((LSO_V1, LSO_V2_IPV4), (LSO_V2_IPV6,))
        )
        if family == 4:
            return next(iter(off4), "")
        if family == 6:
            return next(iter(off6), "")
        large_send = self.hardware.large_send
        works = (large_send.ipv4 and not off4) or (large_send.ipv6 and not off6)
        return "" if works else next(iter([*off4, *off6]), HARDWARE_CANNOT)

    def _inactive(self, feature: _Feature) -> str:
        """Why what is offered does not work now, or ""."""
        ipsec = feature.part in ("ipsec_v2", "ipsec_v1")
        if ipsec and self._master is not None:
            return f"below {self._master}: load balancing (R18)"
        family = 4 if feature.part == "ipsec_v1" else feature.family
        on = {4: self.ipv4, 6: self._ipv6, 0: self.ipv4 or self._ipv6}[family]
        if not on:
            if not self._encapsulation_set:
                return "no OID_OFFLOAD_ENCAPSULATION yet (R55)"
            which = f" for IPv{family}" if family else ""
            return f"OID_OFFLOAD_ENCAPSULATION has switched it off{which} (R57)"
        if self._tasks is not None and not _has(self._tasks, feature):
            return "not among the tasks of OID_TCP_TASK_OFFLOAD"
        return ""

    def _awaits(self, feature: _Feature) -> bool:
        """Whether receive must wait for OID_OFFLOAD_ENCAPSULATION with it (R47)."""
        if feature.part == "ipsec_v2":
            received, hardware = self._received_v2, self.hardware.ipsec_v2
            able = received & _operations(hardware.ah, hardware.esp)
        elif feature.part == "ipsec_v1":
            able = self._received_v1
        else:
            return False
        return able & feature.needs != feature.needs if feature.needs else not able

    def check_offloads(self) -> None:
        """Refuse to configure a NIC without any task offload.

        Raises:
            OidError: NOT_SUPPORTED (R42, R51).
        """
        if self.hardware == NO_TASK_OFFLOAD:
            raise OidError(NdisStatus.NOT_SUPPORTED, "this NIC has no task offload (R42, R51)")


def _check_parameters(parameters: OffloadParameters) -> None:
    for most, members in (
        (max(IpsecParameter), ("ipsec_v1", "ipsec_v2", "ipsec_v2_ipv4")),
        (max(SwitchParameter), ("lso_v1", "lso_v2_ipv4", "lso_v2_ipv6")),
        (
            max(_TRANSMIT_ENABLED),
            (
                "ipv4_checksum",
                "tcp_ipv4_checksum",
                "udp_ipv4_checksum",
                "tcp_ipv6_checksum",
                "udp_ipv6_checksum",
            ),
        ),
    ):
        for member in members:
            value = getattr(parameters, member)
            if not 0 <= value <= most:
                raise OidError(
                    NdisStatus.INVALID_DATA,
                    "no such setting (R43)",
                    field=member,
                    value=str(int(value)),
                    allowed=f"0 (no change) to {int(most)}",
                )


def check_encapsulation(wanted: OffloadEncapsulation) -> tuple[bool | None, bool | None]:
    """Give what to do with IPv4 and IPv6; None leaves it as it is.

    Raises:
        OidError: INVALID_PARAMETER: on, but not with Ethernet, which is all that any offload here supports
            (R52, R53).
    """
    for family, setting in (("IPv4", wanted.ipv4), ("IPv6", wanted.ipv6)):
        if setting.enabled is not EncapsulationSwitch.ON:
            continue
        if setting.encapsulation_type != ENCAPSULATION_IEEE_802_3:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "no offload of this NIC supports that encapsulation (R53)",
                field=f"{family}.EncapsulationType",
                value=f"{setting.encapsulation_type:#x}",
                allowed=f"{ENCAPSULATION_IEEE_802_3:#x} (IEEE 802.3)",
            )
        if setting.header_size not in _HEADER_SIZES:
            raise OidError(
                NdisStatus.INVALID_PARAMETER,
                "not the length of an Ethernet header",
                field=f"{family}.HeaderSize",
                value=str(setting.header_size),
                allowed=f"{ETHERNET_LENGTH}, or {_VLAN_TAG_LENGTH} more for each VLAN tag",
            )
    ipv4, ipv6 = (_SWITCHED[setting.enabled] for setting in (wanted.ipv4, wanted.ipv6))
    return ipv4, ipv6


def _operations(ah: bool, esp: bool) -> int:
    return (_AH if ah else 0) | (_ESP if esp else 0)
