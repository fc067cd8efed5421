"""What there is to see of the adapters, as messages.

Law: reads, changes nothing. A device that cannot be asked is shown as far as the daemon itself knows it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from vnic.control.interface import (
    AdapterCapabilities,
    AdapterState,
    AdapterStatistics,
    AlgorithmCapability,
    CardStatistics,
    DefaultWord,
    DropCount,
    DropReasonText,
    NdisCapabilities,
    PlaceWord,
    PolicyDefault,
    PortStatistics,
    SaState,
    TapState,
    WireState,
)
from vnic.daemon.adapters import Adapter, Adapters
from vnic.daemon.values import sa_state
from vnic.engine.contract import CardCounters
from vnic.errors import VnicError
from vnic.ipsec.algorithms import ENCRYPTIONS, INTEGRITIES, Encryption, Integrity
from vnic.ipsec.drops import DropReason
from vnic.ipsec.policy import PolicyAction
from vnic.ports.base import Port, PortCounters

_SAS_A_TURN = 256
"""SAs written before the frames get a turn."""


_REASONS = {reason.value: reason for reason in DropReason}


def drop_reasons() -> list[DropReasonText]:
    """Give the table of reasons."""
    return [DropReasonText(name=one.value, text=one.text, xfrm_stat=one.xfrm_stat) for one in DropReason]


async def adapter_state(adapters: Adapters, adapter: Adapter) -> AdapterState:
    """Describe one adapter; addresses, MAC and MTU are what the kernel says now."""
    wire = adapters.wire_of(adapter)
    defaults = adapter.engine.defaults
    return AdapterState(
        name=adapter.name,
        state="failed" if adapter.failure else "running",
        reason=adapter.failure,
        engine=adapter.engine.name,
        tap=await _tap_state(adapters, adapter),
        wire=WireState(
            kind=wire.kind,
            name=wire.name,
            netns=wire.netns,
            mtu=adapter.wire.mtu,
            features=adapter.wire.features(),
        ),
        non_ip="pass" if defaults.non_ip is PolicyAction.BYPASS else "drop",
        policy_default_in=_default_word(defaults.inbound),
        policy_default_out=_default_word(defaults.outbound),
        capture=adapter.capture_state(),
        sa_count=adapter.engine.sa_count,
        policy_count=len(adapter.engine.policies()),
        card=_card_statistics(adapter.engine.counters),
        tap_statistics=_port_statistics(adapter.tap),
        wire_statistics=_port_statistics(adapter.wire),
    )


async def _tap_state(adapters: Adapters, adapter: Adapter) -> TapState:
    tap = adapter.tap
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
    )


async def adapter_statistics(adapter: Adapter, wall: Callable[[float], str]) -> AdapterStatistics:
    """Give all counters of one adapter.

    Args:
        wall: turns monotonic seconds into RFC 3339.
    """
    return AdapterStatistics(
        adapter=adapter.name,
        card=_card_statistics(adapter.engine.counters),
        tap=_port_statistics(adapter.tap),
        wire=_port_statistics(adapter.wire),
        drops=[
            *_drops({reason.value: count for reason, count in adapter.engine.counters.drops.items()}, "card"),
            *_drops(adapter.tap.counters.drops, "tap"),
            *_drops(adapter.wire.counters.drops, "wire"),
        ],
        forwarder_errors=adapter.forwarder.errors,
        sas=await sa_states(adapter, wall, reveal_keys=False),
    )


async def sa_states(adapter: Adapter, wall: Callable[[float], str], *, reveal_keys: bool) -> list[SaState]:
    """Describe the SAs of one adapter, oldest first, without holding up the frames for long."""
    states = []
    for position, report in enumerate(adapter.engine.sas()):
        if position % _SAS_A_TURN == _SAS_A_TURN - 1:
            await asyncio.sleep(0)
        states.append(sa_state(adapter.name, report, wall, reveal_keys=reveal_keys))
    return states


def policy_default(adapter: Adapter) -> PolicyDefault:
    """Describe the defaults of one adapter."""
    defaults = adapter.engine.defaults
    return PolicyDefault(
        adapter=adapter.name,
        inbound=_default_word(defaults.inbound),
        outbound=_default_word(defaults.outbound),
    )


def capabilities(adapter: Adapter) -> AdapterCapabilities:
    """Describe what one adapter can do."""
    ndis = adapter.engine.capabilities
    return AdapterCapabilities(
        adapter=adapter.name,
        engine=adapter.engine.name,
        ndis=NdisCapabilities(**dataclasses.asdict(ndis)),
        encryptions=[_algorithm(row, row in ndis.encryptions()) for row in ENCRYPTIONS],
        integrities=[_algorithm(row, row in ndis.integrities()) for row in INTEGRITIES],
        tap_features=adapter.tap.features(),
        wire_features=adapter.wire.features(),
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
