"""OFFLOAD_PARAMETERS, OFFLOAD_ENCAPSULATION, CURRENT_CONFIG and HARDWARE_CAPABILITIES (sheet §3).

Members of an NDIS_OFFLOAD are read at the offsets of sheet §2.1 and §2.3.
"""

import struct

import pytest
from nic_frames import AH_SHA256, GCM, V6, Nic, framed, sealed, seeded, transmit
from oid_bytes import (
    ADD_SA,
    CURRENT_CONFIG,
    ENCAPSULATION,
    HARDWARE_CAPABILITIES,
    OFF,
    ON,
    PARAMETERS,
    add_sa,
    ask,
    encapsulation,
    parameters,
    query,
)

from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import NO_TASK_OFFLOAD, OffloadCapabilities, OffloadCapabilitiesV1, TaskOffload
from vnic.ndis.keywords import IpsecKeyword, Keywords
from vnic.ndis.netbuffer import LargeSend, NetBufferList
from vnic.ndis.status import IndicationCode, NdisStatus, StatusIndication

PAYLOAD = bytes(40)
NO_CHANGE, OFF_VALUE, AH, ESP, BOTH = range(5)

LSO_V1_SIZE, V1_ENCAPSULATION, LSO_V2_IPV4_SIZE, LSO_V2_IPV6 = 0x28, 0x34, 0x54, 0x5C
V2_ENCAPSULATION, V2_IPV6, V2_AH, V2_ESP, V2_BOTH = 0x70, 0x74, 0x77, 0x78, 0x79
V1_AH, V1_ESP = 0x48, 0x4C
CHECKSUM_IPV4 = 0x04


def adapter(keywords: Keywords | None = None, **members: object) -> MiniportAdapter:
    """A NIC that nobody has switched on."""
    able = OffloadCapabilities(**members)  # type: ignore[arg-type]
    return MiniportAdapter(seeded().randbytes, able, keywords=keywords or Keywords())


def on(nic: MiniportAdapter) -> MiniportAdapter:
    assert ask(nic, ENCAPSULATION, encapsulation()).status is NdisStatus.SUCCESS
    nic.take_indications()
    return nic


def current(nic: MiniportAdapter) -> bytes:
    result = query(nic, CURRENT_CONFIG)
    assert result.status is NdisStatus.SUCCESS
    return result.information_buffer


def protocols(offload: bytes) -> tuple[bool, bool]:
    """AH and ESP of IPsec V2."""
    return bool(offload[V2_AH]), bool(offload[V2_ESP])


def only_indication(nic: MiniportAdapter) -> StatusIndication:
    (indication,) = nic.take_indications()
    return indication


# --- queries -----------------------------------------------------------------------------------------------


@pytest.mark.rule(19, 25, 58, 59)
def test_queries_answer_an_ndis_offload_each() -> None:
    nic = adapter()
    for oid in (CURRENT_CONFIG, HARDWARE_CAPABILITIES):
        result = query(nic, oid)
        assert result.status is NdisStatus.SUCCESS
        assert result.bytes_written == len(result.information_buffer) == 144
        assert struct.unpack_from("<BBH", result.information_buffer) == (0xA7, 2, 144)


@pytest.mark.rule(59)
@pytest.mark.parametrize("oid", [CURRENT_CONFIG, HARDWARE_CAPABILITIES, ENCAPSULATION], ids=hex)
def test_small_buffer_is_told_how_much_room_there_has_to_be(oid: int) -> None:
    nic = adapter()
    needed = query(nic, oid).bytes_written
    for room in (0, 1, needed - 1):
        result = query(nic, oid, room)
        assert (result.status, result.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, needed)
        assert (result.bytes_written, result.information_buffer) == (0, b"")
    assert query(nic, oid, needed).status is NdisStatus.SUCCESS


@pytest.mark.rule(22, 28, 33, 34)
def test_hardware_reports_ethernet_for_every_offload() -> None:
    hardware = query(adapter(), HARDWARE_CAPABILITIES).information_buffer
    for offset in (CHECKSUM_IPV4, 0x24, V1_ENCAPSULATION, 0x50, LSO_V2_IPV6, V2_ENCAPSULATION):
        assert struct.unpack_from("<I", hardware, offset)[0] & 0x6 == 0x6


