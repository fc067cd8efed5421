"""The SA requests of V1, UDP-ESP and its parser entries among them, in binary form (sheet §4.8, §9.3)."""

import struct
from dataclasses import replace

import pytest
from nic_frames import GCM, INNER_V4, V4, Nic, Sa, ah, esp, ethernet, framed, ip, sealed, transmit
from oid_bytes import (
    V1_ADD,
    V1_ADD_UDPESP,
    V1_DELETE,
    V1_DELETE_UDPESP,
    ask,
    v1_add_sa,
    v1_add_udpesp,
    v1_entry,
    v1_handle,
)

from vnic.ipsec.association import Mode
from vnic.miniport.sa_table import InboundBundle
from vnic.ndis.capabilities import NO_IPSEC, NO_IPSEC_V1, OffloadCapabilitiesV1
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.status import NdisStatus

PAYLOAD = bytes(range(48))
UDP_PROTOCOL = 17

V1_ESP = tuple(
    esp(cipher, integrity)
    for cipher in ("null", "des-cbc", "3des-cbc")
    for integrity in ("hmac-md5-96", "hmac-sha1-96")
)
V1_AH = (ah("hmac-md5-96"), ah("hmac-sha1-96"))
DES = V1_ESP[2]
ONE = replace(DES, spi=0x5000)
TWO = replace(DES, spi=0x5001, label="two")


def name(sa: Sa) -> str:
    return f"{sa.operation.name}-{sa.encryption}-{sa.integrity}"


def delete_udpesp(handle: int, entry: int = 0) -> bytes:
    return struct.pack("<QQ", handle, entry)


def added(nic: Nic, sa: Sa, **members: object) -> tuple[int, int]:
    """Add a UDP-ESP SA; gives the handles of SA and parser entry."""
    result = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(sa, **members))  # type: ignore[arg-type]
    assert result.status is NdisStatus.SUCCESS, result
    return v1_handle(result.information_buffer), v1_entry(result.information_buffer)


def entries(nic: Nic) -> int:
    return len(nic.adapter._table.parser_entries)


@pytest.mark.rule(12, 124, 125, 131, 132, 133)
@pytest.mark.parametrize("sa", [*V1_ESP, *V1_AH], ids=name)
def test_v1_sa_protects_what_a_v2_sa_of_the_same_kind_opens(sa: Sa) -> None:
    ours, theirs = Nic(), Nic()
    result = ask(ours.adapter, V1_ADD, v1_add_sa(sa))
    assert (result.status, result.supported_revision) == (NdisStatus.SUCCESS, 0)
    theirs.add(sa, inbound=True)
    one = framed(sa, PAYLOAD)
    buffer = ours.seal(one.frame, transmit(OffloadHandle(v1_handle(result.information_buffer))))
    assert buffer.status is NdisStatus.SUCCESS
    info, _ = theirs.open(bytes(buffer.frame))
    assert info is not None
    assert info.verified


@pytest.mark.rule(14, 130)
@pytest.mark.parametrize(
    ("ah_integrity", "esp_encryption", "esp_integrity"),
    [
        ("hmac-md5-96", "des-cbc", "hmac-md5-96"),
        ("hmac-sha1-96", "des-cbc", "hmac-sha1-96"),
        ("hmac-md5-96", "3des-cbc", "hmac-sha1-96"),
        ("hmac-sha1-96", "3des-cbc", "hmac-md5-96"),
        ("hmac-md5-96", "des-cbc", ""),
        ("hmac-sha1-96", "des-cbc", ""),
    ],
)
def test_each_pair_of_ah_and_esp_integrity_can_be_added(
    ah_integrity: str, esp_encryption: str, esp_integrity: str
) -> None:
    nic = Nic()
    bundle = (esp(esp_encryption, esp_integrity), ah(ah_integrity))
    for inbound in (False, True):
        result = ask(nic.adapter, V1_ADD, v1_add_sa(bundle, inbound=inbound))
        assert result.status is NdisStatus.SUCCESS, result
        assert nic.adapter.offers(OffloadHandle(v1_handle(result.information_buffer)))


