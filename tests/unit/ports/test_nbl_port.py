"""The NBL socket: who may attach, what waits, what is lost."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vnic.errors import PortError
from vnic.ndis.nbl import MESSAGE_LIMIT, BadMessage, MessageType, NblMessage, pack, unpack
from vnic.ndis.oob import Slots
from vnic.ndis.status import NdisStatus
from vnic.ports import nbl
from vnic.ports.nbl import NblPort, open_nbl

SEND = NblMessage(MessageType.SEND, request_id=7, slots=Slots(ipsec=9), frames=[bytearray(b"frame")])
DONE = NblMessage(MessageType.SEND_COMPLETE, request_id=7)
FRAME = NblMessage(MessageType.RECEIVE, frames=[bytearray(1500)])


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nic0.nbl")


@pytest.fixture
def port(path: str) -> Iterator[NblPort]:
    made = open_nbl(path, group=None, admit=lambda connection: True)
    yield made
    made.close()


def connect(path: str) -> socket.socket:
    driver = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    driver.settimeout(5)
    driver.connect(path)
    return driver


@pytest.fixture
def driver(port: NblPort) -> Iterator[socket.socket]:
    with connect(port.path) as made:
        assert port.accept()
        yield made


def told(driver: socket.socket) -> NblMessage:
    message = unpack(driver.recv(MESSAGE_LIMIT))
    assert isinstance(message, NblMessage)
    return message


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_port(port: NblPort) -> None:
    mode = os.stat(port.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    port.close()
    port.close()
    assert not os.path.exists(port.path)


def test_the_socket_is_for_a_group_that_is_named(path: str) -> None:
    made = open_nbl(path, group=os.getegid(), admit=lambda connection: True)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    assert os.stat(path).st_gid == os.getegid()
    made.close()


def test_a_socket_that_took_the_place_of_ours_stays(port: NblPort) -> None:
    os.unlink(port.path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(port.path)
        port.close()
        assert os.path.exists(port.path)


def test_the_socket_of_a_dead_daemon_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(path)
    open_nbl(path, group=None, admit=lambda connection: True).close()


def test_a_living_socket_and_another_file_are_left_alone(port: NblPort, path: str, tmp_path: Path) -> None:
    with pytest.raises(PortError, match="somebody listens"):
        open_nbl(path, group=None, admit=lambda connection: True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PortError, match="no socket"):
        open_nbl(str(tmp_path / "file"), group=None, admit=lambda connection: True)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(PortError, match="cannot make the NBL socket"):
        open_nbl(str(tmp_path / "nowhere" / "nic0.nbl"), group=None, admit=lambda connection: True)


def test_sends_come_in_order_and_completions_go_in_order(port: NblPort, driver: socket.socket) -> None:
    for number in (1, 2):
        driver.send(pack(NblMessage(MessageType.SEND, request_id=number, frames=[bytearray(b"x")])))
    burst = port.receive_burst()
    assert [one.request_id for one in burst] == [1, 2]
    port.complete(NblMessage(MessageType.SEND_COMPLETE, request_id=number) for number in (1, 2))
    assert [told(driver).request_id for _ in range(2)] == [1, 2]
    assert (port.counters.sends, port.counters.sends_failed, port.waiting) == (2, 0, 0)


def test_only_one_driver_is_attached_at_a_time(port: NblPort, driver: socket.socket) -> None:
    with connect(port.path) as second:
        assert not port.accept()
        refusal = told(second)
        assert refusal.type is MessageType.STATUS_INDICATION
        assert refusal.status == NdisStatus.NOT_ACCEPTED
        assert refusal.frames == [bytearray(b"another protocol driver is attached; end it first")]
        assert second.recv(100) == b""
    driver.send(pack(SEND))
    assert port.receive_burst() == [SEND]


def test_one_who_is_not_admitted_is_told_so(path: str) -> None:
    port = open_nbl(path, group=None, admit=lambda connection: False)
    with connect(path) as stranger:
        assert not port.accept()
        assert b"administrator" in told(stranger).frames[0]
    assert not port.attached
    port.close()


def test_the_next_driver_attaches_when_the_first_hung_up(port: NblPort, driver: socket.socket) -> None:
    driver.send(pack(SEND))
    driver.close()
    port.look_for_hangup()
    assert port.gone
    port.detach()
    with connect(port.path) as second:
        assert port.accept()
        second.send(pack(SEND))
        assert port.receive_burst() == [SEND]


def test_a_hangup_ends_the_burst_and_loses_nothing_before_it(port: NblPort, driver: socket.socket) -> None:
    driver.send(pack(SEND))
    driver.close()
    assert port.receive_burst() == [SEND]
    assert port.gone
    assert not port.attached
    port.complete([DONE])
    assert port.waiting == 0


def test_messages_that_are_no_sends_are_refused_and_counted(port: NblPort, driver: socket.socket) -> None:
    driver.send(b"?")
    driver.send(pack(DONE))
    driver.send(pack(FRAME))
    driver.send(pack(SEND)[:-1])
    burst = port.receive_burst()
    assert all(isinstance(one, BadMessage) for one in burst)
    assert [one.request_id for one in burst] == [None, None, None, 7]
    assert (port.counters.messages_refused, port.counters.sends) == (4, 1)


def test_a_message_that_is_too_long_is_refused_under_its_id(port: NblPort, driver: socket.socket) -> None:
    driver.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    long = pack(NblMessage(MessageType.SEND, request_id=3, frames=[bytearray(MESSAGE_LIMIT)]))
    try:
        driver.send(long)
    except OSError:
        # Without privileges the kernel's own limit is the lower one.
        driver.send(pack(SEND))
        assert port.receive_burst() == [SEND]
        return
    (refused,) = port.receive_burst()
    assert isinstance(refused, BadMessage)
    assert (refused.status, refused.request_id) == (NdisStatus.INVALID_LENGTH, 3)


@pytest.mark.rule(171)
def test_frames_for_a_driver_that_does_not_read_are_dropped_and_counted(
    port: NblPort, driver: socket.socket
) -> None:
    for _ in range(200):
        port.indicate([FRAME] * 100)
    counters = port.counters
    lost = counters.drops["nbl_queue_full"]
    assert counters.indications + lost == 20_000
    assert counters.indications > 50
    assert port.attached
    for _ in range(counters.indications):
        assert told(driver).type is MessageType.RECEIVE
    port.indicate([FRAME])
    assert counters.drops["nbl_queue_full"] == lost


def test_frames_without_a_driver_are_dropped_and_counted(port: NblPort) -> None:
    port.indicate([FRAME, FRAME])
    assert port.counters.drops == {"nbl_no_driver": 2}
    assert port.counters.indications == 0


def test_no_completion_is_lost_when_the_driver_does_not_read(port: NblPort, driver: socket.socket) -> None:
    while "nbl_queue_full" not in port.counters.drops:
        port.indicate([FRAME] * 100)
    filled = port.counters.indications
    count = nbl.COMPLETIONS_WAITING
    port.complete(NblMessage(MessageType.SEND_COMPLETE, request_id=number) for number in range(count))
    assert port.waiting
    for _ in range(filled):
        told(driver)
    got: list[int] = []
    while len(got) < count:
        port.flush()
        got += [told(driver).request_id for _ in range(min(64, count - len(got)))]
    assert got == list(range(count))
    assert port.waiting == 0


def test_too_many_waiting_completions_ask_for_no_further_sends(
    port: NblPort, driver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbl, "COMPLETIONS_WAITING", 3)
    while "nbl_queue_full" not in port.counters.drops:
        port.indicate([FRAME] * 100)
    port.complete([DONE] * 200)
    assert port.congested
    while port.waiting:
        told(driver)
        port.flush()
    assert not port.congested


def test_a_driver_that_leaves_its_status_unread_is_let_go(port: NblPort, driver: socket.socket) -> None:
    while "nbl_queue_full" not in port.counters.drops:
        port.indicate([FRAME] * 100)
    reset = NblMessage(MessageType.STATUS_INDICATION, status=0x40010004)
    for _ in range(10_000):
        port.indicate_status(reset)
        if port.gone:
            break
    assert port.gone
    assert port.waiting <= nbl.INDICATIONS_WAITING + 1


def test_nothing_moves_after_the_end(port: NblPort, driver: socket.socket) -> None:
    port.close()
    assert port.fileno() is None
    assert port.listening_fileno() is None
    assert port.receive_burst() == []
    assert not port.accept()
    port.complete([DONE])
    port.indicate_status(DONE)
    port.flush()
    assert driver.recv(100) == b""


def test_a_large_send_ends_a_burst_for_it_may_become_thousands_of_packets(
    port: NblPort, driver: socket.socket
) -> None:
    large = NblMessage(MessageType.SEND, request_id=1, slots=Slots(large_send=1), frames=[bytearray(60)])
    small = NblMessage(MessageType.SEND, request_id=2, frames=[bytearray(60)])
    for message in (small, large, large, small):
        driver.send(pack(message))
    taken = [len(port.receive_burst()) for _ in range(4)]
    assert taken == [2, 1, 1, 0]
