"""Fragments that wait for others end by the clock, also when no frame comes."""

from __future__ import annotations

import asyncio

import pytest
from daemon_fakes import FakeEngine, FakePort, run, settle
from scapy.layers.inet import IP
from transport_lab import (
    FAR,
    IN,
    NEAR,
    TUNNEL,
    association,
    frame_of,
)

from vnic.daemon.forwarder import Forwarder
from vnic.engine.contract import EngineEvent
from vnic.ipsec.drops import DropReason

PIECE = bytes(frame_of(IP(src=FAR, dst=NEAR, proto=50, flags="MF") / bytes(800)))


@pytest.mark.parametrize("stopped", [False, True])
def test_fragments_end_by_the_clock_while_no_frame_comes(stopped: bool) -> None:
    async def work() -> None:
        tap, wire, engine = FakePort("tap0", "tap"), FakePort("eth0"), FakeEngine()
        events: list[EngineEvent] = []
        failures: list[str] = []
        began = asyncio.get_running_loop().time()
        # An hour passes in a second.
        forwarder = Forwarder(
            "left",
            engine,
            tap,
            wire,
            clock=lambda: (asyncio.get_running_loop().time() - began) * 3600,
            on_event=events.append,
            on_failure=failures.append,
        )
        forwarder.start()
        engine.add_sa(association(IN, TUNNEL, FAR, NEAR), 0.0)
        wire.arrive(PIECE)
        await settle()
        assert engine.deadline < 1000.0
        if stopped:
            forwarder.stop()
        forwarder.keep_time()
        await asyncio.sleep(0.05)
        forwarder.keep_time()
        expected = {} if stopped else {DropReason.IN_FRAGMENT_TIMEOUT: 1}
        assert engine.counters.drops == expected
        assert [event.drop for event in events] == list(expected)
        assert failures == []
        forwarder.stop()
        tap.close()
        wire.close()

    run(work())
