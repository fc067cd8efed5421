"""What the contract asks of the transport above a NIC, held by the inline one."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from nic_frames import AH_SHA256, CBC_SHA1, add_request, ethernet, ipv4, udp

from tests.engines import BOTH_ENGINES, make_card
from vnic.engine.contract import Offload
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME
from vnic.ipsec.association import Direction, IpsecProtocol, KeyMaterial, Mode, SecurityAssociation
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix, Selector, Template
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import NO_TASK_OFFLOAD, OffloadCapabilities, TaskOffload
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.status import NdisStatus
from vnic.transport.requests import associations_of

pytestmark = BOTH_ENGINES

NEAR, FAR = ip_address("192.0.2.1").packed, ip_address("192.0.2.2").packed
PAYLOAD = b"nothing of this leaves in clear"
ANY = Prefix(bytes(4), 0)


def card(hardware: TaskOffload | None = None) -> ReferenceEngine:
    """A card that wants every packet in ESP."""
    engine = make_card(random.Random(1).randbytes, capabilities=hardware)
    template = Template(IpsecProtocol.ESP, Mode.TRANSPORT)
    engine.add_policy(PolicyEntry(Direction.OUTBOUND, Selector(ANY, ANY), PolicyAction.PROTECT, (template,)))
    return engine


def sa(spi: int = 0x1000) -> SecurityAssociation:
    return SecurityAssociation(
        direction=Direction.OUTBOUND,
        source=NEAR,
        destination=FAR,
        protocol=IpsecProtocol.ESP,
        spi=spi,
        mode=Mode.TRANSPORT,
        encryption=ENCRYPTION_BY_NAME["aes-gcm-128"],
        encryption_key=KeyMaterial(random.Random(spi).randbytes(20)),
        integrity=None,
        integrity_key=KeyMaterial(b""),
    )


def sent(engine: ReferenceEngine) -> tuple[int, int]:
    """Send a packet; gives how many the NIC has sealed so far, and software IPsec."""
    frame = bytearray(ethernet(ipv4(NEAR, FAR, 17, udp(PAYLOAD))))
    (wire,) = engine.send([NetBuffer(frame)], 1.0).wire
    assert wire.frame[23] == 50
    assert PAYLOAD not in wire.frame
    return engine.counters.tx_offloaded, engine.counters.tx_software


@pytest.mark.rule(56)
def test_after_a_failed_encapsulation_nothing_is_offloaded() -> None:
    engine = card(NO_TASK_OFFLOAD)
    added = engine.add_sa(sa(), 0.0)
    assert (added.handle, added.offload, added.status) == (0, Offload.SOFTWARE, NdisStatus.NOT_SUPPORTED)
    assert sent(engine) == (0, 1)


@pytest.mark.rule(37)
def test_capabilities_are_learned_at_the_binding_and_not_by_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    def queried(*_: object) -> None:
        raise AssertionError("a request of the transport's own")

    monkeypatch.setattr(MiniportAdapter, "oid_request", queried)
    engine = card(TaskOffload(OffloadCapabilities(encryption_algorithms=0x40)))
    assert engine.add_sa(sa(), 0.0).offload is Offload.SOFTWARE
    assert sent(engine) == (0, 1)


@pytest.mark.rule(32, 94)
def test_no_more_bundles_than_fit_are_offloaded_and_room_is_made_by_a_deletion() -> None:
    engine = card(TaskOffload(OffloadCapabilities(sa_offload_capacity=2)))
    first, second, third = (engine.add_sa(sa(spi), 0.0) for spi in (0x1000, 0x2000, 0x3000))
    assert (first.offload, second.offload, third.offload) == (Offload.NIC, Offload.NIC, Offload.SOFTWARE)
    assert third.status is NdisStatus.RESOURCES
    engine.delete_sa(sa(0x1000).id)
    assert engine.add_sa(sa(0x4000), 0.0).offload is Offload.NIC


@pytest.mark.rule(7)
def test_what_the_nic_lacks_is_done_above_it_and_counted_apart() -> None:
    engine = card(TaskOffload(OffloadCapabilities(encryption_algorithms=0x40)))
    engine.add_sa(sa(), 0.0)
    assert sent(engine) == (0, 1)
    assert len(engine._miniport) == 0


@pytest.mark.rule(128, 130)
@pytest.mark.parametrize("portion", [Mode.TRANSPORT, Mode.TUNNEL, None])
def test_ah_of_a_bundle_stands_around_its_esp_under_the_same_header(portion: Mode | None) -> None:
    request = add_request((CBC_SHA1, AH_SHA256), portion=portion)
    modes = [one.mode for one in associations_of(request)]
    assert modes == [portion, None if portion is None else Mode.TRANSPORT]
    (alone,) = associations_of(add_request(AH_SHA256, portion=portion))
    assert alone.mode is portion