@pytest.mark.rule(130)
def test_ah_before_esp_is_not_supported() -> None:
    result = ask(Nic().adapter, V1_ADD, v1_add_sa((V1_AH[0], DES)))
    assert result.status is NdisStatus.NOT_SUPPORTED


@pytest.mark.rule(128)
def test_tunnel_addresses_make_a_tunnel_sa() -> None:
    nic = Nic()
    result = ask(nic.adapter, V1_ADD, v1_add_sa(DES, INNER_V4, tunnel=V4, inbound=True))
    assert result.status is NdisStatus.SUCCESS
    ((_, bundle),) = nic.adapter.bundles()
    assert bundle.portion is Mode.TUNNEL
    peer = Nic()
    inner = ip(INNER_V4, UDP_PROTOCOL, PAYLOAD)
    frame = sealed(peer, DES, framed(DES, inner, 4), peer.add(DES, portion=Mode.TUNNEL))
    info, _ = nic.open(frame)
    assert info is not None
    assert info.verified


@pytest.mark.rule(134)
def test_deleted_v1_sa_is_gone_and_its_room_free() -> None:
    nic = Nic.able(sa_offload_capacity=1)
    handle = v1_handle(ask(nic.adapter, V1_ADD, v1_add_sa(DES)).information_buffer)
    assert ask(nic.adapter, V1_ADD, v1_add_sa(V1_ESP[3])).status is NdisStatus.RESOURCES
    assert ask(nic.adapter, V1_DELETE, struct.pack("<Q", handle)).status is NdisStatus.SUCCESS
    assert len(nic.adapter) == 0
    assert ask(nic.adapter, V1_DELETE, struct.pack("<Q", handle)).status is NdisStatus.INVALID_PARAMETER
    assert ask(nic.adapter, V1_ADD, v1_add_sa(V1_ESP[3])).status is NdisStatus.SUCCESS


@pytest.mark.parametrize(
    ("offset", "form", "value", "status"),
    [
        (0x20, "H", 0, NdisStatus.INVALID_DATA),
        (0x20, "H", 3, NdisStatus.INVALID_DATA),
        (0x22, "h", 0, NdisStatus.INVALID_DATA),
        (0x22, "h", 3, NdisStatus.INVALID_DATA),
        (0x22, "h", -1, NdisStatus.INVALID_DATA),
        (0x24, "I", 3, NdisStatus.INVALID_DATA),
        (0x24 + 0x14, "I", 2, NdisStatus.INVALID_DATA),
        (0x24 + 0x08, "I", 3, NdisStatus.INVALID_DATA),
        (0xB0, "I", 1, NdisStatus.INVALID_DATA),
        (0xB0, "I", 1000, NdisStatus.BUFFER_TOO_SHORT),
    ],
)
def test_v1_member_out_of_bounds_adds_nothing(offset: int, form: str, value: int, status: NdisStatus) -> None:
    nic = Nic()
    buffer = v1_add_sa(DES)
    struct.pack_into(f"<{form}", buffer, offset, value)
    assert ask(nic.adapter, V1_ADD, buffer).status is status
    assert len(nic.adapter) == 0


@pytest.mark.rule(21)
@pytest.mark.parametrize("oid", [V1_ADD, V1_ADD_UDPESP])
def test_nic_without_v1_takes_no_v1_sa(oid: int) -> None:
    nic = Nic.with_hardware(ipsec_v1=NO_IPSEC_V1)
    buffer = v1_add_sa(DES) if oid == V1_ADD else v1_add_udpesp(DES, inbound=True)
    assert ask(nic.adapter, oid, buffer).status is NdisStatus.NOT_SUPPORTED
    assert (len(nic.adapter), entries(nic)) == (0, 0)


def test_nic_of_v1_alone_takes_v1_sas_alone() -> None:
    nic = Nic.with_hardware(ipsec_v2=NO_IPSEC)
    assert ask(nic.adapter, V1_ADD, v1_add_sa(DES)).status is NdisStatus.SUCCESS
    with pytest.raises(Exception, match="does not do that"):
        nic.add(GCM)


# --- UDP-ESP -----------------------------------------------------------------------------------------------


