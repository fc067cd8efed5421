import os
from dataclasses import replace

import pytest
from nic_frames import AH_SHA256, GCM, Nic, framed, sealed, seeded

from vnic.errors import OidError
from vnic.miniport.adapter import MiniportAdapter
from vnic.miniport.counter_keys import CounterKeys
from vnic.ndis.capabilities import (
    NO_IPSEC,
    NO_TASK_OFFLOAD,
    OffloadCapabilities,
    OffloadCapabilitiesV1,
    TaskOffload,
)
from vnic.ndis.configuration_structs import IpsecParameter, OffloadParameters
from vnic.ndis.keywords import Keywords
from vnic.ndis.netbuffer import OffloadHandle
from vnic.ndis.oid import Miniport, Operation, UpdateSa
from vnic.ndis.status import NdisStatus

ESN_GCM = replace(GCM, esn=True, high=3)
ESN_AH = replace(AH_SHA256, esn=True, high=3)


def test_adapter_is_a_miniport_with_the_hardware_it_was_given() -> None:
    able = TaskOffload(OffloadCapabilities(ipv4_options=False))
    nic: Miniport = MiniportAdapter(os.urandom, able)
    assert nic.hardware == able
    assert MiniportAdapter(os.urandom, able.ipsec_v2).hardware == able
    assert MiniportAdapter(os.urandom).hardware == TaskOffload()


@pytest.mark.rule(47, 55)
def test_adapter_does_nothing_until_it_is_switched_on() -> None:
    nic = MiniportAdapter(os.urandom)
    assert nic.capabilities == NO_IPSEC
    assert nic.current == NO_TASK_OFFLOAD
    nic.set_encapsulation(True, True)
    assert nic.capabilities == OffloadCapabilities()
    assert nic.current == nic.hardware


def test_every_change_of_configuration_makes_a_new_generation() -> None:
    nic = MiniportAdapter(os.urandom)
    seen = {nic.configuration_generation}
    for change in (
        lambda: nic.set_encapsulation(True, True),
        lambda: nic.set_parameters(OffloadParameters(ipsec_v2=IpsecParameter.AH_ENABLED)),
        lambda: nic.set_load_balanced(True),
        lambda: nic.set_load_balanced(False),
        lambda: nic.set_tasks(OffloadCapabilitiesV1()),
        nic.restart,
    ):
        change()
        assert nic.configuration_generation not in seen
        seen.add(nic.configuration_generation)


def test_reading_the_configuration_makes_no_new_generation() -> None:
    nic = MiniportAdapter(os.urandom)
    before = nic.configuration_generation
    nic.features()
    nic.set_keywords(Keywords(lso=False))
    nic.take_indications()
    assert nic.configuration_generation == before


@pytest.mark.rule(135, 183)
def test_deletion_is_requested_for_inbound_sas_alone() -> None:
    nic = Nic()
    nic.adapter.request_deletion(nic.add(GCM, inbound=True))
    for handle in (nic.add(GCM), OffloadHandle(99), OffloadHandle(0)):
        with pytest.raises(OidError) as caught:
            nic.adapter.request_deletion(handle)
        assert caught.value.status is NdisStatus.INVALID_PARAMETER


@pytest.mark.rule(88)
def test_handles_are_numbered_from_the_first_on_and_never_again() -> None:
    nic = Nic(MiniportAdapter(seeded().randbytes, first_handle=(5 << 32) + 1))
    assert nic.add(GCM) == (5 << 32) + 1
    nic.adapter.restart()
    assert nic.add(GCM) == (5 << 32) + 2


def test_two_nics_of_a_card_share_the_ivs_of_a_key() -> None:
    keys = CounterKeys(seeded().randbytes)
    nics = [Nic(MiniportAdapter(seeded().randbytes, counter_keys=keys)) for _ in range(2)]
    one = framed(GCM, bytes(20))
    handles = [nic.add(GCM) for nic in nics]
    ivs = {
        sealed(nic, GCM, one, handle)[one.esp + 8 : one.esp + 16]
        for _ in range(3)
        for nic, handle in zip(nics, handles, strict=True)
    }
    assert len(ivs) == 6


def test_restart_gives_the_keys_of_the_card_back() -> None:
    keys = CounterKeys(seeded().randbytes)
    nic = Nic(MiniportAdapter(seeded().randbytes, counter_keys=keys))
    nic.add(GCM)
    assert len(keys) == 1
    nic.adapter.restart()
    assert len(keys) == 0


def test_bundles_are_listed_oldest_first() -> None:
    nic = Nic()
    handles = [nic.add(replace(GCM, label=n, spi=0x1000 + n), inbound=bool(n % 2)) for n in range(5)]
    assert [handle for handle, _ in nic.adapter.bundles()] == handles
    assert len(nic.adapter) == 5


def test_an_empty_burst_is_no_matter_in_any_state() -> None:
    nic = MiniportAdapter(os.urandom)
    for change in (lambda: None, nic.pause, nic.begin_reset, nic.end_reset, nic.remove, nic.halt):
        change()
        nic.send([])
        nic.receive([])
        assert nic.transmit([]) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"handle": 77}, NdisStatus.INVALID_PARAMETER),
        ({"operation": Operation.AH}, NdisStatus.INVALID_PARAMETER),
        ({"spi": GCM.spi + 1}, NdisStatus.INVALID_PARAMETER),
        ({"sequence_number_high_order": 1 << 32}, NdisStatus.INVALID_DATA),
        ({"sequence_number_high_order": -1}, NdisStatus.INVALID_DATA),
    ],
    ids=["handle", "operation", "spi", "too large", "negative"],
)
@pytest.mark.rule(121)
def test_update_that_names_no_such_sa_or_number_is_refused(
    change: dict[str, object], status: NdisStatus
) -> None:
    nic = Nic()
    handle = nic.add(ESN_GCM)
    update = replace(UpdateSa(handle, Operation.ESP, GCM.spi, 9), **change)  # type: ignore[arg-type]
    with pytest.raises(OidError) as caught:
        nic.adapter.update_sa(update)
    assert caught.value.status is status
    assert caught.value.field
    assert caught.value.value


def test_update_is_for_the_named_element_of_a_bundle_alone() -> None:
    ours, theirs = Nic(), Nic()
    out = ours.add((ESN_GCM, ESN_AH))
    theirs.add((replace(ESN_GCM, high=3), replace(ESN_AH, high=8)), inbound=True)
    ours.adapter.update_sa(UpdateSa(out, Operation.AH, ESN_AH.spi, 8))
    info, _ = theirs.open(sealed(ours, (ESN_GCM, ESN_AH), framed((ESN_GCM, ESN_AH), b"x" * 20), out))
    assert info is not None
    assert info.verified


def test_iv_starts_come_from_the_random_source_and_differ() -> None:
    nic = Nic(MiniportAdapter(seeded(9).randbytes))
    frames = []
    for label in range(2):
        sa = replace(GCM, label=label)
        one = framed(sa, bytes(20))
        frames.append(sealed(nic, sa, one, nic.add(sa))[one.esp + 8 : one.esp + 16])
    starts = seeded(9)
    assert frames == [starts.randbytes(8), starts.randbytes(8)]
