"""LinkPort: two ends in one process."""

from __future__ import annotations

import pytest

from vnic.errors import RequestError
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.status import CryptoStatus, NdisStatus
from vnic.packet.vnet import GSO_TCPV4, NEEDS_CSUM, VnetHeader
from vnic.ports.base import BURST_PACKETS, Port
from vnic.ports.link import LinkPort, join, unjoin


def frames(count: int, length: int = 60) -> list[NetBuffer]:
    return [NetBuffer(bytearray([number & 0xFF]) * length) for number in range(count)]


def joined(**options: int) -> tuple[LinkPort, LinkPort]:
    left, right = LinkPort("left", **options), LinkPort("right", **options)
    join(left, right)
    return left, right


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_frames_arrive_in_order_and_uncopied() -> None:
    left, right = joined()
    sent = frames(5)
    left.send_burst(sent)
    received = right.receive_burst()
    assert [id(one) for one in received] == [id(one) for one in sent]
    assert right.receive_burst() == []
    assert (left.counters.tx_frames, left.counters.tx_bytes) == (5, 300)
    assert (right.counters.rx_frames, right.counters.rx_bytes) == (5, 300)
    assert left.counters.drops == {}


def test_both_directions_are_apart() -> None:
    left, right = joined()
    left.send_burst(frames(2))
    right.send_burst(frames(3))
    assert (len(left.receive_burst()), len(right.receive_burst())) == (3, 2)


def test_list_of_the_sender_is_not_kept() -> None:
    left, right = joined()
    sent = frames(2)
    left.send_burst(sent)
    sent.clear()
    assert len(right.receive_burst()) == 2


def test_what_the_nic_noted_does_not_cross_the_wire_but_the_vnet_header_does() -> None:
    left, right = joined()
    (buffer,) = frames(1)
    buffer.vnet = vnet = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
    buffer.transmit = TransmitInfo(OffloadHandle(7), OffloadHandle(0), 4, 2, 0, 20)
    buffer.receive = ReceiveInfo(True, False, CryptoStatus.SUCCESS)
    buffer.status = NdisStatus.FAILURE
    left.send_burst([buffer])
    (received,) = right.receive_burst()
    assert (received.transmit, received.receive, received.status) == (None, None, NdisStatus.SUCCESS)
    assert received.vnet == vnet


def test_queue_has_no_room_long_before_it_is_full_and_says_when_it_has_again() -> None:
    left, right = joined(queue_frames=8)
    wakes = Wakes()
    left.set_wake(wakes)
    assert left.has_room()
    left.send_burst(frames(3))
    assert wakes.count == 0
    assert not left.has_room()
    left.send_burst(frames(5))
    assert left.counters.drops == {}
    assert (right.waiting, wakes.count) == (8, 0)
    right.receive_burst()
    assert wakes.count == 1
    assert left.has_room()
    right.receive_burst()
    assert wakes.count == 1


def test_room_is_one_of_bytes_too() -> None:
    left, right = joined(queue_bytes=4000)
    left.send_burst(frames(1, 1001))
    assert not left.has_room()
    right.receive_burst()
    assert left.has_room()


def test_end_that_waits_for_room_hears_that_it_is_disconnected() -> None:
    left, right = joined(queue_frames=1)
    wakes = Wakes()
    left.set_wake(wakes)
    left.send_burst(frames(1))
    assert not left.has_room()
    right.close()
    assert wakes.count == 1
    assert left.has_room()


def test_kind_tells_whether_the_wire_is_connected() -> None:
    left, right = LinkPort("left"), LinkPort("right")
    assert (left.kind, right.kind) == ("none", "none")
    join(left, right)
    assert (left.kind, right.kind) == ("link", "link")
    unjoin(left)
    assert (left.kind, right.kind, left.peer, right.peer) == ("none", "none", None, None)
    unjoin(left)


def test_frames_sent_into_an_open_end_are_counted() -> None:
    port = LinkPort("left")
    port.send_burst(frames(3))
    port.send_burst([])
    assert port.counters.drops == {"wire_down": 3}
    assert port.counters.tx_frames == 0