@pytest.mark.rule(137, 138, 143)
def test_first_inbound_sa_makes_a_parser_entry() -> None:
    nic = Nic()
    handle, entry = added(nic, ONE, inbound=True)
    assert handle
    assert entry
    assert entries(nic) == 1


@pytest.mark.rule(144)
def test_next_inbound_sa_gets_the_entry_there_is() -> None:
    nic = Nic()
    first, entry = added(nic, ONE, inbound=True)
    second, same = added(nic, TWO, inbound=True)
    assert first != second
    assert entry == same
    assert entries(nic) == 1


@pytest.mark.rule(145)
def test_inbound_sa_with_an_entry_only_adds_the_sa() -> None:
    nic = Nic()
    _, entry = added(nic, ONE, inbound=True)
    assert added(nic, TWO, inbound=True, entry=entry)[1] == entry
    assert entries(nic) == 1
    result = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(replace(ONE, spi=9999), inbound=True, entry=777))
    assert result.status is NdisStatus.INVALID_PARAMETER
    assert len(nic.adapter) == 2


@pytest.mark.rule(141, 146)
def test_outbound_sa_has_nothing_to_do_with_entries() -> None:
    nic = Nic()
    handle, entry = added(nic, ONE, entry=777, port=99)
    assert handle
    assert entry == 777
    assert entries(nic) == 0


@pytest.mark.rule(147)
@pytest.mark.parametrize(
    "sa", [replace(ONE, spi=0), replace(ONE, integrity=""), V1_AH[0]], ids=["spi", "no integrity", "ah"]
)
def test_failed_addition_leaves_neither_sa_nor_entry(sa: Sa) -> None:
    nic = Nic()
    assert ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(sa, inbound=True)).status not in (
        NdisStatus.SUCCESS,
        NdisStatus.PENDING,
    )
    assert (len(nic.adapter), entries(nic)) == (0, 0)


@pytest.mark.rule(147)
def test_failed_addition_leaves_an_entry_that_was_there() -> None:
    nic = Nic()
    added(nic, ONE, inbound=True)
    result = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(ONE, inbound=True))
    assert result.status is NdisStatus.INVALID_PARAMETER
    assert (len(nic.adapter), entries(nic)) == (1, 1)


@pytest.mark.rule(139, 140)
@pytest.mark.parametrize("port", [0, 500, 4501, 0xFFFF])
def test_other_ports_are_not_supported(port: int) -> None:
    nic = Nic()
    result = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(ONE, inbound=True, port=port))
    assert result.status is NdisStatus.NOT_SUPPORTED
    assert result.value == str(port)
    assert (len(nic.adapter), entries(nic)) == (0, 0)


@pytest.mark.rule(138)
@pytest.mark.parametrize(("kind", "status"), [(0, NdisStatus.NOT_SUPPORTED), (2, NdisStatus.INVALID_DATA)])
def test_other_encapsulation_types_are_refused(kind: int, status: NdisStatus) -> None:
    nic = Nic()
    result = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(ONE, inbound=True, kind=kind))
    assert result.status is status
    assert (len(nic.adapter), entries(nic)) == (0, 0)


@pytest.mark.rule(142)
@pytest.mark.parametrize("protocol", [0, 6, 50])
def test_protocol_of_udp_esp_is_udp(protocol: int) -> None:
    result = ask(Nic().adapter, V1_ADD_UDPESP, v1_add_udpesp(ONE, inbound=True, protocol=protocol))
    assert (result.status, result.field) == (NdisStatus.INVALID_DATA, "Protocol")


@pytest.mark.rule(148, 149, 153)
def test_delete_takes_the_entry_along_only_when_it_is_named() -> None:
    nic = Nic()
    first, entry = added(nic, ONE, inbound=True)
    second, _ = added(nic, TWO, inbound=True, entry=entry)
    assert ask(nic.adapter, V1_DELETE_UDPESP, delete_udpesp(first)).status is NdisStatus.SUCCESS
    assert (len(nic.adapter), entries(nic)) == (1, 1)
    assert ask(nic.adapter, V1_DELETE_UDPESP, delete_udpesp(second, entry)).status is NdisStatus.SUCCESS
    assert (len(nic.adapter), entries(nic)) == (0, 0)


