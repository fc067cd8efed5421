"""Rekeying under load: not a packet lost, none refused, on either side."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import pytest
from card import AH, CBC, GCM, LEFT, RIGHT, Association, Layer, Pair, Refusal, running_pair
from traffic import Numbered, Stream, ping, wait_until

pytestmark = pytest.mark.live

Sas = dict[str, list[Association]]

CASES = {
    "gcm-tunnel-esn": ([Layer(GCM, "tunnel")], 120, {"esn": True}),
    "cbc-in-ah": ([Layer(CBC, "transport"), Layer(AH, "transport")], 50, {}),
    "software": ([Layer(GCM, "tunnel")], 30, {}),
}
"""200 rekeyings of both directions in all."""

GRACE_S = 1
PAUSE_S = 0.08


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_pair(tmp_path_factory.mktemp("rekeying")) as made:
        yield made


def lines(old: Sas, new: Sas, grace: int = GRACE_S) -> list[str]:
    """Rekey both directions in the order of the guide: whoever switches, the far end can open it by then."""

    def parts(sender: str, way: str) -> str:
        return " ".join(one.renewal(two, way) for one, two in zip(old[sender], new[sender], strict=True))

    return [
        f"sa rekey dev {RIGHT} {parts(LEFT, 'in')} grace {grace}",
        f"sa rekey dev {LEFT} {parts(RIGHT, 'in')} {parts(LEFT, 'out')} grace {grace}",
        f"sa rekey dev {RIGHT} {parts(RIGHT, 'out')}",
    ]


def renewed(sas: Sas) -> Sas:
    return {sender: [sa.renewed() for sa in some] for sender, some in sas.items()}


def spis(sas: Sas) -> set[tuple[str, int]]:
    return {(adapter, sa.spi) for adapter in (LEFT, RIGHT) for some in sas.values() for sa in some}


@pytest.mark.parametrize("name", CASES)
def test_rekeyings_under_load_lose_no_packet_and_refuse_none(pair: Pair, name: str) -> None:
    layers, count, options = CASES[name]
    daemon = pair.daemon
    daemon.vnic("adapter", "set", LEFT, "keyword", "*IPsecOffloadV2", "0" if name == "software" else "3")
    daemon.vnic("adapter", "restart", LEFT)
    sas = pair.protect(layers, **options)
    try:
        assert ping(pair.left, pair.right.addresses[4]) == 1
        before = pair.drops()
        numbered = Numbered(pair.left, pair.right)
        stream = Stream(pair.left, pair.right, os.urandom(16_384))
        with stream, numbered, daemon.paced_batch() as batch:
            for _ in range(count):
                new = renewed(sas)
                batch(*lines(sas, new))
                sas = new
                time.sleep(PAUSE_S)
            assert stream.flows()
        assert not stream.wrong
        assert min(numbered.sent) > count
        assert numbered.missing == [[], []]
        assert numbered.twice == [[], []]
        assert pair.drops() == before
        # What was replaced is gone, and the last ones work.
        assert wait_until(lambda: set(daemon.sas()) == spis(sas), GRACE_S + 3)
        assert all(one["packets"] for one in daemon.sas().values())
        assert {one["offload"] for (adapter, _), one in daemon.sas().items() if adapter == LEFT} == {
            "software" if name == "software" else "nic"
        }
    finally:
        pair.unprotect()


def test_switch_before_the_far_end_is_ready_is_refused_and_changes_nothing(pair: Pair) -> None:
    sas = pair.protect([Layer(GCM, "tunnel")])
    try:
        first, second, third = lines(sas, renewed(sas))
        before = {key: one["sa"] for key, one in pair.daemon.sas().items()}
        for line in (second, third):
            with pytest.raises(Refusal, match="no inbound SA for it yet"):
                pair.daemon.batch(line)
        assert {key: one["sa"] for key, one in pair.daemon.sas().items()} == before
        pair.daemon.batch(first, second, third)
        assert ping(pair.left, pair.right.addresses[4], count=3) == 3
    finally:
        pair.unprotect()


def old_and_new(events: Sequence[dict[str, object]]) -> list[tuple[object, ...]]:
    return [
        (one["adapter"], one["sa"]["spi"], one["old"]["spi"])  # type: ignore[index]
        for one in events
        if one["kind"] == "sa_rekeyed"
    ]


def test_monitor_hears_of_old_and_new_and_of_the_end_of_the_grace(pair: Pair) -> None:
    sas = pair.protect([Layer(GCM, "tunnel")])
    new = renewed(sas)
    try:
        with pair.daemon.monitor() as monitor:
            pair.daemon.batch(*lines(sas, new))
            (forth,), (back,) = sas[LEFT], sas[RIGHT]
            (forth2,), (back2,) = new[LEFT], new[RIGHT]
            gone = monitor.wait_for(
                lambda one: (
                    one["kind"] == "sa_expired" and one["sa"]["spi"] == back.spi and one["adapter"] == LEFT
                )
            )
            assert gone["limit"] == "grace"
            assert old_and_new(monitor.events) == [
                (RIGHT, forth2.spi, forth.spi),
                (LEFT, back2.spi, back.spi),
                (LEFT, forth2.spi, forth.spi),
                (RIGHT, back2.spi, back.spi),
            ]
            assert not any(key.hex() in repr(monitor.events) for key in (*forth2.keys, *back2.keys))
    finally:
        pair.unprotect()
