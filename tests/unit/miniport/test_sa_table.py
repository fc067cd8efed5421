import pytest
from nic_frames import AH_SHA256, CBC_SHA1, GCM, V4, V6, Nic, add_request, esp, seeded

from vnic.errors import OidError
from vnic.miniport.counter_keys import CounterKeys
from vnic.miniport.sa_table import InboundBundle, OutboundBundle, SaTable
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import DeleteSa, Operation
from vnic.ndis.status import NdisStatus


def table_of(nic: Nic) -> SaTable:
    return nic.adapter._table


def spi_bytes(spi: int) -> bytes:
    return spi.to_bytes(4, "big")


@pytest.mark.rule(173)
def test_inbound_sa_is_found_by_destination_and_spi_of_its_operation() -> None:
    nic = Nic()
    nic.add(GCM, inbound=True)
    table = table_of(nic)
    spi = spi_bytes(GCM.spi)
    assert table.find(table.esp, *V4, spi) is not None
    assert table.find(table.ah, *V4, spi) is None
    assert table.find(table.esp, V4[0], V4[0], spi) is None
    assert table.find(table.esp, *V4, spi_bytes(GCM.spi + 1)) is None
    assert table.find(table.esp, *V6, spi) is None


@pytest.mark.rule(99)
def test_source_is_a_filter_unless_it_is_zero() -> None:
    nic = Nic()
    nic.add(GCM, inbound=True)
    nic.add(CBC_SHA1, (bytes(4), bytes(4)), inbound=True, portion=None)
    nic.add(AH_SHA256, (bytes(4), V4[1]), inbound=True)
    table = table_of(nic)
    other = bytes((9, 9, 9, 9))
    assert table.find(table.ah, other, V4[1], spi_bytes(AH_SHA256.spi)) is not None
    found = table.find(table.esp, other, V4[1], spi_bytes(GCM.spi))
    assert found is not None
    assert found.source is None


@pytest.mark.rule(99)
def test_exact_destination_goes_before_the_wildcard() -> None:
    nic = Nic()
    nic.add(GCM, (bytes(4), bytes(4)), inbound=True)
    nic.add(CBC_SHA1, V4, inbound=True)
    table = table_of(nic)
    spi = spi_bytes(GCM.spi)
    exact = table.find(table.esp, *V4, spi)
    elsewhere = table.find(table.esp, V4[0], V4[0], spi)
    assert exact is not None
    assert exact.destination == V4[1]
    assert elsewhere is not None
    assert elsewhere.destination == bytes(4)


def three_bundles(nic: Nic) -> list[OffloadHandle]:
    return [
        nic.add((GCM, AH_SHA256)),
        nic.add((GCM, AH_SHA256), inbound=True),
        nic.add(esp("null", "aes-gmac-128", spi=0x7000)),
    ]


@pytest.mark.rule(112)
def test_deleted_bundle_leaves_the_table_as_it_was() -> None:
    nic = Nic()
    for handle in three_bundles(nic):
        nic.adapter.delete_sa(DeleteSa(handle))
    table = table_of(nic)
    assert (len(table), table.outbound, table.esp, table.ah) == (0, {}, {}, {})
    assert list(table.items()) == table.inbound_handles() == []
    assert len(table._keys) == 0


@pytest.mark.rule(213)
def test_cleared_table_is_empty_and_gives_no_handle_again() -> None:
    nic = Nic()
    before = three_bundles(nic)
    table = table_of(nic)
    table.clear()
    assert (len(table), table.outbound, table.esp, table.ah, len(table._keys)) == (0, {}, {}, {}, 0)
    assert not set(before) & set(three_bundles(nic))


@pytest.mark.rule(88)
def test_bundles_are_listed_oldest_first_with_their_handles() -> None:
    nic = Nic()
    handles = three_bundles(nic)
    table = table_of(nic)
    listed = list(table.items())
    assert [handle for handle, _ in listed] == handles
    assert [type(bundle) for _, bundle in listed] == [OutboundBundle, InboundBundle, OutboundBundle]
    assert [table.get(handle) for handle in handles] == [bundle for _, bundle in listed]
    assert table.inbound_handles() == [handles[1]]
    assert [table.holds(handle) for handle in (*handles, handles[-1] + 1)] == [True, True, True, False]
    assert table.get(handles[-1] + 1) is None


def test_handles_are_numbered_behind_those_of_another_nic() -> None:
    table = SaTable(10, CounterKeys(seeded().randbytes), 3 << 32)
    bundle = table_of(nic := Nic()).get(nic.add(CBC_SHA1))
    assert bundle is not None
    assert [table.add(bundle) for _ in range(2)] == [(3 << 32) + 1, (3 << 32) + 2]
    assert table.last_handle == (3 << 32) + 2


@pytest.mark.rule(92)
def test_full_table_has_no_room_until_its_capacity_grows() -> None:
    nic = Nic.able(sa_offload_capacity=2)
    nic.add(CBC_SHA1)
    nic.add(CBC_SHA1, inbound=True)
    table = table_of(nic)
    with pytest.raises(OidError) as caught:
        table.check_room()
    assert (caught.value.status, caught.value.field) == (NdisStatus.RESOURCES, "sa_offload_capacity")
    table.capacity = 3
    table.check_room()


def test_unknown_handle_is_refused_everywhere() -> None:
    table = SaTable(10, CounterKeys(seeded().randbytes))
    for call in (
        lambda: table.delete(OffloadHandle(1)),
        lambda: table.element(OffloadHandle(1), Operation.ESP),
    ):
        with pytest.raises(OidError) as caught:
            call()
        assert caught.value.status is NdisStatus.INVALID_PARAMETER


def test_bundle_gives_the_element_of_each_operation() -> None:
    nic = Nic()
    handle = nic.adapter.add_sa(add_request((GCM, AH_SHA256)))
    esp_element = table_of(nic).element(handle, Operation.ESP)
    ah_element = table_of(nic).element(handle, Operation.AH)
    assert esp_element is not None
    assert ah_element is not None
    assert (esp_element.spi, ah_element.spi) == (GCM.spi, AH_SHA256.spi)
    alone = nic.add(CBC_SHA1)
    assert table_of(nic).element(alone, Operation.AH) is None