@pytest.mark.rule(24)
def test_v1_without_an_ability_reports_zero() -> None:
    v1 = OffloadCapabilitiesV1(ah_esp_combined=False, transport_tunnel_combined=False, ipv4_options=False)
    nic = MiniportAdapter(seeded().randbytes, TaskOffload(ipsec_v1=v1))
    hardware = query(nic, HARDWARE_CAPABILITIES).information_buffer
    assert hardware[0x38:0x44] == bytes(12)


@pytest.mark.rule(23)
def test_v1_that_cannot_receive_esp_sets_no_udp_esp_flag() -> None:
    nic = MiniportAdapter(seeded().randbytes, TaskOffload(ipsec_v1=OffloadCapabilitiesV1(esp_receive=False)))
    hardware = query(nic, HARDWARE_CAPABILITIES).information_buffer
    assert struct.unpack_from("<I", hardware, 0x44) == (0,)


@pytest.mark.rule(27)
def test_hardware_capabilities_hold_what_the_keywords_switch_off() -> None:
    nic = on(adapter(Keywords(IpsecKeyword.DISABLED, IpsecKeyword.DISABLED)))
    hardware = query(nic, HARDWARE_CAPABILITIES).information_buffer
    assert protocols(hardware) == (True, True)
    assert protocols(current(nic)) == (False, False)
    assert hardware == query(adapter(), HARDWARE_CAPABILITIES).information_buffer


# --- keywords ----------------------------------------------------------------------------------------------


@pytest.mark.rule(27, 38)
@pytest.mark.parametrize("value", list(IpsecKeyword))
def test_keyword_is_read_at_the_start(value: IpsecKeyword) -> None:
    offload = current(on(adapter(Keywords(v2=value))))
    assert protocols(offload) == (value.ah, value.esp)
    assert bool(offload[V2_BOTH]) == (value.ah and value.esp)
    assert bool(struct.unpack_from("<I", offload, V2_ENCAPSULATION)[0]) == (value != 0)
    assert bool(struct.unpack_from("<I", offload, 0x8C)[0]) == (value != 0)


@pytest.mark.rule(38)
@pytest.mark.parametrize("value", list(IpsecKeyword))
def test_keyword_of_v1_is_for_v1_alone(value: IpsecKeyword) -> None:
    offload = current(on(adapter(Keywords(v1_ipv4=value))))
    ah, esp = (struct.unpack_from("<I", offload, offset)[0] for offset in (V1_AH, V1_ESP))
    assert bool(ah & 0b111111110000) == value.ah
    assert bool(esp) == value.esp
    assert protocols(offload) == (True, True)


@pytest.mark.rule(49)
def test_keyword_for_ipv4_only_rules_a_nic_without_ipv6_alone() -> None:
    keywords = Keywords(v2=IpsecKeyword.AH, v2_ipv4=IpsecKeyword.ESP)
    assert protocols(current(on(adapter(keywords)))) == (True, False)
    assert protocols(current(on(adapter(keywords, ipv6_supported=False)))) == (False, True)


@pytest.mark.rule(40)
def test_changed_keywords_are_in_force_after_a_restart() -> None:
    nic = on(adapter())
    nic.set_keywords(Keywords(v2=IpsecKeyword.ESP))
    assert nic.keywords.v2 is IpsecKeyword.ESP
    assert protocols(current(nic)) == (True, True)
    nic.restart()
    assert protocols(current(on(nic))) == (False, True)


@pytest.mark.rule(35)
def test_everything_is_on_when_no_keyword_says_otherwise() -> None:
    nic = on(adapter())
    assert current(nic) == query(nic, HARDWARE_CAPABILITIES).information_buffer


# --- OFFLOAD_ENCAPSULATION ---------------------------------------------------------------------------------


@pytest.mark.rule(55, 172)
def test_nothing_works_before_the_encapsulation_is_set() -> None:
    ours, theirs = Nic(), Nic()
    deaf = adapter()
    out = ours.add(GCM)
    frame = sealed(ours, GCM, framed(GCM, PAYLOAD), out)
    quiet = Nic.__new__(Nic)
    quiet.adapter = deaf
    quiet.add(GCM, inbound=True)
    assert quiet.open(frame) == (None, frame)
    assert quiet.seal(framed(GCM, PAYLOAD).frame, transmit(quiet.add(GCM))).status is NdisStatus.FAILURE
    assert deaf.current == NO_TASK_OFFLOAD
    theirs.add(GCM, inbound=True)
    info, _ = theirs.open(frame)
    assert info is not None
    on(deaf)
    info, _ = quiet.open(frame)
    assert info is not None
    assert info.verified


