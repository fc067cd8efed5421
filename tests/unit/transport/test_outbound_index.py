"""The index of outbound SAs, against looking at every SA."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from transport_lab import AH, ESP, TRANSPORT, TUNNEL, address, association, template

from vnic.ipsec.association import SecurityAssociation
from vnic.ipsec.policy import Template
from vnic.transport.outbound_index import OutboundIndex
from vnic.transport.sizes import Shape, shape_of
from vnic.transport.state import SaState

DESTINATIONS = ["192.0.2.2", "192.0.2.3", "0.0.0.0"]


def state(destination: str, reqid: int, kind: int) -> SaState:
    members = (
        {},
        {"icv_length": 8},
        {"encryption": "aes-cbc-128", "integrity": "hmac-sha1-96"},
        {"protocol": AH},
        {"mode": None},
    )[kind]
    sa: SecurityAssociation = association(destination="192.0.2.9", reqid=reqid, **members).checked()  # type: ignore[arg-type]
    object.__setattr__(sa, "destination", address(destination))
    return SaState(sa, 0.0)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(DESTINATIONS), st.integers(0, 2), st.integers(0, 4)),
        st.integers(0, 20),  # which to remove
    ),
    max_size=30,
)


def matching(states: list[SaState], wanted: Template) -> set[Shape]:
    return {
        shape_of(one.sa)
        for one in states
        if wanted.reqid in (0, one.sa.reqid)
        and (
            wanted.destination is None
            or one.sa.destination == wanted.destination
            or not any(one.sa.destination)
        )
        and one.sa.protocol is wanted.protocol
        and one.sa.mode in (None, wanted.mode)
    }


@settings(max_examples=200, deadline=None)
@given(CHANGES)
def test_index_finds_what_a_search_finds(changes: list[tuple[str, int, int] | int]) -> None:
    index = OutboundIndex()
    held: list[SaState] = []
    for change in changes:
        if isinstance(change, tuple):
            held.append(state(*change))
            index.add(held[-1])
        elif change < len(held):
            index.remove(held.pop(change))
    for reqid in range(4):
        for destination in DESTINATIONS:
            expected = [
                one
                for one in reversed(held)
                if one.sa.destination == address(destination) and reqid in (0, one.sa.reqid)
            ]
            assert list(index.newest_first(reqid, address(destination))) == expected
        for destination in (None, *DESTINATIONS):
            for protocol, mode in ((ESP, TUNNEL), (AH, TUNNEL), (ESP, TRANSPORT)):
                wanted = template(protocol, mode, None, destination, reqid)
                assert set(index.shapes(wanted)) == matching(held, wanted)
    for one in held:
        index.remove(one)
    assert index._buckets == index._shapes == {}
