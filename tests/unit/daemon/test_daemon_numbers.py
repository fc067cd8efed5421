"""Sequence numbers that outlive the daemon: on the disk before they are used, or not used."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_fakes import World, run, settle
from scapy.layers.inet import IP, UDP
from transport_lab import (
    ESP,
    FAR,
    IN,
    NEAR,
    OUT,
    TUNNEL,
    address,
    association,
    frame_of,
    policy,
    selector,
    template,
)

from vnic.control import interface as api
from vnic.daemon import main, values
from vnic.daemon.handlers import About, Handlers
from vnic.daemon.numbers import DAMAGED, FILE, Lease, Numbers, StateError
from vnic.engine.reference import ReferenceEngine
from vnic.ipsec.sequence import MAX_SEQUENCE_NUMBER, RESERVED_AT_ONCE
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.oids import Oid, OidRequest, RequestType
from vnic.ndis.status import NdisStatus
from vnic.ndis.structs import pack_add_sa
from vnic.transport.requests import request_for
from vnic.transport.state import SaState

SA = association().checked()
OTHER = association(spi=0x2000).checked()
BLOCK = RESERVED_AT_ONCE
PACKET = IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=7, dport=8) / b"data"
KEY = "5ec7e7" * 6 + "0011"
MESSAGE = api.Sa(
    src=NEAR, dst=FAR, proto="esp", spi=0x100, mode="tunnel", direction="out", encryption="aes-gcm-128",
    encryption_key=KEY,
)  # fmt: skip


@contextlib.contextmanager
def life(directory: Path, *, begin: bool = False) -> Iterator[Numbers]:
    """One life of the daemon: however it ends, nothing more is written."""
    numbers = Numbers(directory)
    try:
        if begin:
            numbers.begin()
        yield numbers
    finally:
        numbers.close()


def lease(numbers: Numbers, sa: object = SA, last_used: int = 0, *, fresh: bool = False) -> Lease | None:
    return run(numbers.lease(sa, last_used, fresh=fresh))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- the record


def test_each_life_goes_on_behind_all_that_was_reserved(tmp_path: Path) -> None:
    with life(tmp_path, begin=True) as numbers:
        assert lease(numbers) == Lease(0, BLOCK)
        assert lease(numbers, OTHER, 77) == Lease(77, 77 + BLOCK)
    with life(tmp_path) as numbers:
        assert numbers.complete
        assert lease(numbers) == Lease(BLOCK, 2 * BLOCK)
        assert lease(numbers) == Lease(2 * BLOCK, 3 * BLOCK)
    with life(tmp_path) as numbers:
        assert lease(numbers, SA, 9 * BLOCK) == Lease(9 * BLOCK, 10 * BLOCK)
        assert lease(numbers, OTHER) == Lease(77 + BLOCK, 77 + 2 * BLOCK)


def test_numbers_are_on_the_disk_before_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with life(tmp_path, begin=True) as numbers:
        synced: list[int] = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
        lease(numbers)
        # The file and its directory.
        assert len(synced) == 2
        data = (tmp_path / FILE).read_bytes()
    with life(tmp_path) as numbers:
        assert data == (tmp_path / FILE).read_bytes()
        assert lease(numbers) == Lease(BLOCK, 2 * BLOCK)


def test_numbers_end_where_the_sa_does(tmp_path: Path) -> None:
    with life(tmp_path, begin=True) as numbers:
        assert lease(numbers, SA, MAX_SEQUENCE_NUMBER - 5) == Lease(
            MAX_SEQUENCE_NUMBER - 5, MAX_SEQUENCE_NUMBER
        )
        assert lease(numbers, SA) == Lease(MAX_SEQUENCE_NUMBER, MAX_SEQUENCE_NUMBER)
        assert lease(numbers, replace(OTHER, esn=True), MAX_SEQUENCE_NUMBER) == Lease(
            MAX_SEQUENCE_NUMBER, MAX_SEQUENCE_NUMBER + BLOCK
        )


def test_other_keys_or_names_are_other_sas_and_no_key_is_in_the_file(tmp_path: Path) -> None:
    with life(tmp_path, begin=True) as numbers:
        for sa in (SA, association(seed=1).checked(), OTHER, replace(SA, destination=address("192.0.2.9"))):
            assert lease(numbers, sa) == Lease(0, BLOCK)
        # Reqid, window and limits are no other life of a key.
        assert lease(numbers, replace(SA, reqid=9, replay_window=64)) == Lease(BLOCK, 2 * BLOCK)
    data = (tmp_path / FILE).read_bytes()
    assert SA.encryption_key.reveal()[:6] not in data
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_many_ask_at_once_and_none_gets_what_another_got(tmp_path: Path) -> None:
    async def work(numbers: Numbers) -> list[Lease | None]:
        asked = [numbers.lease(sa, 0, fresh=False) for sa in [SA] * 20 + [OTHER] * 20]
        return list(await asyncio.gather(*asked))

    with life(tmp_path, begin=True) as numbers:
        given = run(work(numbers))
    expected = [Lease(number * BLOCK, (number + 1) * BLOCK) for number in range(20)]
    assert given == expected * 2


def test_nothing_is_given_that_the_disk_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with life(tmp_path, begin=True) as numbers:
        lease(numbers)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            # However long the disk is full: what it did not take is not used up.
            for _ in range(20):
                for sa in (SA, OTHER):
                    with pytest.raises(StateError, match="No space left"):
                        lease(numbers, sa)
            with pytest.raises(StateError, match="No space left"):
                run(numbers.note_tops([(OTHER, 7)]))
        # The next note has what the last one had, though nothing is new.
        run(numbers.note_tops([]))
        assert lease(numbers) == Lease(BLOCK, 2 * BLOCK)
        assert lease(numbers, OTHER) == Lease(0, BLOCK)
    with life(tmp_path) as numbers:
        assert numbers.top(OTHER) == 7


def test_last_note_is_made_when_the_one_before_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with life(tmp_path, begin=True) as numbers:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StateError):
                run(numbers.note_tops([(SA, 5)]))
        numbers.note_last_tops([])
    with life(tmp_path) as numbers:
        assert numbers.top(SA) == 5


def test_key_that_went_on_to_extended_numbers_never_comes_back_from_them(tmp_path: Path) -> None:
    long = replace(SA, esn=True)
    with life(tmp_path, begin=True) as numbers:
        assert lease(numbers, long, 1 << 33) == Lease(1 << 33, (1 << 33) + BLOCK)
        # There is no number left without ESN, and nothing is forgotten by asking.
        behind = (1 << 33) + BLOCK
        assert lease(numbers, SA) == Lease(behind, behind)
        assert lease(numbers, long) == Lease(behind, behind + BLOCK)


def test_nothing_is_written_when_the_directory_was_given_back(tmp_path: Path) -> None:
    with life(tmp_path, begin=True) as numbers:
        pass
    with life(tmp_path) as other:
        before = (tmp_path / FILE).read_bytes()
        with pytest.raises(StateError, match="given back"):
            lease(numbers)
        assert (tmp_path / FILE).read_bytes() == before
        assert lease(other) == Lease(0, BLOCK)


def test_directory_that_was_taken_away_is_not_mistaken_for_another_of_its_name(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    with life(place, begin=True) as numbers:
        lease(numbers)
        for path in place.iterdir():
            path.unlink()
        with pytest.raises(StateError, match="another daemon"):
            Numbers(place)
        place.rmdir()
        place.mkdir()
        with life(place, begin=True) as other:
            before = (place / FILE).read_bytes()
            with pytest.raises(StateError, match="No such file"):
                lease(numbers)
            assert (place / FILE).read_bytes() == before
            assert lease(other) == Lease(0, BLOCK)


def test_highest_numbers_that_came_are_noted_and_never_go_back(tmp_path: Path) -> None:
    with life(tmp_path, begin=True) as numbers:
        run(numbers.note_tops([(SA, 5), (OTHER, 7)]))
        numbers.note_last_tops([(SA, 9), (OTHER, 6)])
        assert lease(numbers) == Lease(0, BLOCK)
    with life(tmp_path) as numbers:
        assert (numbers.top(SA), numbers.top(OTHER), numbers.top(association(spi=0x3000))) == (9, 7, 0)
        assert lease(numbers) == Lease(BLOCK, 2 * BLOCK)


# -------------------------------------------------------------------------------------------- the loss


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        *[lambda path, at=at: flip(path, at) for at in (0, 16, 17, 50, 57, 60, 75, -1)],
    ],
)
def test_record_that_is_not_whole_gives_nothing_but_to_fresh_keys(tmp_path: Path, harm: object) -> None:
    with life(tmp_path, begin=True) as numbers:
        lease(numbers)
    harm(tmp_path / FILE)  # type: ignore[operator]
    with life(tmp_path) as numbers:
        assert not numbers.complete
        assert numbers.loss
        assert lease(numbers) is None
        assert lease(numbers, OTHER, fresh=True) == Lease(0, BLOCK)
        assert lease(numbers, OTHER) == Lease(BLOCK, 2 * BLOCK)
    # The loss is remembered, and so is what was fresh.
    with life(tmp_path) as numbers:
        assert not numbers.complete
        assert lease(numbers) is None
        assert lease(numbers, OTHER) == Lease(2 * BLOCK, 3 * BLOCK)
        numbers.begin()
    with life(tmp_path) as numbers:
        assert numbers.complete
        assert lease(numbers, OTHER) == Lease(3 * BLOCK, 4 * BLOCK)
    if (tmp_path / DAMAGED).exists():
        assert (tmp_path / DAMAGED).stat().st_size >= 0


def test_half_written_file_of_a_crash_changes_nothing(tmp_path: Path) -> None:
    with life(tmp_path, begin=True) as numbers:
        lease(numbers)
    (tmp_path / f"{FILE}.new").write_bytes(b"half")
    with life(tmp_path) as numbers:
        assert lease(numbers) == Lease(BLOCK, 2 * BLOCK)


def test_directory_belongs_to_one_daemon(tmp_path: Path) -> None:
    with life(tmp_path), pytest.raises(StateError, match="another daemon"):
        Numbers(tmp_path)
    with pytest.raises(StateError, match="No such file"):
        Numbers(tmp_path / "nowhere")


def test_directory_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked this way, because the tests may be root's.
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(StateError, match="not writable"):
        Numbers(tmp_path)


def test_record_is_begun_by_an_option_and_only_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "vnic.toml"
    config.write_text("")
    assert main.main(["--config", str(config), "--new-state"]) == 1
    assert "names no [state] directory" in capsys.readouterr().err
    config.write_text(f'[state]\ndirectory = "{tmp_path}"\n')
    assert main.main(["--config", str(config), "--new-state"]) == 0
    assert "begun" in capsys.readouterr().out
    before = (tmp_path / FILE).read_bytes()
    assert main.main(["--config", str(config), "--new-state"]) == 0
    assert "it is good" in capsys.readouterr().out
    assert (tmp_path / FILE).read_bytes() == before


# ------------------------------------------------------------------------------------------ in the card


class Desk:
    """A daemon with one adapter that has `numbers`."""

    def __init__(self, numbers: Numbers) -> None:
        self.world = World(numbers=numbers)
        about = About(
            engine="reference", loop="asyncio", config=None, reveal_keys=True, clock=lambda: self.world.now,
            wall_clock=lambda: 1_700_000_000.0, started=900.0,
        )  # fmt: skip
        self.handlers = Handlers(self.world.adapters, self.world.events, about)

    async def __aenter__(self) -> Desk:
        await self.handlers.answer(api.AddAdapter(name="left", tap="tap0"))
        self.engine.add_policy(policy(OUT, selector("10.0.0.0/8"), template(ESP, TUNNEL, NEAR, FAR)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.world.adapters.close()

    @property
    def engine(self):  # type: ignore[no-untyped-def]
        return self.world.engines[-1]

    @property
    def events(self) -> list[str]:
        return [event.kind for event in self.world.events.all]

    def numbers(self, count: int = 1) -> list[int]:
        """Send packets; give the sequence numbers of what reaches the wire."""
        wire = self.engine.send([NetBuffer(frame_of(PACKET)) for _ in range(count)], self.world.now).wire
        return [int.from_bytes(one.frame[38:42], "big") for one in wire]

    @property
    def drops(self) -> dict[str, int]:
        return {reason.value: count for reason, count in self.engine.counters.drops.items()}


def test_sa_sends_at_once_and_behind_all_of_its_earlier_life(tmp_path: Path) -> None:
    async def work(numbers: Numbers) -> list[int]:
        async with Desk(numbers) as desk:
            await desk.handlers.answer(api.AddSa(sa=MESSAGE))
            return desk.numbers(3)

    for round_ in range(3):
        with life(tmp_path, begin=not round_) as numbers:
            first = round_ * BLOCK + 1
            assert run(work(numbers)) == [first, first + 1, first + 2]


@pytest.mark.parametrize("esn", [False, True])
def test_next_numbers_are_reserved_when_half_are_used(tmp_path: Path, esn: bool) -> None:
    async def work(numbers: Numbers) -> None:
        async with Desk(numbers) as desk:
            await desk.handlers.answer(api.AddSa(sa=replace(MESSAGE, esn=esn)))
            (state,) = desk.engine._sad
            state.sequence.last = BLOCK // 2 - 2
            assert desk.numbers(3) == [BLOCK // 2 - 1, BLOCK // 2, BLOCK // 2 + 1]
            adapter = desk.world.adapters.require("left")
            adapter.keep_time()
            await settle()
            await asyncio.sleep(0.2)
            (shown,) = (await desk.handlers.answer(api.ListSas())).sas
            assert shown.reserved == 2 * BLOCK
            state.sequence.last = BLOCK - 1
            state.sequence.stop = 0
            assert desk.numbers(2) == [BLOCK, BLOCK + 1]

    with life(tmp_path, begin=True) as numbers:
        run(work(numbers))
    with life(tmp_path) as numbers:
        known = max(numbers._table.values())
    assert known >= 2 * BLOCK


def test_sa_stops_when_the_reservation_does_not_come_in_time(tmp_path: Path) -> None:
    async def work(numbers: Numbers) -> None:
        async with Desk(numbers) as desk:
            await desk.handlers.answer(api.AddSa(sa=MESSAGE))
            (state,) = desk.engine._sad
            state.sequence.last = BLOCK - 2
            assert desk.numbers(4) == [BLOCK - 1, BLOCK]
            assert desk.drops == {"out_not_reserved": 2}
            desk.world.adapters.require("left").keep_time()
            await asyncio.sleep(0.3)
            assert desk.numbers(1) == [BLOCK + 1]

    with life(tmp_path, begin=True) as numbers:
        run(work(numbers))


def test_reservation_that_comes_late_takes_nothing_back(tmp_path: Path) -> None:
    """Two may ask for one SA at a time, and the younger be answered first."""

    async def work(numbers: Numbers) -> None:
        async with Desk(numbers) as desk:
            await desk.handlers.answer(api.AddSa(sa=MESSAGE))
            assert desk.numbers(2) == [1, 2]
            (name,) = desk.engine._sad.table
            desk.engine.reserve(name, 2 * BLOCK, 3 * BLOCK)
            assert desk.numbers(2) == [2 * BLOCK + 1, 2 * BLOCK + 2]
            desk.engine.reserve(name, BLOCK, 2 * BLOCK)
            assert desk.numbers(1) == [2 * BLOCK + 3]
            desk.engine.reserve(name, 2 * BLOCK, 4 * BLOCK)
            assert desk.numbers(1) == [2 * BLOCK + 4]
            (shown,) = (await desk.handlers.answer(api.ListSas())).sas
            assert shown.reserved == 4 * BLOCK

    with life(tmp_path, begin=True) as numbers:
        run(work(numbers))


def test_sa_that_came_by_an_oid_waits_for_its_numbers_and_not_longer(tmp_path: Path) -> None:
    async def work(numbers: Numbers) -> list[int]:
        async with Desk(numbers) as desk:
            adapter = desk.world.adapters.require("left")
            buffer = bytearray(pack_add_sa([request_for(SaState(SA, 0.0))]))
            request = OidRequest(Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, RequestType.SET, buffer)
            result = await adapter.oid_request(request)
            assert result.status is NdisStatus.SUCCESS
            await asyncio.sleep(0.3)
            return desk.numbers(2)

    with life(tmp_path, begin=True) as numbers:
        assert run(work(numbers)) == [1, 2]
    with life(tmp_path) as numbers:
        assert run(work(numbers)) == [BLOCK + 1, BLOCK + 2]


def test_lost_numbers_let_an_sa_receive_and_not_send_and_that_is_told(tmp_path: Path) -> None:
    async def work(numbers: Numbers) -> None:
        async with Desk(numbers) as desk:
            await desk.handlers.answer(api.AddSa(sa=MESSAGE))
            inbound = replace(MESSAGE, src=FAR, dst=NEAR, direction="in", encryption_key=KEY[:-2] + "22")
            await desk.handlers.answer(api.AddSa(sa=inbound))
            out, into = (await desk.handlers.answer(api.ListSas())).sas
            assert (out.withheld, into.withheld, into.reserved) == (True, False, None)
            assert "sa_withheld" in desk.events
            assert desk.numbers(2) == []
            assert desk.drops == {"out_not_reserved": 2}
            test = await desk.handlers.answer(
                api.TestPolicy(src="10.1.0.1", dst="10.2.0.1", proto=17, adapter="left")
            )
            assert test.drop is not None
            assert test.drop.name == "out_not_reserved"
            # New keys are no part of the loss.
            renewal = api.Renewal(
                new_spi=0x111, spi=0x100, dst=FAR, encryption="aes-gcm-128", encryption_key="77" * 20
            )
            await desk.handlers.answer(api.RekeySas(sas=[renewal]))
            assert desk.numbers(2) == [1, 2]
            await desk.handlers.answer(
                api.AddSa(sa=replace(MESSAGE, spi=0x300, encryption_key="99" * 20, fresh=True))
            )
            assert desk.numbers(1) == [1]

    with life(tmp_path) as numbers:
        run(work(numbers))


def test_rekeying_and_replacing_lose_no_packet_to_the_disk(tmp_path: Path) -> None:
    async def work(numbers: Numbers) -> None:
        async with Desk(numbers) as desk:
            await desk.handlers.answer(api.AddSa(sa=MESSAGE))
            assert desk.numbers(2) == [1, 2]
            await desk.handlers.answer(api.ReplaceSa(sa=replace(MESSAGE, reqid=5)))
            assert desk.numbers(1) == [BLOCK + 1]
            renewal = api.Renewal(
                new_spi=0x111, spi=0x100, encryption="aes-gcm-128", encryption_key="77" * 20
            )
            await desk.handlers.answer(api.RekeySas(sas=[renewal]))
            assert desk.numbers(2) == [1, 2]
            assert desk.drops == {}

    with life(tmp_path, begin=True) as numbers:
        run(work(numbers))


def test_window_of_an_inbound_sa_begins_where_that_of_its_last_life_ended(tmp_path: Path) -> None:
    inbound = replace(MESSAGE, src=FAR, dst=NEAR, direction="in")

    async def work(numbers: Numbers, frames: list[bytearray]) -> int:
        async with Desk(numbers) as desk:
            desk.engine.add_policy(policy(IN, selector("10.0.0.0/8"), template(ESP, TUNNEL, FAR, NEAR)))
            await desk.handlers.answer(api.AddSa(sa=inbound))
            burst = [NetBuffer(bytearray(frame)) for frame in frames]
            host = desk.engine.receive(burst, desk.world.now).host
            numbers.note_last_tops(desk.world.adapters.inbound_numbers())
            assert list(desk.world.adapters.inbound_numbers()) == []
            return len(host)

    peer = ReferenceEngine(os.urandom)
    peer.add_policy(policy(OUT, selector("10.0.0.0/8"), template(ESP, TUNNEL, FAR, NEAR)))
    peer.add_sa(values.sa_of(replace(inbound, direction="out"), OUT), 0.0)
    sealed = peer.send([NetBuffer(frame_of(PACKET)) for _ in range(6)], 1.0).wire
    frames = [bytearray(one.frame) for one in sealed]
    with life(tmp_path, begin=True) as numbers:
        assert run(work(numbers, frames[:4])) == 4
    with life(tmp_path) as numbers:
        assert run(work(numbers, frames)) == 2
    with life(tmp_path) as numbers:
        assert run(work(numbers, frames)) == 0


@pytest.mark.parametrize("how", ["SA deleted", "SAs flushed", "SA replaced and back", "adapter deleted"])
def test_window_of_an_sa_that_goes_and_comes_again_begins_where_it_was(tmp_path: Path, how: str) -> None:
    """In one life, before anybody has noted what came."""
    inbound = replace(MESSAGE, src=FAR, dst=NEAR, direction="in")
    peer = ReferenceEngine(os.urandom)
    peer.add_policy(policy(OUT, selector("10.0.0.0/8"), template(ESP, TUNNEL, FAR, NEAR)))
    peer.add_sa(values.sa_of(replace(inbound, direction="out"), OUT), 0.0)
    sealed = peer.send([NetBuffer(frame_of(PACKET)) for _ in range(6)], 1.0).wire
    frames = [bytearray(one.frame) for one in sealed]

    async def work(numbers: Numbers) -> None:
        async with Desk(numbers) as desk:
            wanted = policy(IN, selector("10.0.0.0/8"), template(ESP, TUNNEL, FAR, NEAR))

            def receive(count: int) -> int:
                burst = [NetBuffer(bytearray(frame)) for frame in frames[:count]]
                return len(desk.engine.receive(burst, desk.world.now).host)

            desk.engine.add_policy(wanted)
            answer = desk.handlers.answer
            await answer(api.AddSa(sa=inbound))
            assert receive(4) == 4
            if how == "SA deleted":
                await answer(api.DeleteSa(spi=0x100, dst=NEAR, proto="esp", adapter="left"))
            elif how == "SAs flushed":
                await answer(api.FlushSas(adapter="left"))
            elif how == "SA replaced and back":
                await answer(api.ReplaceSa(sa=replace(inbound, encryption_key="88" * 20)))
            else:
                await answer(api.DeleteAdapter(name="left"))
                await answer(api.AddAdapter(name="left", tap="tap0"))
                desk.engine.add_policy(wanted)
            again = api.ReplaceSa if how == "SA replaced and back" else api.AddSa
            await answer(again(sa=inbound))
            assert receive(4) == 0
            assert receive(6) == 2

    with life(tmp_path, begin=True) as numbers:
        run(work(numbers))


def test_without_a_directory_nothing_is_kept_and_nothing_waits() -> None:
    async def work() -> None:
        async with Desk(None) as desk:  # type: ignore[arg-type]
            await desk.handlers.answer(api.AddSa(sa=MESSAGE))
            assert desk.numbers(2) == [1, 2]
            (shown,) = (await desk.handlers.answer(api.ListSas())).sas
            assert shown.reserved is None

    run(work())
