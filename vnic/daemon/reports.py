"""What there is to see of the adapters, as messages.

Law: reads, changes nothing. A device that cannot be asked is shown as far as the daemon itself knows it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Any

from vnic.control.interface import (
    AdapterCapabilities,
    AdapterMtu,
    AdapterState,
    AdapterStatistics,
    AlgorithmCapability,
    CardStatistics,
    DefaultWord,
    DropCount,
    DropReasonText,
    Feature,
    NblStatistics,
    NdisCapabilities,
    PlaceWord,
    PolicyDefault,
    PolicyMtu,
    PortStatistics,
    PuntCount,
    SaMtu,
    SaState,
    TapState,
    V1State,
    WireState,
)
from vnic.daemon.adapters import Adapter, Adapters
from vnic.daemon.hardware import feature_name, keywords_message
from vnic.daemon.values import full_name_of, sa_state, selector_message
from vnic.engine.contract import CardCounters, Engine, SaReport
from vnic.errors import VnicError
from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES, Encryption, Integrity
from vnic.ipsec.association import Direction
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import PolicyAction
from vnic.ports.base import Port, PortCounters
from vnic.ports.nbl import NblCounters
from vnic.ports.udp import UdpPort

SAS_A_MESSAGE = 10_000
"""SAs that one answer may hold."""

SAS_A_PART = 128
"""SAs of one part of a long answer."""

_SAS_A_TURN = 128
"""SAs written before the frames get a turn."""


_REASONS = {reason.value: reason for reason in DropReason}


def drop_reasons() -> list[DropReasonText]:
    """Give the table of reasons."""
    return [DropReasonText(name=one.value, text=one.text, xfrm_stat=one.xfrm_stat) for one in DropReason]


def _udp_state(wire: Port) -> dict[str, Any]:
    """What only a UDP wire has."""
    if not isinstance(wire, UdpPort):
        return {}
    return {
        "local": str(wire.local),
        "remote": str(wire.remote),
        "peer": str(wire.peer),
        "keepalive": wire.keepalive_s,
        "follow": wire.follow,
    }


async def adapter_state(adapters: Adapters, adapter: Adapter) -> AdapterState:
    """Describe one adapter; addresses, MAC and MTU are what the kernel says now."""
    wire = adapters.wire_of(adapter)
    card, inline = adapter.engine, adapter.inline
    defaults = None if inline is None else inline.defaults
    return AdapterState(
        name=adapter.name,
        state=adapter.state,
        reason=adapter.failure,
        engine=card.name,
        tap=await _tap_state(adapters, adapter),
        wire=WireState(
            kind=wire.kind,
            name=wire.name,
            netns=wire.netns,
            mtu=adapter.wire.mtu,
            features=adapter.wire.features(),
            **_udp_state(adapter.wire),
        ),
        non_ip=None if defaults is None else "pass" if defaults.non_ip is PolicyAction.BYPASS else "drop",
        policy_default_in=None if defaults is None else _default_word(defaults.inbound),
        policy_default_out=None if defaults is None else _default_word(defaults.outbound),
        fragmentation=None if inline is None else "before" if inline.fragment_before else "after",
        vlan=None if defaults is None else defaults.vlan.value,
        prohibited=None if defaults is None else "answer" if defaults.answer_discards else "silent",
        reassembly=None if inline is None else inline.reassembly_limit,
        cipher_limits=None if inline is None else "enforce" if inline.enforce_cipher_limits else "warn",
        capture=adapter.capture_state(),
        sa_count=card.sa_count,
        policy_count=0 if inline is None else inline.policy_count,
        card=_card_statistics(card.counters),
        tap_statistics=None if adapter.tap is None else _port_statistics(adapter.tap),
        wire_statistics=_port_statistics(adapter.wire),
        transport="external" if inline is None else "inline",
        nbl_socket=None if adapter.nbl is None else adapter.nbl.path,
        driver=adapter.nbl is not None and adapter.nbl.attached,
        software=inline is not None and inline.software,
        keywords=keywords_message(card.keywords),
        load_balancing=adapter.load_balancing,
        fragments=None if defaults is None else defaults.fragments.value,
        wire_faults=[] if adapter.faults is None else adapter.faults.states(),
        filler_sas=adapter.filler.count,
    )


async def _tap_state(adapters: Adapters, adapter: Adapter) -> TapState | None:
    tap = adapter.tap
    if tap is None:
        return None
    host = adapters.surroundings.host
    mac, mtu, up = "", tap.mtu, False
    addresses = list(adapter.settings.addresses or ())
    if not adapter.failure:
        try:
            link = await host.lookup(tap.name, netns=tap.netns)
            if link is not None:
                mac, mtu, up = link.mac, link.mtu, link.up
                addresses = await host.addresses(tap.name, netns=tap.netns)
        except VnicError:
            pass
    return TapState(
        name=tap.name,
        netns=tap.netns,
        mac=mac,
        mtu=mtu,
        mtu_default=not adapter.mtu_fixed,
        addresses=addresses,
        up=up,
        attached=tap.attached,
        features=tap.features(),
        queues=tap.queues,
    )


async def adapter_statistics(
    adapter: Adapter, wall: Callable[[float], str], *, with_sas: bool
) -> AdapterStatistics:
    """Give all counters of one adapter.

    Args:
        wall: turns monotonic seconds into RFC 3339.
        with_sas: describe each SA too.
    """
    tap, nbl = adapter.tap, adapter.nbl
    counters = adapter.engine.counters
    return AdapterStatistics(
        adapter=adapter.name,
        card=_card_statistics(counters),
        tap=None if tap is None else _port_statistics(tap),
        wire=_port_statistics(adapter.wire),
        drops=[
            *_drops({reason.value: count for reason, count in counters.drops.items()}, "card"),
            *_drops({} if tap is None else tap.counters.drops, "tap"),
            *_drops({} if nbl is None else nbl.counters.drops, "nbl"),
            *_drops(adapter.wire.counters.drops, "wire"),
        ],
        forwarder_errors=adapter.forwarder.errors,
        sa_count=adapter.engine.sa_count,
        sas=[one async for one in sa_states(adapter, wall, reveal_keys=False)] if with_sas else [],
        nbl=None if nbl is None else _nbl_statistics(nbl.counters),
        wire_faults=[] if adapter.faults is None else adapter.faults.counts(),
        punts=_punts(adapter),
    )


def _punts(adapter: Adapter) -> list[PuntCount] | None:
    engine = adapter.inline
    punts = None if engine is None else engine.punts
    if punts is None:
        return None
    return [PuntCount(reason=reason, frames=frames) for reason, frames in punts.items() if frames]


async def sa_reports(adapter: Adapter) -> AsyncGenerator[SaReport, None]:
    """Give the SAs of one adapter, oldest first, without holding up the frames for long."""
    for number, report in enumerate(adapter.engine.each_sa(), 1):
        yield report
        if number % _SAS_A_TURN == 0:
            await asyncio.sleep(0)


async def sa_states(
    adapter: Adapter, wall: Callable[[float], str], *, reveal_keys: bool
) -> AsyncGenerator[SaState, None]:
    """Describe the SAs of one adapter, as `sa_reports` gives them."""
    async for report in sa_reports(adapter):
        yield sa_state(adapter.name, report, wall, reveal_keys=reveal_keys)


async def adapter_mtu(adapter: Adapter, engine: Engine, now: float) -> AdapterMtu:
    """Say how large packets of one adapter may be.

    Args:
        now: monotonic seconds.
    """
    wire_mtu = engine.wire_mtu
    policies = []
    for number, entry in enumerate(engine.policies()):
        if number % _SAS_A_TURN == _SAS_A_TURN - 1:
            await asyncio.sleep(0)
        if entry.direction is Direction.OUTBOUND and entry.action is PolicyAction.PROTECT:
            mtu = engine.policy_mtu(entry)
            policies.append(
                PolicyMtu(
                    index=entry.index,
                    selector=selector_message(entry.selector),
                    overhead=wire_mtu - mtu,
                    mtu=mtu,
                )
            )
    sas = []
    async for report in sa_reports(adapter):
        one = engine.sa_mtu(report.sa.id, now)
        if one is not None:
            sas.append(
                SaMtu(
                    sa=full_name_of(one.sa),
                    mode=None if one.sa.mode is None else one.sa.mode.value,
                    path_mtu=one.path_mtu,
                    path_known_s=one.known_for or None,
                    overhead=one.path_mtu - one.mtu,
                    mtu=one.mtu,
                )
            )
    return AdapterMtu(
        adapter=adapter.name,
        wire_mtu=wire_mtu,
        mtu=engine.inner_mtu(wire_mtu),
        policies=policies,
        sas=sas,
    )


def policy_default(adapter: Adapter) -> PolicyDefault:
    """Describe the defaults of one adapter.

    Raises:
        RequestError: the transport is external.
    """
    defaults = adapter.require_inline().defaults
    return PolicyDefault(
        adapter=adapter.name,
        inbound=_default_word(defaults.inbound),
        outbound=_default_word(defaults.outbound),
    )


def capabilities(adapter: Adapter) -> AdapterCapabilities:
    """Describe what one adapter can do."""
    card = adapter.engine
    current, hardware = card.current, card.hardware
    return AdapterCapabilities(
        adapter=adapter.name,
        engine=card.name,
        ndis=NdisCapabilities(**dataclasses.asdict(current.ipsec_v2)),
        encryptions=[_algorithm(row, row in hardware.ipsec_v2.encryptions()) for row in ENCRYPTIONS],
        integrities=[_algorithm(row, row in hardware.ipsec_v2.integrities()) for row in INTEGRITIES],
        tap_features={} if adapter.tap is None else adapter.tap.features(),
        wire_features=adapter.wire.features(),
        hardware=NdisCapabilities(**dataclasses.asdict(hardware.ipsec_v2)),
        v1=V1State(**dataclasses.asdict(current.ipsec_v1)),
        v1_hardware=V1State(**dataclasses.asdict(hardware.ipsec_v1)),
        features=[
            Feature(
                name=feature_name(one.name), hardware=one.hardware, enabled=one.enabled, reason=one.reason
            )
            for one in card.features()
        ],
        sas_offloaded=card.offloaded_count,
    )


def _algorithm(row: Encryption | Integrity, supported: bool) -> AlgorithmCapability:
    return AlgorithmCapability(
        name=row.name,
        kernel_name=row.kernel_name,
        ndis_identifier=row.ndis_identifier,
        supported=supported,
        key_length=row.key_length * 8,
        salt_length=row.salt_length * 8,
        icv_lengths=[length * 8 for length in row.icv_lengths],
        weak=row.weak,
        source=row.source,
    )


def _default_word(action: PolicyAction) -> DefaultWord:
    return "allow" if action is PolicyAction.BYPASS else "block"


def _card_statistics(counters: CardCounters) -> CardStatistics:
    return CardStatistics(
        tx_offloaded=counters.tx_offloaded,
        rx_offloaded=counters.rx_offloaded,
        tx_bypassed=counters.tx_bypassed,
        rx_bypassed=counters.rx_bypassed,
        tx_passed=counters.tx_passed,
        rx_passed=counters.rx_passed,
        tx_software=counters.tx_software,
        rx_software=counters.rx_software,
        tx_fragmented=counters.tx_fragmented,
        tx_fragments=counters.tx_fragments,
        rx_fragments=counters.rx_fragments,
        rx_reassembled=counters.rx_reassembled,
        rx_path_mtu=counters.rx_path_mtu,
        tx_dummies=counters.tx_dummies,
        tx_reassembled=counters.tx_reassembled,
        tx_prohibited_answered=counters.tx_prohibited_answered,
        tx_prohibited_unanswered=counters.tx_prohibited_unanswered,
        rx_prohibited_answered=counters.rx_prohibited_answered,
        rx_prohibited_unanswered=counters.rx_prohibited_unanswered,
        rx_peer_moved=counters.rx_peer_moved,
        tx_nat_keepalives=counters.tx_nat_keepalives,
        tx_too_big_answered=counters.tx_too_big_answered,
        tx_too_big_unanswered=counters.tx_too_big_unanswered,
    )


def _nbl_statistics(counters: NblCounters) -> NblStatistics:
    return NblStatistics(
        sends=counters.sends,
        sends_failed=counters.sends_failed,
        indications=counters.indications,
        messages_refused=counters.messages_refused,
    )


def _port_statistics(port: Port) -> PortStatistics:
    counters: PortCounters = port.counters
    return PortStatistics(
        rx_frames=counters.rx_frames,
        rx_bytes=counters.rx_bytes,
        tx_frames=counters.tx_frames,
        tx_bytes=counters.tx_bytes,
    )


def _drops(counts: dict[str, int], place: PlaceWord) -> list[DropCount]:
    rows = []
    for name, packets in counts.items():
        reason = _REASONS[name]
        rows.append(
            DropCount(name=name, text=reason.text, xfrm_stat=reason.xfrm_stat, place=place, packets=packets)
        )
    return rows
