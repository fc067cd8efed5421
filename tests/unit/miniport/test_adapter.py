import os
from dataclasses import replace

import pytest
from nic_frames import AH_SHA256, GCM, Nic, framed, sealed, seeded

from vnic.errors import OidError, RequestError
from vnic.miniport.adapter import MiniportAdapter
from vnic.ndis.capabilities import OffloadCapabilities
from vnic.ndis.netbuffer import NetBuffer
from vnic.ndis.oid import Miniport, Operation, UpdateSa
from vnic.ndis.status import NdisStatus

ESN_GCM = replace(GCM, esn=True, high=3)
ESN_AH = replace(AH_SHA256, esn=True, high=3)


def test_adapter_is_a_miniport_with_the_capabilities_it_was_given() -> None:
    able = OffloadCapabilities(ah=False)
    nic: Miniport = MiniportAdapter(os.urandom, able)
    assert nic.capabilities is able
    assert MiniportAdapter(os.urandom).capabilities == OffloadCapabilities()


def test_adapter_cannot_be_made_with_capabilities_it_does_not_have() -> None:
    with pytest.raises(RequestError):
        MiniportAdapter(os.urandom, OffloadCapabilities(udp_esp=2))


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


def test_empty_burst_is_fine() -> None:
    burst: list[NetBuffer] = []
    Nic().adapter.send(burst)
    Nic().adapter.receive(burst)
    assert burst == []
