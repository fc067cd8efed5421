"""Sequence numbers across the ends of a daemon: on the wire no number of an SA comes twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from card import CBC, GCM, LEFT, RIGHT, Association, Layer, Pair, begin_record, policy, running_pair
from traffic import Sniffer, forget_neighbours, ping, spi_of, wait_until

pytestmark = pytest.mark.live

FILE = "sequence-numbers"
PINGS = 20
REFUSED = {"out_not_reserved", "out_no_sa", "in_icv", "in_replay_duplicate", "in_replay_too_old"}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with running_pair(tmp_path, "netdev", from_file=True, settings=begin_record(tmp_path)) as made:
        yield made


def protect(pair: Pair, sas: dict[str, list[Association]]) -> None:
    """The same lines with the same keys, as a script has them that runs at each start."""
    lines = []
    for sender, receiver in ((pair.left, pair.right), (pair.right, pair.left)):
        ends = sender.addresses[4], receiver.addresses[4]
        for adapter, direction in ((receiver.adapter, "in"), (sender.adapter, "out")):
            lines += [sa.add(adapter, direction) for sa in sas[sender.adapter]]
            lines.append(policy(adapter, direction, *ends, sas[sender.adapter]))
    pair.daemon.batch(*lines)
    forget_neighbours(*pair.hosts)


def numbers(sniffer: Sniffer, spi: int) -> list[int]:
    """Numbers of an ESP SA, in the order of the wire."""
    sealed = [
        seen.frame for seen in sniffer.frames if seen.frame[23] == 50 and seen.frame[12:14] == b"\x08\x00"
    ]
    return [int.from_bytes(frame[38:42], "big") for frame in sealed if spi_of(frame) == spi]


@pytest.mark.parametrize(
    ("suite", "esn"), [(GCM, True), (GCM, False), (CBC, False)], ids=["gcm-esn", "gcm", "cbc"]
)
def test_no_number_comes_twice_across_kills_and_restarts(pair: Pair, suite: object, esn: bool) -> None:
    end = pair.ends[0]
    with Sniffer(end.namespace, end.device) as sniffer:
        sas = pair.protect([Layer(suite, "tunnel")], esn=esn)  # type: ignore[arg-type]
        for how in ("kill", "close", "kill", None):
            assert ping(pair.left, pair.right.addresses[4], count=PINGS) == PINGS
            assert not any(REFUSED & drops.keys() for drops in pair.drops().values())
            if how is not None:
                getattr(pair.daemon, how)()
                pair.daemon.start()
                protect(pair, sas)
        sniffer.settle()
        for sender in (LEFT, RIGHT):
            seen = numbers(sniffer, sas[sender][0].spi)
            assert len(seen) >= 4 * PINGS
            assert len(set(seen)) == len(seen)
            assert seen == sorted(seen)


@pytest.mark.parametrize("how", ["close", "kill"])
def test_packets_from_before_a_restart_do_not_pass_again(pair: Pair, how: str) -> None:
    end = pair.ends[0]
    with Sniffer(end.namespace, end.device) as sniffer:
        sas = pair.protect([Layer(GCM, "tunnel")], esn=True)
        assert ping(pair.left, pair.right.addresses[4], count=PINGS) == PINGS
        spi = sas[LEFT][0].spi
        old = [seen.frame for seen in sniffer.frames if seen.frame[23] == 50 and spi_of(seen.frame) == spi]
        assert len(old) >= PINGS
        if how == "kill":
            # What came in the last second is not noted for certain.
            time.sleep(2.5)
        getattr(pair.daemon, how)()
        pair.daemon.start()
        protect(pair, sas)
        for frame in old:
            sniffer.send(frame)
        assert wait_until(lambda: sum(replays(pair).values()) >= len(old))
        assert pair.daemon.sas()[RIGHT, spi]["packets"] == 0
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3


def replays(pair: Pair) -> dict[str, int]:
    return {name: count for name, count in pair.daemon.drops(RIGHT).items() if name.startswith("in_replay")}


def test_without_its_record_an_sa_receives_and_sends_nothing(pair: Pair, tmp_path: Path) -> None:
    end = pair.ends[0]
    sas = pair.protect([Layer(GCM, "tunnel")])
    assert ping(pair.left, pair.right.addresses[4], count=3) == 3
    pair.daemon.kill()
    (tmp_path / "state" / FILE).write_bytes(b"damaged")
    pair.daemon.start()
    assert "it is damaged" in pair.daemon.log
    with pair.daemon.monitor() as monitor, Sniffer(end.namespace, end.device) as sniffer:
        protect(pair, sas)
        event = monitor.wait_for(lambda one: one["kind"] == "sa_withheld" and one["adapter"] == LEFT)
        assert event["sa"]["spi"] == sas[LEFT][0].spi
        assert ping(pair.left, pair.right.addresses[4], wait_s=0.5) == 0
        sniffer.settle()
        assert numbers(sniffer, sas[LEFT][0].spi) == []
    assert pair.daemon.drops(LEFT)["out_not_reserved"] >= 1
    shown = pair.daemon.vnic("-s", "sa", "show", "dev", LEFT, "out")
    assert "may not send" in shown
    # New keys end the loss, for each way.
    new = {sender: [sa.renewed() for sa in some] for sender, some in sas.items()}
    forth, back = [
        [old.renewal(renewed, way) for way in ("in", "out")]
        for old, renewed in ((sas[LEFT][0], new[LEFT][0]), (sas[RIGHT][0], new[RIGHT][0]))
    ]
    pair.daemon.batch(
        f"sa rekey dev {RIGHT} {forth[0]} grace 1",
        f"sa rekey dev {LEFT} {back[0]} {forth[1]} grace 1",
        f"sa rekey dev {RIGHT} {back[1]}",
    )
    assert ping(pair.left, pair.right.addresses[4], count=3) == 3