def test_frames_that_arrived_survive_the_disconnection() -> None:
    left, right = joined()
    left.send_burst(frames(2))
    unjoin(right)
    left.send_burst(frames(2))
    assert len(right.receive_burst()) == 2
    assert left.counters.drops == {"wire_down": 2}


def test_full_queue_drops_what_comes_beyond_and_counts_it_at_the_sender() -> None:
    left, right = joined(queue_frames=10)
    left.send_burst(frames(7))
    left.send_burst(frames(7))
    left.send_burst(frames(1))
    assert left.counters.drops == {"link_queue_full": 5}
    assert left.counters.tx_frames == 10
    assert len(right.receive_burst()) == 10
    left.send_burst(frames(3))
    assert len(right.receive_burst()) == 3


def test_queue_is_bounded_in_bytes_too() -> None:
    left, right = joined(queue_bytes=250)
    left.send_burst(frames(5))
    assert left.counters.drops == {"link_queue_full": 1}
    assert len(right.receive_burst()) == 4
    left.send_burst(frames(4))
    assert len(right.receive_burst()) == 4


def test_byte_bound_holds_over_partly_taken_queues() -> None:
    left, right = joined(queue_bytes=300 * 60)
    left.send_burst(frames(300))
    assert len(right.receive_burst()) == BURST_PACKETS
    left.send_burst(frames(300))
    assert left.counters.drops == {"link_queue_full": 300 - BURST_PACKETS}
    assert len(right.receive_burst()) == BURST_PACKETS


def test_wake_is_called_when_the_queue_turns_non_empty_only() -> None:
    left, right = joined()
    wakes = Wakes()
    right.set_wake(wakes)
    left.send_burst([])
    assert wakes.count == 0
    left.send_burst(frames(1))
    left.send_burst(frames(1))
    assert wakes.count == 1
    right.receive_burst()
    assert wakes.count == 1
    left.send_burst(frames(1))
    assert wakes.count == 2


def test_wake_is_called_again_while_a_burst_leaves_frames_behind() -> None:
    left, right = joined()
    wakes = Wakes()
    right.set_wake(wakes)
    left.send_burst(frames(2 * BURST_PACKETS + 1))
    assert wakes.count == 1
    assert [len(right.receive_burst()) for _ in range(3)] == [BURST_PACKETS, BURST_PACKETS, 1]
    assert wakes.count == 3


def test_wake_that_comes_late_is_called_at_once() -> None:
    left, right = joined()
    left.send_burst(frames(1))
    wakes = Wakes()
    right.set_wake(wakes)
    assert wakes.count == 1
    right.set_wake(None)
    left.send_burst(frames(1))
    assert wakes.count == 1


def test_connected_end_cannot_be_joined_again() -> None:
    left, _ = joined()
    third = LinkPort("third")
    with pytest.raises(RequestError) as caught:
        join(third, left)
    assert (caught.value.field, caught.value.value) == ("link", "left")
    assert third.kind == "none"


def test_end_cannot_be_joined_to_itself() -> None:
    port = LinkPort("left")
    with pytest.raises(RequestError):
        join(port, port)
    assert port.kind == "none"


@pytest.mark.parametrize("option", ["queue_frames", "queue_bytes"])
def test_queue_without_room_is_refused(option: str) -> None:
    with pytest.raises(RequestError) as caught:
        LinkPort("left", **{option: 0})
    assert caught.value.field == option


def test_closed_end_is_empty_and_disconnected() -> None:
    left, right = joined()
    left.send_burst(frames(2))
    right.close()
    right.close()
    assert right.receive_burst() == []
    left.send_burst(frames(1))
    assert left.counters.drops == {"wire_down": 1}


def test_end_is_a_port_without_a_descriptor_that_carries_superframes() -> None:
    port: Port = LinkPort("left", mtu=9000)
    assert port.fileno() is None
    assert port.mtu == 9000
    assert set(port.features().values()) == {"on"}
