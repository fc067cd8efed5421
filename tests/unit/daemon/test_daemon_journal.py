"""Audit records as the journal gets them: fields, the rate, and what was left out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vnic.daemon.journal import BURST, Journal
from vnic.daemon.values import audit_fields
from vnic.ipsec.association import IpsecProtocol, SaId
from vnic.ipsec.counters import EngineEvent, EventKind
from vnic.ipsec.drops import DropReason


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Reader:
    """The journal's end of the socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def record(self) -> dict[str, str] | None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return None
        assert data.endswith(b"\n")
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path / "journal")
    yield made
    made.close()


def test_every_fact_is_a_field_and_what_is_not_known_is_none(reader: Reader, tmp_path: Path) -> None:
    journal = Journal(Clock(), str(tmp_path / "journal"))
    event = EngineEvent(
        EventKind.DROP,
        SaId(bytes(15) + b"\x02", IpsecProtocol.ESP, 0x1001),
        DropReason.IN_REPLAY_DUPLICATE,
        bytes(15) + b"\x01",
        bytes(15) + b"\x02",
        77,
        5,
        protocol=50,
        spi=0x1001,
        flow_label=0xABCDE,
    )
    journal.audit("adapter left: dropped\nVNIC_SPI=forged", audit_fields("left", event))
    assert reader.record() == {
        "MESSAGE": "adapter left: dropped VNIC_SPI=forged",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vnicd",
        "VNIC_EVENT": "drop",
        "VNIC_ADAPTER": "left",
        "VNIC_REASON": "in_replay_duplicate",
        "VNIC_XFRM_STAT": "XfrmInStateSeqError",
        "VNIC_PROTOCOL": "esp",
        "VNIC_SPI": "0x00001001",
        "VNIC_SOURCE": "::1",
        "VNIC_DESTINATION": "::2",
        "VNIC_SEQUENCE_NUMBER": "77",
        "VNIC_FLOW_LABEL": str(0xABCDE),
        "VNIC_SUPPRESSED": "5",
    }
    clear = EngineEvent(EventKind.DROP, None, DropReason.OUT_POLICY_DISCARD, b"\n\0\0\1", b"\n\0\0\2")
    journal.audit("dropped", audit_fields("left", clear))
    assert set(reader.record() or ()) == {
        "MESSAGE",
        "PRIORITY",
        "SYSLOG_IDENTIFIER",
        "VNIC_EVENT",
        "VNIC_ADAPTER",
        "VNIC_REASON",
        "VNIC_XFRM_STAT",
        "VNIC_SOURCE",
        "VNIC_DESTINATION",
    }
    journal.close()


def test_records_beyond_the_rate_are_left_out_and_counted(reader: Reader, tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(clock, str(tmp_path / "journal"))
    got = 0
    for _ in range(BURST + 30):
        journal.audit("dropped", {})
        got += reader.record() is not None
    assert (got, journal.left_out) == (BURST, 30)
    clock.now += 0.2
    journal.audit("dropped", {})
    record = reader.record()
    assert record is not None
    assert record["VNIC_LEFT_OUT"] == "30"
    assert journal.left_out == 0
    journal.close()


def test_a_journal_that_is_away_stops_nothing(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(clock, str(tmp_path / "nowhere"))
    journal.audit("dropped", {})
    journal.audit("dropped", {})
    assert journal.left_out == 2
    journal.close()
    journal.close()
