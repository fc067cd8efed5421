"""New keys with a kernel at the far end, under load, in the order of the guide: no packet is lost."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import kernel_guest
import pytest
from card import AH, CBC, GCM, Association, Layer
from kernel_peer import CARD, Case, Flow, KernelPeer, kernel_peer, missing, state_line
from oid_door import Door
from traffic import background, wait_until

pytestmark = [pytest.mark.live, pytest.mark.interop]

CASES = [
    (Case("gcm-tunnel-esn", (Layer(GCM, "tunnel"),), 4, esn=True), 30),
    (Case("cbc-in-ah", (Layer(CBC, "transport"), Layer(AH, "transport")), 4), 20),
]
"""With the number of rekeyings, 50 in all."""

PAUSE_S = 0.05
LENGTH = 1 << 20
PORT = 7101


class Load:
    """Datagrams with numbers that the kernel echoes, and TCP that it echoes too, at the same time."""

    def __init__(self, peer: KernelPeer, flow: Flow) -> None:
        self.sent = 0
        self.came: Counter[int] = Counter()
        self.transfers = 0
        self._peer = peer
        self._flow = flow
        self._end = peer.host.namespace.socket(kernel_guest.FAMILIES[flow.case.version], socket.SOCK_DGRAM)
        self._end.bind((flow.near, PORT))
        self._end.connect((flow.far, kernel_guest.ECHO_PORT))
        self._end.settimeout(2)

    def send(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._end.send(self.sent.to_bytes(8, "big") + bytes(self.sent * 7 % 1200))
            self.sent += 1
            time.sleep(0.004)

    def receive(self, stop: threading.Event) -> None:
        while True:
            try:
                self.came[int.from_bytes(self._end.recv(kernel_guest.LARGEST_DATAGRAM)[:8], "big")] += 1
            except TimeoutError:
                if stop.is_set():
                    return

    def transfer(self, stop: threading.Event) -> None:
        make = self._peer.host.namespace.socket
        while not stop.is_set():
            sent, returned = kernel_guest.tcp(make, self._flow.near, self._flow.far, LENGTH, self.transfers)
            assert sent == returned
            self.transfers += 1

    def close(self) -> None:
        self._end.close()


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelPeer]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    directory: Path = tmp_path_factory.mktemp("kernel")
    with kernel_peer(directory) as made:
        made.protect([case for case, _ in CASES])
        yield made


def delete_line(sa: Association) -> str:
    return f"xfrm state delete {sa.identity}"


def parts(old: list[Association], new: list[Association], way: str) -> str:
    return " ".join(one.renewal(two, way) for one, two in zip(old, new, strict=True))


def there(door: Door, sas: list[Association]) -> bool:
    shown = {one["sa"]["spi"] for one in door.call("ListSas", adapter=CARD)["sas"]}
    return all(sa.spi in shown for sa in sas)


@pytest.mark.parametrize(("case", "count"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_kernel_and_card_are_rekeyed_under_load_without_a_loss(
    peer: KernelPeer, case: Case, count: int
) -> None:
    flow = peer.flows[case.name]
    forth, back = flow.forth, flow.back
    before = peer.drops()
    load = Load(peer, flow)
    gone: list[Association] = []
    try:
        with (
            Door(peer.daemon.socket) as door,
            peer.daemon.paced_batch() as batch,
            background(load.receive),
            background(load.send),
            background(load.transfer),
        ):
            for _ in range(count):
                forth2, back2 = [[sa.renewed() for sa in some] for some in (forth, back)]
                # The kernel can open what we are about to seal; what it no longer needs goes.
                peer.guest.ip(*map(state_line, forth2), *map(delete_line, gone))
                both = f"{parts(back, back2, 'in')} {parts(forth, forth2, 'out')}"
                batch(f"sa rekey dev {CARD} {both} grace 5")
                assert wait_until(lambda wanted=back2: there(door, wanted))
                # The kernel seals with the newest, and ours can open it.
                peer.guest.ip(*map(state_line, back2))
                gone = [*forth, *back]
                forth, back = forth2, back2
                time.sleep(PAUSE_S)
            assert wait_until(lambda: load.transfers > 0, 20)
        assert load.sent > count
        assert [number for number in range(load.sent) if load.came[number] != 1] == []
        assert peer.drops() == before
        sealed = {sa.spi: sa.packets for sa in peer.guest.sas().values()}
        assert all(sealed[sa.spi] for sa in back), "the kernel still seals with an old SA"
    finally:
        load.close()
