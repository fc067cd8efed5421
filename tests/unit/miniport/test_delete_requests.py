"""When the NIC asks for room: the rule is ours (sheet §12); R135 and R183 let it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nic_frames import GCM, UDP, Nic, Sa, ethernet, framed, ip, sealed, udp

from vnic.ipsec.association import Mode
from vnic.miniport.sa_table import InboundBundle
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oid import DeleteSa
from vnic.packet.ip import parse_ip

PAYLOAD = udp(b"some packet")


def inbound(number: int) -> Sa:
    return replace(GCM, spi=0x1000 + number, label=number)


def frame(number: int) -> bytes:
    peer, sa = Nic(), inbound(number)
    return sealed(peer, sa, framed(sa, PAYLOAD), peer.add(sa))


def nic_with(count: int, capacity: int) -> tuple[Nic, list[OffloadHandle]]:
    nic = Nic.able(sa_offload_capacity=capacity)
    return nic, [nic.add(inbound(number), inbound=True) for number in range(count)]


def asks(nic: Nic, number: int) -> bool:
    info, _ = nic.open(frame(number))
    assert info is not None
    assert info.verified
    return info.sa_delete_req


@pytest.mark.rule(135)
@pytest.mark.rule(183)
def test_nearly_full_nic_asks_for_an_sa_of_the_older_half_that_carries_packets() -> None:
    nic, _ = nic_with(31, 32)
    assert not asks(nic, 30)
    assert not asks(nic, 15)
    assert asks(nic, 14)
    # Every packet of it says so, and no other SA is asked for meanwhile.
    assert asks(nic, 14)
    assert not asks(nic, 3)


@pytest.mark.parametrize(
    ("count", "capacity", "near"),
    [(30, 32, False), (31, 32, True), (15, 16, False), (16, 16, True), (3, 4, False), (4, 4, True)],
)
def test_limit_is_a_sixteenth_below_the_capacity_and_at_least_one(
    count: int, capacity: int, near: bool
) -> None:
    nic, _ = nic_with(count, capacity)
    assert asks(nic, 0) is near


@pytest.mark.rule(117)
def test_next_one_is_asked_for_when_the_first_is_gone() -> None:
    nic, handles = nic_with(32, 32)
    assert asks(nic, 5)
    assert not asks(nic, 6)
    nic.adapter.delete_sa(DeleteSa(handles[5]))
    assert asks(nic, 6)
    nic.adapter.delete_sa(DeleteSa(handles[6]))
    # Thirty are left: there is room enough.
    assert not asks(nic, 7)


def test_request_stays_when_there_is_room_again() -> None:
    nic, handles = nic_with(32, 32)
    assert asks(nic, 5)
    for number in range(20, 32):
        nic.adapter.delete_sa(DeleteSa(handles[number]))
    assert asks(nic, 5)
    assert not asks(nic, 4)


def test_only_inbound_sa_is_never_asked_for() -> None:
    nic, _ = nic_with(1, 1)
    assert not asks(nic, 0)
    nic = Nic.able(sa_offload_capacity=2)
    nic.add(inbound(0), inbound=True)
    nic.add(replace(GCM, label="out"))
    assert not asks(nic, 0)


def test_sa_that_the_user_wants_gone_is_not_counted_as_the_request() -> None:
    nic, handles = nic_with(32, 32)
    bundle = nic.adapter._table.get(handles[2])
    assert isinstance(bundle, InboundBundle)
    bundle.sa_delete_req = True
    assert asks(nic, 2)
    assert asks(nic, 3)
    assert not asks(nic, 4)


def test_frames_without_an_sa_make_no_request() -> None:
    nic, _ = nic_with(32, 32)
    for other in (b"", bytes(60), ethernet(ip(nic_ends(), UDP, PAYLOAD))):
        assert nic.open(other)[0] is None
    assert asks(nic, 1)


def nic_ends() -> tuple[bytes, bytes]:
    header = parse_ip(frame(0), 14)
    return header.source, header.destination


def test_one_frame_of_a_burst_is_looked_at_and_each_gets_its_turn() -> None:
    nic, _ = nic_with(32, 32)
    asked = []
    for _ in range(4):
        burst = [NetBuffer(bytearray(frame(number))) for number in (31, 30, 0, 29)]
        nic.adapter.receive(burst)
        infos = [buffer.receive for buffer in burst]
        assert all(info is not None and info.verified for info in infos)
        asked.append([info is not None and info.sa_delete_req for info in infos])
    assert asked[-1] == [False, False, True, False]
    assert not any(any(row[:2]) or row[3] for row in asked)


def test_asked_sa_of_a_tunnel_is_opened_as_before() -> None:
    nic = Nic.able(sa_offload_capacity=4)
    for number in range(4):
        nic.add(inbound(number), inbound=True, portion=Mode.TUNNEL)
    peer, sa = Nic(), inbound(0)
    inner = ip(nic_ends(), UDP, PAYLOAD)
    one = framed(sa, inner, 4)
    info, opened = nic.open(sealed(peer, sa, one, peer.add(sa)))
    assert info is not None
    assert info.verified
    assert info.sa_delete_req
    assert inner in opened


def test_middle_of_the_table_moves_as_sas_are_added() -> None:
    nic, handles = nic_with(32, 32)
    assert asks(nic, 0)
    nic.adapter.delete_sa(DeleteSa(handles[0]))
    for number in range(1, 17):
        nic.adapter.delete_sa(DeleteSa(handles[number]))
        handles.append(nic.add(inbound(100 + number), inbound=True))
    handles.append(nic.add(inbound(200), inbound=True))
    # What was in the younger half is now the oldest there is.
    assert asks(nic, 17)


@pytest.mark.rule(183)
def test_a_forged_packet_makes_the_nic_ask_for_nothing() -> None:
    nic, _ = nic_with(31, 32)
    forged = bytearray(frame(3))
    forged[-1] ^= 1
    info, _ = nic.open(bytes(forged))
    assert info is not None
    assert info.crypto_done
    assert not info.verified
    assert not info.sa_delete_req
    assert not asks(nic, 30)
    assert asks(nic, 4)