@pytest.mark.rule(50, 52, 54, 61, 62)
def test_set_encapsulation_is_applied_and_then_indicated() -> None:
    nic = adapter()
    result = ask(nic, ENCAPSULATION, encapsulation())
    assert (result.status, result.bytes_read, result.supported_revision) == (NdisStatus.SUCCESS, 28, 1)
    indication = only_indication(nic)
    assert indication.code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG
    assert indication.code == 0x40020006
    assert indication.buffer == current(nic)
    assert protocols(current(nic)) == (True, True)


@pytest.mark.rule(53)
@pytest.mark.parametrize("setting", [(ON, 0x10, 22), (ON, 0x1, 14), (ON, 0, 0), (ON, 6, 14), (ON, 2, 13)])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_encapsulation_nothing_supports_is_an_invalid_parameter(
    setting: tuple[int, int, int], family: str
) -> None:
    nic = adapter()
    before = nic.configuration_generation
    result = ask(nic, ENCAPSULATION, encapsulation(**{family: setting}))
    assert result.status is NdisStatus.INVALID_PARAMETER
    assert nic.current == NO_TASK_OFFLOAD
    assert (nic.take_indications(), nic.configuration_generation) == ([], before)


@pytest.mark.rule(74)
@pytest.mark.parametrize("setting", [(3, 2, 14), (OFF, 2, 0), (0, 0, 14), (1 << 31, 0, 0)])
def test_encapsulation_out_of_bounds_is_invalid_data(setting: tuple[int, int, int]) -> None:
    nic = on(adapter())
    assert ask(nic, ENCAPSULATION, encapsulation(setting)).status is NdisStatus.INVALID_DATA
    assert protocols(current(nic)) == (True, True)
    assert nic.take_indications() == []


@pytest.mark.rule(57)
def test_off_deactivates_every_offload() -> None:
    nic = on(adapter())
    result = ask(nic, ENCAPSULATION, encapsulation((OFF, 0, 0), (OFF, 0, 0)))
    assert result.status is NdisStatus.SUCCESS
    assert nic.current == NO_TASK_OFFLOAD
    assert only_indication(nic).buffer == current(nic)


def test_family_that_is_off_is_not_worked_on() -> None:
    nic = Nic()
    peer = Nic()
    v4, v6 = nic.add(GCM), nic.add(AH_SHA256, V6)
    result = ask(nic.adapter, ENCAPSULATION, encapsulation((OFF, 0, 0), (0, 0, 0)))
    assert result.status is NdisStatus.SUCCESS
    assert (nic.adapter.offers(v4), nic.adapter.offers(v6)) == (False, True)
    one = framed(GCM, PAYLOAD)
    assert nic.seal(one.frame, one.info(v4)).status is NdisStatus.FAILURE
    peer.add(AH_SHA256, V6, inbound=True)
    other = framed(AH_SHA256, PAYLOAD, addresses=V6)
    info, _ = peer.open(sealed(nic, AH_SHA256, other, v6))
    assert info is not None
    assert info.verified
    ask(nic.adapter, ENCAPSULATION, encapsulation((ON, 2, 14), (OFF, 0, 0)))
    assert (nic.adapter.offers(v4), nic.adapter.offers(v6)) == (True, False)
    assert current(nic.adapter)[V2_IPV6] == 0


def test_query_of_the_encapsulation_gives_what_was_set() -> None:
    nic = adapter()
    off = encapsulation((OFF, 0, 0), (OFF, 0, 0))
    assert query(nic, ENCAPSULATION).information_buffer == off
    mixed = encapsulation((ON, 2, 14), (OFF, 0, 0))
    ask(nic, ENCAPSULATION, mixed)
    assert query(nic, ENCAPSULATION).information_buffer == mixed
    ask(nic, ENCAPSULATION, encapsulation((0, 0, 0), (ON, 2, 18)))
    assert query(nic, ENCAPSULATION).information_buffer == encapsulation()


