"""The library for authors of protocol drivers, against a NIC of paper at the other end of a socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vnic.driver import BlockingDriver, Completion, Driver, Received
from vnic.driver.exchange import Exchange
from vnic.errors import ControlError, PacketError
from vnic.ndis.nbl import MessageType, NblMessage, pack, unpack
from vnic.ndis.netbuffer import LargeSend, OffloadHandle, ReceiveInfo, TransmitInfo
from vnic.ndis.oob import NO_SLOTS, Slots
from vnic.ndis.status import CryptoStatus, IndicationCode, NdisStatus, StatusIndication

T = TypeVar("T")

FRAME = bytearray(b"\2\0\0\0\0\2\2\0\0\0\0\1\x08\0packet")
INFO = TransmitInfo(OffloadHandle(9), OffloadHandle(0), 17, 2, 0, 20)


def status(code: int, buffer: bytes = b"") -> bytes:
    frames = [bytearray(buffer)] if buffer else []
    return pack(NblMessage(MessageType.STATUS_INDICATION, status=code, frames=frames))


GREETING = (status(0x40020007, b"hardware"), status(0x40020006, b"current"))
INDICATED = pack(NblMessage(MessageType.RECEIVE, slots=Slots(ipsec=3 << 16 | 2), frames=[FRAME]))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 10))


class PaperNic:
    """Listens, greets, and completes sends as told."""

    def __init__(self, path: str, *, greeting: tuple[bytes, ...] = GREETING) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listening.bind(path)
        self.listening.listen()
        self.greeting = greeting
        self.sends: list[NblMessage] = []
        self.connection: socket.socket | None = None
        self.answer: Callable[[NblMessage], list[bytes]] = lambda message: [
            pack(NblMessage(MessageType.SEND_COMPLETE, request_id=message.request_id))
        ]
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        self.connection, _ = self.listening.accept()
        for message in self.greeting:
            self.connection.send(message)
        while data := self.connection.recv(1 << 20):
            message = unpack(data)
            assert isinstance(message, NblMessage)
            self.sends.append(message)
            for answer in self.answer(message):
                self.connection.send(answer)

    def tell(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.send(data)

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listening.close()
        self.thread.join(5)
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nic0.nbl")


@pytest.fixture
def nic(path: str) -> Any:
    made = PaperNic(path)
    yield made
    made.close()


def test_what_the_nic_says_is_read() -> None:
    exchange = Exchange()
    done = NblMessage(
        MessageType.SEND_COMPLETE, status=NdisStatus.FAILURE, request_id=4, slots=Slots(large_send=77)
    )
    taken = exchange.take(pack(done))
    assert taken == (4, Completion(NdisStatus.FAILURE, Slots(large_send=77)))
    assert isinstance(taken, tuple)
    assert isinstance(taken[1], Completion)
    assert taken[1].tcp_payload == 77
    received = exchange.take(INDICATED)
    assert isinstance(received, Received)
    assert received.info == ReceiveInfo(True, False, CryptoStatus.TRANSPORT_ESP_AUTH_FAILED)
    assert not exchange.greeted
    for message in GREETING:
        exchange.take(message)
    assert exchange.greeted
    assert (exchange.hardware_capabilities, exchange.current_config) == (b"hardware", b"current")
    assert exchange.take(status(0x40010004)) == StatusIndication(IndicationCode.RESET_START)
    assert exchange.take(status(0x40019999)) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"rubbish", "no message"),
        (status(NdisStatus.NOT_ACCEPTED, b"another driver"), "another driver"),
        (pack(NblMessage(MessageType.SEND, frames=[FRAME])), "packet"),
    ],
)
def test_what_no_nic_says_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ControlError, match=reason):
        Exchange().take(data)


def test_sends_are_numbered_and_carry_their_slots() -> None:
    exchange = Exchange()
    first, data = exchange.send([FRAME], INFO)
    second, other = exchange.send([FRAME, FRAME], Slots(1, 2, 3, 4, 5), 6)
    assert (first, second) == (1, 2)
    message = unpack(data)
    assert isinstance(message, NblMessage)
    assert message.slots == Slots(ipsec=9, header=17 | 2 << 8 | 5 << 24)
    message = unpack(other)
    assert isinstance(message, NblMessage)
    assert (message.slots, message.next_offload_handle, len(message.frames)) == (Slots(1, 2, 3, 4, 5), 6, 2)
    with pytest.raises(PacketError):
        exchange.send([FRAME], INFO._replace(large_send=LargeSend(1 << 20, 0, 2, False)))


def test_a_blocking_driver_sends_and_receives(nic: PaperNic, path: str) -> None:
    with BlockingDriver(path) as driver:
        assert (driver.hardware_capabilities, driver.current_config) == (b"hardware", b"current")
        nic.tell(INDICATED)
        nic.tell(status(0x40010004))
        assert driver.send([FRAME], INFO) == (NdisStatus.SUCCESS, NO_SLOTS)
        assert driver.receive().frame == FRAME
        assert driver.status().code is IndicationCode.RESET_START
        with pytest.raises(TimeoutError):
            driver.receive(0.05)
        nic.hang_up()
        with pytest.raises(ControlError, match="gone"):
            driver.receive()
        with pytest.raises(ControlError):
            driver.post([FRAME])


def test_completions_may_be_taken_in_any_order(nic: PaperNic, path: str) -> None:
    with BlockingDriver(path) as driver:
        first, second = driver.post([FRAME]), driver.post([FRAME])
        assert driver.completion(second).status is NdisStatus.SUCCESS
        assert driver.completion(first).status is NdisStatus.SUCCESS


def test_an_event_loop_has_many_sends_under_way(nic: PaperNic, path: str) -> None:
    held: list[bytes] = []

    def hold(message: NblMessage) -> list[bytes]:
        held.append(pack(NblMessage(MessageType.SEND_COMPLETE, request_id=message.request_id)))
        return list(held) if len(held) == 10 else []

    nic.answer = hold

    async def work() -> None:
        async with await Driver.attach(path) as driver:
            ends = await asyncio.gather(*(driver.send([FRAME], INFO) for _ in range(10)))
            assert [one.status for one in ends] == [NdisStatus.SUCCESS] * 10

    run(work())


def test_what_nobody_takes_is_lost_and_counted(nic: PaperNic, path: str) -> None:
    async def work() -> None:
        driver = await Driver.attach(path, queue_length=3)
        for _ in range(5):
            nic.tell(INDICATED)
        await driver.send([FRAME])
        assert driver.lost == 2
        for _ in range(3):
            assert isinstance(await driver.next_indication(), Received)
        await driver.close()
        await driver.close()

    run(work())


def test_sends_under_way_end_when_the_nic_goes(nic: PaperNic, path: str) -> None:
    nic.answer = lambda message: []

    async def work() -> None:
        async with await Driver.attach(path) as driver:
            under_way = asyncio.create_task(driver.send([FRAME]))
            await asyncio.sleep(0.05)
            nic.hang_up()
            with pytest.raises(ControlError, match="gone"):
                await under_way
            with pytest.raises(ControlError, match="gone"):
                async for _ in driver.indications():
                    pass

    run(work())


def test_a_refusal_is_told_in_the_words_of_the_nic(path: str) -> None:
    nic = PaperNic(path, greeting=(status(NdisStatus.NOT_ACCEPTED, b"another driver is attached"),))
    try:
        with pytest.raises(ControlError, match="another driver"):
            run(Driver.attach(path))
    finally:
        nic.close()


def test_nobody_at_the_path_is_told(path: str) -> None:
    with pytest.raises(ControlError, match="cannot attach"):
        run(Driver.attach(path))
    with pytest.raises(ControlError, match="cannot attach"):
        BlockingDriver(path)


def test_a_driver_waits_for_room_in_the_socket(path: str) -> None:
    nic = PaperNic(path)
    release = threading.Event()

    def slow(message: NblMessage) -> list[bytes]:
        release.wait(5)
        return [pack(NblMessage(MessageType.SEND_COMPLETE, request_id=message.request_id))]

    nic.answer = slow

    async def work() -> None:
        async with await Driver.attach(path) as driver:
            sends = [asyncio.create_task(driver.send([bytes(60_000)])) for _ in range(400)]
            await asyncio.sleep(0.1)
            assert not any(one.done() for one in sends)
            release.set()
            ends = await asyncio.gather(*sends)
            assert len(ends) == 400

    try:
        run(work())
    finally:
        release.set()
        nic.close()
