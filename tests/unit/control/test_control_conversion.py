"""The quick conversion takes what the published interface takes, and refuses what it refuses."""

import dataclasses
from typing import Any

import pytest
from asyncvarlink.conversion import ConversionError
from hypothesis import given, settings
from hypothesis import strategies as st

from vnic.control.conversion import call_of, reply_of, signature_of
from vnic.control.interface import (
    CALLS,
    AddAdapter,
    AddPolicy,
    AddSa,
    Call,
    Capabilities,
    DropReasonsReply,
    DropReasonText,
    ListDropReasons,
    OidRequest,
    V1Capabilities,
    fields_of,
)
from vnic.errors import RequestError

SA = {"src": "192.0.2.1", "dst": "192.0.2.2", "proto": "esp", "spi": 256}

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "left", "esp", "in", "out", "transport", "tunnel", "inline", "query", "on"])
)
NAMES = st.sampled_from(
    sorted(
        {one.name for kind in (*CALLS, Capabilities, V1Capabilities) for one in fields_of(kind)} | {"other"}
    )
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def judged(request: type[Call[Any]], parameters: dict[str, Any]) -> Call[Any] | None:
    """What asyncvarlink makes of it, None if it refuses."""
    try:
        return request(**signature_of(request).parameter_type.fromjson(parameters))
    except ConversionError:
        return None


def made(request: type[Call[Any]], parameters: dict[str, Any]) -> Call[Any] | None:
    try:
        return call_of(request, parameters)
    except RequestError:
        return None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CALLS), st.dictionaries(NAMES, ANYTHING, max_size=5))
def test_any_parameters_are_the_same_call_or_are_refused_by_both(
    request: type[Call[Any]], parameters: dict[str, Any]
) -> None:
    # Only the fields there are, so that most calls come further than their first one.
    known = {one.name for one in fields_of(request)}
    for given_ in (parameters, {name: value for name, value in parameters.items() if name in known}):
        assert made(request, given_) == judged(request, given_)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([one.name for one in fields_of(AddAdapter)]), ANYTHING, max_size=4))
def test_nested_tables_are_judged_alike(parameters: dict[str, Any]) -> None:
    given_ = {"name": "left", **parameters}
    assert made(AddAdapter, given_) == judged(AddAdapter, given_)


@pytest.mark.parametrize(
    ("request_type", "parameters", "field"),
    [
        (AddSa, {"sa": SA | {"colour": 1}}, "sa"),
        (AddSa, {"sa": SA, "colour": 1}, "colour"),
        (AddAdapter, {"name": "a", "capabilities": {"v1": {"colour": True}}}, "capabilities.v1"),
        (AddAdapter, {"name": "a", "capabilities": {"esn": 1}}, "capabilities.esn"),
        (AddAdapter, {"name": "a", "keywords": {"x": "3"}}, "keywords.x"),
        (
            AddPolicy,
            {
                "policy": {
                    "direction": "in",
                    "selector": {},
                    "action": "bypass",
                    "templates": [{"proto": "x"}],
                }
            },
            "policy.templates.0.proto",
        ),
        (OidRequest, {"adapter": "a", "oid": 7, "request_type": "query"}, "oid"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    request_type: type[Call[Any]], parameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        call_of(request_type, parameters)
    assert caught.value.field == field


def test_replies_are_read_whatever_way_is_quicker() -> None:
    reply = DropReasonsReply(reasons=[DropReasonText(name="x", text="y", xfrm_stat="")])
    written = {"reasons": [dataclasses.asdict(reply.reasons[0])]}
    assert reply_of(ListDropReasons, written) == reply
    with pytest.raises(ConversionError):
        reply_of(ListDropReasons, {"reasons": [{"name": 5}]})
    with pytest.raises(ConversionError):
        reply_of(ListDropReasons, [])