@pytest.mark.rule(42, 51)
@pytest.mark.parametrize(
    ("oid", "buffer"), [(ENCAPSULATION, encapsulation()), (PARAMETERS, parameters(IPsecV2=4))]
)
def test_nic_without_any_offload_supports_no_configuration(oid: int, buffer: bytearray) -> None:
    nic = MiniportAdapter(seeded().randbytes, NO_TASK_OFFLOAD)
    assert ask(nic, oid, bytes(buffer)).status is NdisStatus.NOT_SUPPORTED
    assert ask(nic, oid, b"").status is NdisStatus.NOT_SUPPORTED


# --- OFFLOAD_PARAMETERS ------------------------------------------------------------------------------------


@pytest.mark.rule(41, 44, 45, 46, 61, 62)
@pytest.mark.parametrize("value", [OFF_VALUE, AH, ESP, BOTH])
def test_parameters_are_written_applied_and_then_indicated(value: int) -> None:
    nic = on(adapter())
    result = ask(nic, PARAMETERS, parameters(IPsecV2=value, IPsecV1=value))
    assert (result.status, result.bytes_read, result.supported_revision) == (NdisStatus.SUCCESS, 22, 2)
    assert (nic.keywords.v2, nic.keywords.v1_ipv4) == (value - 1, value - 1)
    assert protocols(current(nic)) == (value in (AH, BOTH), value in (ESP, BOTH))
    indication = only_indication(nic)
    assert indication.code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG
    assert indication.buffer == current(nic)


@pytest.mark.rule(48)
@pytest.mark.parametrize("start", list(IpsecKeyword))
def test_no_change_leaves_a_setting_alone(start: IpsecKeyword) -> None:
    nic = on(adapter(Keywords(start, start, start)))
    before = current(nic)
    assert ask(nic, PARAMETERS, parameters(revision=3)).status is NdisStatus.SUCCESS
    assert current(nic) == before
    assert nic.keywords == Keywords(start, start, start)


@pytest.mark.rule(43, 74)
@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("IPsecV1", 5),
        ("IPsecV2", 5),
        ("IPsecV2", 255),
        ("IPsecV2IPv4", 9),
        ("LsoV1", 3),
        ("LsoV2IPv4", 3),
        ("LsoV2IPv6", 77),
        ("IPv4Checksum", 5),
        ("UDPIPv6Checksum", 6),
        ("RscIPv4", 3),
    ],
)
def test_parameter_out_of_bounds_is_invalid_data_and_changes_nothing(member: str, value: int) -> None:
    nic = on(adapter())
    before = (current(nic), nic.keywords, nic.configuration_generation)
    buffer = parameters(revision=3, **({"IPsecV2": 1, "IPsecV1": 1} | {member: value}))
    result = ask(nic, PARAMETERS, buffer)
    assert result.status is NdisStatus.INVALID_DATA
    assert (result.field, result.value != "") == (member, True)
    assert (current(nic), nic.keywords, nic.configuration_generation) == before
    assert nic.take_indications() == []


@pytest.mark.rule(44)
def test_parameters_may_leave_the_registry_alone() -> None:
    nic = on(adapter())
    ask(nic, PARAMETERS, parameters(flags=1, IPsecV2=ESP, LsoV1=1))
    assert nic.keywords == Keywords()
    assert protocols(current(nic)) == (False, True)
    nic.restart()
    assert protocols(current(on(nic))) == (True, True)


@pytest.mark.rule(40, 44)
def test_written_parameters_outlive_a_restart() -> None:
    nic = on(adapter())
    ask(nic, PARAMETERS, parameters(IPsecV2=AH, LsoV2IPv6=1))
    nic.restart()
    offload = current(on(nic))
    assert protocols(offload) == (True, False)
    assert struct.unpack_from("<I", offload, LSO_V2_IPV6) == (0,)
    assert struct.unpack_from("<I", offload, LSO_V2_IPV4_SIZE) != (0,)


