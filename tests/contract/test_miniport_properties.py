"""Properties of the NIC: what it seals it opens, what was changed it does not, and bytes never break it."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nic_frames import (
    AH_SHA256,
    AH_SUITES,
    CBC_SHA1,
    ESP,
    ESP_SUITES,
    GCM,
    INNER_V4,
    UDP,
    UNDER_AH_SUITES,
    V4,
    V6,
    Framed,
    Nic,
    Sa,
    esp,
    ethernet,
    framed,
    ip,
    nat_traversal,
    sealed,
    seeded,
    suite_id,
    transmit,
)

from vnic.ipsec.association import Mode
from vnic.miniport.adapter import MiniportAdapter
from vnic.miniport.receive import Receiver
from vnic.miniport.send import Sender
from vnic.ndis.netbuffer import NetBuffer, OffloadHandle
from vnic.ndis.oid import OidVersion, Operation, TrafficFilter
from vnic.ndis.status import NdisStatus

Sas = Sa | tuple[Sa, ...]

BUNDLES = [(one, AH_SHA256) for one in (GCM, CBC_SHA1, *UNDER_AH_SUITES)]
EVERYTHING: list[Sas] = [*ESP_SUITES, *AH_SUITES, *BUNDLES]
ADDRESSES = st.sampled_from([V4, V6])
NUMBERS = st.integers(1, (1 << 32) - 1)


def names(sas: Sas) -> str:
    return " ".join(suite_id(sa) for sa in sas) if isinstance(sas, tuple) else suite_id(sas)


def sealed_by(nic: Nic, sas: Sas, addresses: tuple[bytes, bytes], one: Framed) -> bytes:
    return sealed(nic, sas, one, nic.add(sas, addresses))


@pytest.mark.parametrize("sas", EVERYTHING, ids=names)
@settings(max_examples=15)
@given(st.binary(max_size=300), ADDRESSES, NUMBERS, st.integers(0, 255))
def test_opening_undoes_sealing(
    sas: Sas, payload: bytes, addresses: tuple[bytes, bytes], number: int, next_header: int
) -> None:
    peer, nic = Nic(MiniportAdapter(random.Random(number).randbytes)), Nic()
    one = framed(sas, payload, next_header, addresses, sequence=number)
    frame = sealed_by(peer, sas, addresses, one)
    nic.add(sas, addresses, inbound=True)
    info, opened = nic.open(frame)
    assert info is not None
    assert info.verified
    end = one.text + len(payload)
    assert opened[one.text : end] == payload
    if one.esp:
        sa = sas[0] if isinstance(sas, tuple) else sas
        stop = len(frame) - sa.icv_length
        assert opened[end:stop] == one.frame[end:stop]
        assert (info.next_header, info.pad_length) == (opened[stop - 1], opened[stop - 2])


@pytest.mark.parametrize("size", [*range(40), 1400, 9000, 65_000])
def test_every_length_up_to_the_largest_packet_comes_back(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    for sas in (GCM, CBC_SHA1, AH_SHA256, BUNDLES[1]):
        peer, nic = Nic(), Nic()
        one = framed(sas, payload)
        nic.add(sas, inbound=True)
        info, opened = nic.open(sealed_by(peer, sas, V4, one))
        assert info is not None
        assert info.verified
        assert opened[one.text : one.text + size] == payload


def covered(one: Framed) -> list[int]:
    """The offsets behind the IP header whose bytes the SAs protect: all but the SPI of the outermost, which
    decides whether there is an SA at all."""
    start = one.ah or one.esp
    spi = start + 4 if one.ah else start
    return [offset for offset in range(start, len(one.frame)) if offset not in range(spi, spi + 4)]


@pytest.mark.parametrize("sas", EVERYTHING, ids=names)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.binary(max_size=60), ADDRESSES, st.integers(1, 255))
def test_any_byte_changed_is_noticed_and_the_frame_left_alone(
    sas: Sas, data: st.DataObject, payload: bytes, addresses: tuple[bytes, bytes], change: int
) -> None:
    peer, nic = Nic(), Nic()
    one = framed(sas, payload, UDP, addresses)
    frame = bytearray(sealed_by(peer, sas, addresses, one))
    nic.add(sas, addresses, inbound=True)
    position = data.draw(st.sampled_from(covered(one)))
    frame[position] ^= change
    info, after = nic.open(bytes(frame))
    assert info is not None
    assert info.crypto_done
    assert not info.verified
    assert not info.header_info_set
    assert after == frame


def busy_nic() -> Nic:
    """A NIC with an SA of every kind, so that hostile bytes meet code."""
    nic = Nic()
    for addresses in (V4, V6):
        for sa in (
            GCM,
            AH_SHA256,
            esp("null", "hmac-sha1-96", spi=0x1001),
            esp("aes-cbc-128", "hmac-md5-96", spi=0x1002),
            esp("aes-gcm-128", spi=0x1003, icv=8, esn=True),
        ):
            nic.add(sa, addresses, inbound=True, portion=None)
        for bit in range(4):
            sa = esp("aes-gcm-128", spi=0x1010 + bit, label=bit)
            nic.add(sa, addresses, inbound=True, portion=None, udp_esp=1 << bit)
    nic.adapter._table.parser_entries.add(1, 4500)
    nic.add(V1_UDP, inbound=True, version=OidVersion.V1, udp_esp=1, traffic=FILTER)
    return nic


V1_UDP = esp("3des-cbc", "hmac-sha1-96", spi=0x1020)
FILTER = TrafficFilter(bytes(4), bytes(4), V4[1], b"\xff\xff\xff\x00", UDP, 4500)
BUSY = busy_nic()


def in_udp(sa: Sa, addresses: tuple[bytes, bytes]) -> bytes:
    frame = sealed_by(Nic(), sa, addresses, framed(sa, b"seed in UDP", UDP, addresses))
    return ethernet(ip(addresses, UDP, nat_traversal(frame[34 if addresses is V4 else 54 :])))


SEEDS = [
    sealed_by(Nic(), sas, addresses, framed(sas, b"seed of the mutations", UDP, addresses))
    for sas in (GCM, AH_SHA256, (GCM, AH_SHA256), esp("null", "hmac-sha1-96", spi=0x1001))
    for addresses in (V4, V6)
]
SEEDS += [in_udp(esp("aes-gcm-128", spi=0x1010 + bit, label=bit), V4) for bit in range(3)]
SEEDS += [in_udp(esp("aes-gcm-128", spi=0x1010, label=0), V6), in_udp(V1_UDP, V4)]


def test_seeds_are_opened_as_long_as_nobody_changes_them() -> None:
    for seed in SEEDS:
        info, _ = BUSY.open(seed)
        assert info is not None
        assert info.verified


@given(st.binary(max_size=200))
def test_any_bytes_are_received_without_harm(frame: bytes) -> None:
    info, after = BUSY.open(frame)
    if info is None or not info.verified:
        assert after == frame


@settings(max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    st.integers(0, 120),
    st.binary(max_size=40),
)
def test_any_change_of_a_frame_is_received_without_harm(
    frame: bytes, changes: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    mutated = bytearray(frame[: max(0, len(frame) - cut)] + more)
    for position, value in changes:
        if mutated:
            mutated[position % len(mutated)] = value
    wire = bytes(mutated)
    info, after = BUSY.open(wire)
    if info is None or not info.verified:
        assert after == wire


@settings(max_examples=300)
@given(
    st.binary(max_size=120),
    st.sampled_from([4, 41, 50, 51, 0, 43, 60, 44, 17]),
    st.sampled_from([GCM, AH_SHA256, (GCM, AH_SHA256)]),
    ADDRESSES,
)
def test_any_bytes_inside_a_good_layer_are_received_without_harm(
    text: bytes, next_header: int, sas: Sas, addresses: tuple[bytes, bytes]
) -> None:
    one = framed(sas, text, next_header, addresses)
    frame = sealed_by(Nic(), sas, addresses, one)
    info, after = BUSY.open(frame)
    assert info is not None
    if info.verified:
        assert text in after
    else:
        assert after == frame


@settings(max_examples=200)
@given(
    st.sampled_from([*SEEDS, b"", ethernet(ip(V4, ESP, bytes(40)))]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.integers(0, 120),
    st.tuples(*[st.integers(-1, 8) for _ in range(2)]),
    st.tuples(*[st.sampled_from([-4, 0, 4, 20, 28, 40, 48, 52, 64, 72, 1020]) for _ in range(2)]),
)
def test_any_frame_and_transmit_info_are_sealed_or_refused(
    frame: bytes,
    changes: list[tuple[int, int]],
    cut: int,
    handles: tuple[int, int],
    offsets: tuple[int, int],
) -> None:
    nic = Nic()
    for sas in (GCM, AH_SHA256, (CBC_SHA1, AH_SHA256)):
        for addresses in (V4, V6):
            if sas is not GCM or addresses is V4:
                nic.add(sas, addresses)
    nic.add(esp("aes-gcm-128", spi=0x1010, label=0), udp_esp=1)
    nic.add(V1_UDP, version=OidVersion.V1)
    mutated = bytearray(frame[: max(0, len(frame) - cut)])
    for position, value in changes:
        if mutated:
            mutated[position % len(mutated)] = value
    info = transmit(
        OffloadHandle(handles[0]),
        tunnel=OffloadHandle(max(handles[1], 0)),
        ah_offset=offsets[0],
        esp_offset=offsets[1],
        # Mostly what the trailer of an ESP packet with an ICV of 16 bytes says.
        pad_length=mutated[-18] if len(mutated) > 17 else 0,
        next_header=mutated[-17] if len(mutated) > 17 else 0,
    )
    buffer = NetBuffer(mutated, None, info)
    length = len(mutated)
    nic.adapter.send([buffer])
    assert buffer.status in (NdisStatus.SUCCESS, NdisStatus.FAILURE)
    assert len(buffer.frame) == length


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["none", "esp", "ah", "both"]), min_size=1, max_size=3), ADDRESSES)
def test_nested_portions_open_from_the_outside_in(
    portions: list[str], addresses: tuple[bytes, bytes]
) -> None:
    """Packets in packets, each under no SA, one or a bundle: opened as far as SAs go without a gap."""
    nic = Nic()
    packet = ip(INNER_V4, UDP, b"innermost")
    expected = 0
    wrapped: list[tuple[str, int]] = []
    for number, kind in enumerate(reversed(portions)):
        ends = (addresses[0][:-1] + bytes((number,)), addresses[1][:-1] + bytes((number,)))
        protocol = 4 if packet[0] >> 4 == 4 else 41
        one = esp("aes-gcm-128", spi=0x8000 + number, label=number)
        other = Sa(Operation.AH, "", "hmac-sha1-96", spi=0x8000 + number, label=number)
        sas: Sas = {"esp": one, "ah": other}.get(kind, (one, other))
        if kind == "none":
            packet = ip(ends, protocol, packet)
        else:
            frame = framed(sas, packet, protocol, ends)
            packet = sealed(nic, sas, frame, nic.add(sas, ends, portion=Mode.TUNNEL))[14:]
            nic.add(sas, ends, inbound=True, portion=Mode.TUNNEL)
        wrapped.append((kind, 2 if kind == "both" else 1))
    layers = 0
    for kind, count in reversed(wrapped):
        if kind == "none":
            break
        expected += 1
        layers += count
    info, _ = nic.open(ethernet(packet))
    if not expected:
        assert info is None
    elif layers > 4:
        assert info is not None
        assert not info.verified
    else:
        assert info is not None
        assert info.verified
        assert info.next_crypto_done is (expected > 1)


def test_two_nics_with_the_same_random_source_make_the_same_bytes() -> None:
    made = []
    for _ in range(2):
        nic = Nic(MiniportAdapter(seeded(77).randbytes))
        handles = [nic.add(sas) for sas in (GCM, (CBC_SHA1, AH_SHA256))]
        frames = [framed(sas, b"payload") for sas in (GCM, (CBC_SHA1, AH_SHA256))]
        made.append(
            [
                bytes(nic.seal(one.frame, one.info(handle)).frame)
                for one, handle in zip(frames, handles, strict=True)
            ]
        )
    assert made[0] == made[1]


def long_way_only(nic: Nic) -> Nic:
    """A NIC whose short ways for plain ESP packets are closed."""
    nic.adapter._receiver._esp4 = {}
    nic.adapter._receiver._esp6 = {}
    nic.adapter._sender._plain = (False,) * 7
    return nic


@settings(max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    st.integers(0, 40),
)
def test_short_way_of_receive_says_what_the_long_way_says(
    frame: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    mutated = bytearray(frame[: max(0, len(frame) - cut)])
    for position, value in changes:
        if mutated:
            mutated[position % len(mutated)] = value
    short, long = busy_nic(), long_way_only(busy_nic())
    assert short.open(bytes(mutated)) == long.open(bytes(mutated))


@settings(max_examples=200)
@given(
    st.sampled_from([GCM, CBC_SHA1, esp("null", "hmac-sha256-128"), AH_SHA256, (GCM, AH_SHA256)]),
    st.binary(max_size=60),
    ADDRESSES,
    st.lists(st.tuples(st.integers(12, 120), st.integers(0, 255)), max_size=2),
    st.sampled_from([{}, {"pad_length": 3}, {"next_header": 6}, {"esp_header_offset": 24}]),
)
def test_short_way_of_send_makes_what_the_long_way_makes(
    sas: Sas,
    payload: bytes,
    addresses: tuple[bytes, bytes],
    changes: list[tuple[int, int]],
    other: dict[str, int],
) -> None:
    one = framed(sas, payload, UDP, addresses)
    mutated = bytearray(one.frame)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    made = []
    for nic in (Nic(), long_way_only(Nic())):
        info = one.info(nic.add(sas, addresses))._replace(**other)  # type: ignore[arg-type]
        buffer = nic.seal(bytes(mutated), info)
        made.append((buffer.status, bytes(buffer.frame) if buffer.status is NdisStatus.SUCCESS else b""))
    assert made[0] == made[1]


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_short_ways_are_taken_by_the_packets_they_are_for(
    addresses: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the comparisons above would compare the long ways with themselves.
    def long_way(*_: object) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(Sender, "_seal_any", long_way)
    monkeypatch.setattr(Receiver, "_walk", long_way)
    inner = ip(INNER_V4, 6, bytes(40))
    for sa in (GCM, CBC_SHA1):
        nic, peer = Nic(), Nic()
        nic.add(sa, addresses, inbound=True, portion=Mode.TUNNEL)
        frame = sealed_by(peer, sa, addresses, framed(sa, inner, 4, addresses))
        info, opened = nic.open(frame)
        assert info is not None
        assert info.verified
        assert inner in opened
