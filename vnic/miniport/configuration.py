"""The current configuration of the NIC: what it does now of what it could do.

Law: one table, `features.FEATURES`, says of every capability what it needs besides the hardware. The current
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
from dataclasses import dataclass, replace

from vnic.errors import OidError
from vnic.miniport.features import AH, ESP, FEATURES, Feature, has, only
from vnic.miniport.hardware import check_hardware
from vnic.miniport.settings import KEYWORDS, LSO_V1, LSO_V2_IPV4, LSO_V2_IPV6, Settings, check_parameters
from vnic.ndis.capabilities import (
    ENCAPSULATION_IEEE_802_3,
    NO_IPSEC,
    NO_IPSEC_V1,
    NO_TASK_OFFLOAD,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    OffloadEncapsulation,
    OffloadParameters,
)
from vnic.ndis.keywords import V1_IPV4, V2, V2_IPV4, IpsecKeyword, Keywords
from vnic.ndis.offload_structs import pack_offload
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication
from vnic.packet.ethernet import ETHERNET_LENGTH

HARDWARE_CANNOT = "the hardware cannot"

_MAX_INDICATIONS = 256

_ON = EncapsulationSetting(EncapsulationSwitch.ON, ENCAPSULATION_IEEE_802_3, ETHERNET_LENGTH)
_OFF = EncapsulationSetting(EncapsulationSwitch.OFF)
_SWITCHED = {
    EncapsulationSwitch.NO_CHANGE: None,
    EncapsulationSwitch.ON: True,
    EncapsulationSwitch.OFF: False,
}
_VLAN_TAG_LENGTH = 4
_HEADER_SIZES = range(ETHERNET_LENGTH, ETHERNET_LENGTH + 8 * _VLAN_TAG_LENGTH + 1, _VLAN_TAG_LENGTH)


@dataclass(frozen=True, slots=True)
class FeatureState:
    """One capability, for `vnic caps show`."""

    name: str
    hardware: bool
    enabled: bool
    reason: str
    """Why it is off, or what it still waits for; "" when it is on."""


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
        self._registry = Settings.of(keywords)
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
                Settings.of(keywords),
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
        check_parameters(parameters)
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
        for feature in FEATURES:
            hardware = has(self.hardware, feature)
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
        offered = {feature for feature in FEATURES if not self._withheld(feature)}
        current = {feature for feature in offered if not self._inactive(feature)}
        receiving = {feature for feature in current if not self._awaits(feature)}
        self.offered = only(self.hardware, offered)
        self.current = only(self.hardware, current)
        self.receiving = only(self.hardware, receiving)
        self.generation += 1

    def _withheld(self, feature: Feature) -> str:
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
        member = KEYWORDS[keyword]
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
                if not getattr(settings, KEYWORDS[name])
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

    def _inactive(self, feature: Feature) -> str:
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
        if self._tasks is not None and not has(self._tasks, feature):
            return "not among the tasks of OID_TCP_TASK_OFFLOAD"
        return ""

    def _awaits(self, feature: Feature) -> bool:
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
    return (AH if ah else 0) | (ESP if esp else 0)