@pytest.mark.rule(49)
def test_parameter_for_ipv4_only_rules_a_nic_without_ipv6_alone() -> None:
    both, old = on(adapter()), on(adapter(ipv6_supported=False))
    for nic in (both, old):
        ask(nic, PARAMETERS, parameters(IPsecV2=AH, IPsecV2IPv4=ESP))
        assert (nic.keywords.v2, nic.keywords.v2_ipv4) == (IpsecKeyword.AH, IpsecKeyword.ESP)
    assert protocols(current(both)) == (True, False)
    assert protocols(current(old)) == (False, True)


@pytest.mark.rule(60)
def test_parameters_enable_what_the_hardware_has_and_a_keyword_had_off() -> None:
    nic = on(adapter(Keywords(v2=IpsecKeyword.DISABLED)))
    ask(nic, PARAMETERS, parameters(IPsecV2=BOTH))
    assert protocols(current(nic)) == (True, True)


def test_parameters_do_not_give_the_hardware_what_it_lacks() -> None:
    nic = on(adapter(ah=False))
    assert ask(nic, PARAMETERS, parameters(IPsecV2=BOTH)).status is NdisStatus.SUCCESS
    assert protocols(current(nic)) == (False, True)
    ask(nic, PARAMETERS, parameters(IPsecV2=AH))
    assert struct.unpack_from("<I", current(nic), V2_ENCAPSULATION) == (0,)


@pytest.mark.rule(47, 55)
def test_receive_that_was_newly_switched_on_waits_for_the_encapsulation() -> None:
    ours, theirs = Nic(), Nic(adapter(Keywords(v2=IpsecKeyword.AH)))
    out, ah_out = ours.add(GCM), ours.add(AH_SHA256)
    esp_frame = sealed(ours, GCM, framed(GCM, PAYLOAD), out)
    ah_frame = sealed(ours, AH_SHA256, framed(AH_SHA256, PAYLOAD), ah_out)
    ask(theirs.adapter, PARAMETERS, parameters(IPsecV2=BOTH))
    esp_in, ah_in = theirs.add(GCM, inbound=True), theirs.add(AH_SHA256, inbound=True)
    assert protocols(current(theirs.adapter)) == (True, True)
    assert (theirs.adapter.offers(esp_in), theirs.adapter.offers(ah_in)) == (False, True)
    assert theirs.open(esp_frame) == (None, esp_frame)
    info, _ = theirs.open(ah_frame)
    assert info is not None
    assert info.verified
    one = framed(GCM, PAYLOAD)
    assert theirs.seal(one.frame, one.info(theirs.add(GCM))).status is NdisStatus.SUCCESS
    ask(theirs.adapter, ENCAPSULATION, encapsulation())
    info, _ = theirs.open(esp_frame)
    assert info is not None
    assert info.verified


@pytest.mark.rule(5, 163, 172)
def test_sas_stay_inactive_while_their_protocol_is_off() -> None:
    ours, theirs = Nic(), Nic()
    out = ours.add(GCM)
    theirs.add(GCM, inbound=True)
    one = framed(GCM, PAYLOAD)
    frame = sealed(ours, GCM, one, out)
    for nic in (ours, theirs):
        ask(nic.adapter, PARAMETERS, parameters(IPsecV2=AH))
        assert len(nic.adapter) == 1
    assert ours.seal(one.frame, one.info(out)).status is NdisStatus.FAILURE
    assert theirs.open(frame) == (None, frame)
    for nic in (ours, theirs):
        ask(nic.adapter, PARAMETERS, parameters(IPsecV2=BOTH))
        ask(nic.adapter, ENCAPSULATION, encapsulation())
    info, _ = theirs.open(sealed(ours, GCM, framed(GCM, PAYLOAD, sequence=2), out))
    assert info is not None
    assert info.verified


@pytest.mark.rule(93)
def test_sa_of_a_protocol_that_is_off_is_not_added() -> None:
    nic = on(adapter(Keywords(v2=IpsecKeyword.AH)))
    result = ask(nic, ADD_SA, add_sa(GCM))
    assert result.status is NdisStatus.NOT_SUPPORTED
    assert result.allowed == "AH"
    assert ask(nic, ADD_SA, add_sa(AH_SHA256)).status is NdisStatus.SUCCESS


def test_sa_may_be_added_before_the_encapsulation_is_set() -> None:
    assert ask(adapter(), ADD_SA, add_sa(GCM)).status is NdisStatus.SUCCESS


