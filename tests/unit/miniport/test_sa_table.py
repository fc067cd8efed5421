import pytest
from nic_frames import AH_SHA256, CBC_SHA1, GCM, V4, V6, Nic, add_request, esp

from vnic.errors import OidError
from vnic.miniport import sa_table
from vnic.miniport.sa_table import SaTable
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


def test_deleted_bundle_leaves_nothing_but_a_hash() -> None:
    nic = Nic()
    handles = [
        nic.add((GCM, AH_SHA256)),
        nic.add((GCM, AH_SHA256), inbound=True),
        nic.add(esp("null", "aes-gmac-128", spi=0x7000)),
    ]
    for handle in handles:
        nic.adapter.delete_sa(DeleteSa(handle))
    table = table_of(nic)
    assert (len(table), table.outbound, table.esp, table.ah, table._counter_keys) == (0, {}, {}, {}, set())
    assert len(table._retired) == 2
    assert {len(digest) for digest in table._retired} == {32}


def test_key_in_use_again_is_retired_no_more() -> None:
    nic = Nic()
    nic.adapter.delete_sa(DeleteSa(nic.add(GCM)))
    nic.add(GCM)
    assert table_of(nic)._retired == {}


def test_retired_keys_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sa_table, "_MAX_RETIRED_KEYS", 3)
    nic = Nic()
    digests: list[bytes] = []
    for label in range(5):
        handle = nic.add(esp("aes-gcm-128", label=label))
        digests += table_of(nic)._counter_keys
        nic.adapter.delete_sa(DeleteSa(handle))
    assert list(table_of(nic)._retired) == digests[2:]


def test_unknown_handle_is_refused_everywhere() -> None:
    table = SaTable(10)
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
