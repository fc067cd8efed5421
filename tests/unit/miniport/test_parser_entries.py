import pytest

from vnic.errors import OidError
from vnic.miniport.parser_entries import ParserEntries
from vnic.ndis.status import NdisStatus

IKE, OTHER = 0, 1


@pytest.mark.rule(138)
@pytest.mark.rule(143)
@pytest.mark.rule(144)
def test_entry_is_listed_once_and_keeps_its_handle() -> None:
    entries = ParserEntries(100)
    assert not entries.parses(4500)
    handle, new = entries.add(OTHER, 4500)
    assert (handle, new) == (101, True)
    assert entries.add(OTHER, 4500) == (101, False)
    assert len(entries) == 1
    assert entries.parses(4500)
    assert not entries.parses(500)


@pytest.mark.rule(139)
@pytest.mark.rule(140)
@pytest.mark.parametrize(
    ("kind", "port"), [(IKE, 4500), (2, 4500), (OTHER, 500), (OTHER, 0), (OTHER, 0x9411)]
)
def test_other_kinds_and_ports_are_refused(kind: int, port: int) -> None:
    entries = ParserEntries()
    with pytest.raises(OidError) as caught:
        entries.add(kind, port)
    assert caught.value.status is NdisStatus.NOT_SUPPORTED
    assert caught.value.allowed in ("1", "4500")
    assert len(entries) == 0


@pytest.mark.rule(145)
def test_handle_that_names_no_entry_is_refused() -> None:
    entries = ParserEntries()
    handle, _ = entries.add(OTHER, 4500)
    entries.check(handle)
    for wrong in (0, handle + 1, -1):
        with pytest.raises(OidError) as caught:
            entries.check(wrong)
        assert caught.value.status is NdisStatus.INVALID_PARAMETER


@pytest.mark.rule(149)
def test_removed_entry_is_not_used_and_its_handle_does_not_come_back() -> None:
    entries = ParserEntries()
    first, _ = entries.add(OTHER, 4500)
    entries.remove(first)
    assert not entries.parses(4500)
    with pytest.raises(OidError):
        entries.check(first)
    second, new = entries.add(OTHER, 4500)
    assert new
    assert second != first


@pytest.mark.rule(150)
@pytest.mark.rule(151)
def test_marked_entry_waits_for_its_removal_and_is_not_used() -> None:
    entries = ParserEntries()
    first, _ = entries.add(OTHER, 4500)
    entries.mark(first)
    assert not entries.parses(4500)
    with pytest.raises(OidError):
        entries.check(first)
    second, new = entries.add(OTHER, 4500)
    assert new
    assert entries.parses(4500)
    entries.remove(first)
    assert entries.parses(4500)
    entries.remove(second)
    assert len(entries) == 0


def test_a_handle_from_before_all_were_forgotten_does_not_come_back() -> None:
    entries = ParserEntries(100)
    old, _ = entries.add(OTHER, 4500)
    entries.mark(old)
    entries.clear()
    assert len(entries) == 0
    assert entries.add(OTHER, 4500) == (old + 1, True)