@pytest.mark.rule(199)
def test_large_sends_fail_once_lso_is_off() -> None:
    nic = Nic()
    result = ask(nic.adapter, PARAMETERS, parameters(LsoV1=1, LsoV2IPv4=1, LsoV2IPv6=1))
    assert result.status is NdisStatus.SUCCESS
    offload = current(nic.adapter)
    assert struct.unpack_from("<I", offload, LSO_V1_SIZE) == (0,)
    assert struct.unpack_from("<I", offload, LSO_V2_IPV4_SIZE) == (0,)
    assert not nic.adapter.keywords.lso
    frame = framed(GCM, PAYLOAD).frame
    large = transmit(nic.add(GCM))._replace(large_send=LargeSend(1000, 34, 2, False))
    nbl = NetBufferList(1, [bytearray(frame)], large)
    assert nic.adapter.transmit([nbl]) == []
    assert nbl.status is NdisStatus.FAILURE


@pytest.mark.parametrize(("member", "family"), [("TCPIPv4Checksum", "ipv4"), ("UDPIPv6Checksum", "ipv6")])
def test_checksums_of_sends_are_switched_by_family(member: str, family: str) -> None:
    nic = on(adapter())
    for value, able in ((1, False), (2, True), (3, False), (4, True)):
        ask(nic, PARAMETERS, parameters(**{member: value}))
        assert getattr(nic.current.checksum, family) is able
        assert nic.current.checksum.ipv4 or nic.current.checksum.ipv6


@pytest.mark.rule(82)
@pytest.mark.parametrize(("revision", "length"), [(1, 20), (2, 22), (3, 26)])
def test_each_revision_of_the_parameters_is_understood(revision: int, length: int) -> None:
    nic = on(adapter())
    buffer = parameters(revision=revision, IPsecV1=OFF_VALUE)
    assert len(buffer) == length
    result = ask(nic, PARAMETERS, buffer)
    assert (result.status, result.supported_revision) == (NdisStatus.SUCCESS, revision)
    assert nic.keywords.v1_ipv4 is IpsecKeyword.DISABLED
    short = ask(nic, PARAMETERS, buffer[:-1])
    assert (short.status, short.bytes_needed) == (NdisStatus.BUFFER_TOO_SHORT, length)


# --- load balancing ----------------------------------------------------------------------------------------


@pytest.mark.rule(18, 20, 26, 61, 63)
def test_load_balancing_withdraws_ipsec_and_gives_it_back() -> None:
    ours, theirs = Nic(), Nic()
    out, inbound = ours.add(GCM), theirs.add(GCM, inbound=True)
    one = framed(GCM, PAYLOAD)
    frame = sealed(ours, GCM, one, out)
    for nic in (ours, theirs):
        nic.adapter.take_indications()
        generation = nic.adapter.configuration_generation
        nic.adapter.set_load_balanced(True, "bond0")
        assert nic.adapter.configuration_generation > generation
        below, now = nic.adapter.take_indications()
        assert below.code is IndicationCode.TASK_OFFLOAD_HARDWARE_CAPABILITIES
        assert below.buffer == query(nic.adapter, HARDWARE_CAPABILITIES).information_buffer
        assert now.code is IndicationCode.TASK_OFFLOAD_CURRENT_CONFIG
        assert now.buffer == current(nic.adapter)
        assert protocols(below.buffer) == protocols(now.buffer) == (False, False)
        assert nic.adapter.current.large_send.ipv4
        nic.adapter.set_load_balanced(True, "bond0")
        assert nic.adapter.take_indications() == []
    assert (ours.adapter.offers(out), theirs.adapter.offers(inbound)) == (False, False)
    assert ours.seal(one.frame, one.info(out)).status is NdisStatus.FAILURE
    assert theirs.open(frame) == (None, frame)
    for nic in (ours, theirs):
        nic.adapter.set_load_balanced(False)
        assert [protocols(one.buffer) for one in nic.adapter.take_indications()] == [(True, True)] * 2
    info, _ = theirs.open(frame)
    assert info is not None
    assert info.verified


def test_indications_that_nobody_takes_stay_bounded() -> None:
    nic = adapter()
    for _ in range(1000):
        ask(nic, ENCAPSULATION, encapsulation())
    assert len(nic.take_indications()) == 256