@pytest.mark.parametrize(("wrong_handle", "wrong_entry"), [(True, False), (False, True)])
def test_delete_of_what_is_not_there_changes_nothing(wrong_handle: bool, wrong_entry: bool) -> None:
    nic = Nic()
    handle, entry = added(nic, ONE, inbound=True)
    buffer = delete_udpesp(handle + 100 * wrong_handle, entry + 100 * wrong_entry)
    assert ask(nic.adapter, V1_DELETE_UDPESP, buffer).status is NdisStatus.INVALID_PARAMETER
    assert (len(nic.adapter), entries(nic)) == (1, 1)


def udp_encapsulated(nic: Nic, sa: Sa, sequence: int = 1) -> bytes:
    """A frame of UDP-encapsulated transport, sealed by another card as plain ESP and wrapped here."""
    one = framed(sa, PAYLOAD, sequence=sequence)
    frame = sealed(nic, sa, one, nic.add(replace(sa)))
    body = frame[one.esp :]
    header = struct.pack(">HHHH", 4500, 4500, 8 + len(body), 0)
    return ethernet(ip(V4, UDP_PROTOCOL, header + body))


@pytest.mark.rule(150, 151)
def test_delete_during_a_reset_is_put_off_and_what_it_names_not_used() -> None:
    nic = Nic()
    handle, _ = added(nic, ONE, inbound=True)
    frame = udp_encapsulated(Nic(), ONE)
    info, _ = nic.open(frame)
    assert info is not None
    assert info.verified
    nic.adapter.begin_reset()
    for _ in range(2):
        result = ask(nic.adapter, V1_DELETE_UDPESP, delete_udpesp(handle))
        assert result.status is NdisStatus.NOT_ACCEPTED
    assert len(nic.adapter) == 1
    ((_, bundle),) = nic.adapter.bundles()
    assert isinstance(bundle, InboundBundle)
    assert bundle.marked
    nic.adapter.end_reset()
    assert (len(nic.adapter), entries(nic)) == (0, 1)
    assert nic.open(frame) == (None, frame)


@pytest.mark.rule(150, 151)
def test_entry_whose_delete_was_put_off_goes_with_its_sa() -> None:
    nic = Nic()
    handle, entry = added(nic, ONE, inbound=True)
    other, _ = added(nic, TWO, inbound=True)
    nic.adapter.begin_reset()
    result = ask(nic.adapter, V1_DELETE_UDPESP, delete_udpesp(handle, entry))
    assert result.status is NdisStatus.NOT_ACCEPTED
    nic.adapter.end_reset()
    assert (len(nic.adapter), entries(nic)) == (1, 0)
    frame = udp_encapsulated(Nic(), TWO)
    assert nic.open(frame) == (None, frame)
    assert nic.adapter.offers(OffloadHandle(other))


@pytest.mark.rule(152)
def test_delete_that_overtakes_its_add_cannot_be_as_requests_are_one_at_a_time() -> None:
    nic = Nic()
    handle, entry = added(nic, ONE, inbound=True)
    first = ask(nic.adapter, V1_DELETE_UDPESP, delete_udpesp(handle, entry))
    again = ask(nic.adapter, V1_DELETE_UDPESP, delete_udpesp(handle, entry))
    assert (first.status, again.status) == (NdisStatus.SUCCESS, NdisStatus.INVALID_PARAMETER)


@pytest.mark.rule(23, 137)
def test_nic_that_parses_no_udp_esp_takes_none() -> None:
    nic = Nic.with_hardware(ipsec_v1=OffloadCapabilitiesV1(udp_esp=0))
    result = ask(nic.adapter, V1_ADD_UDPESP, v1_add_udpesp(ONE, inbound=True))
    assert result.status is NdisStatus.NOT_SUPPORTED
    assert (len(nic.adapter), entries(nic)) == (0, 0)


@pytest.mark.rule(211)
def test_halt_forgets_parser_entries_too() -> None:
    nic = Nic()
    added(nic, ONE, inbound=True)
    nic.adapter.halt()
    assert entries(nic) == 0
