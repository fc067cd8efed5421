"""HeaderSettings: ranges, and what has no meaning where."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transport_lab import AH, OUT, TRANSPORT, association

from vnic.errors import RequestError
from vnic.ipsec.headers import DfRule, HeaderSettings

TUNNEL_SA = association()
TRANSPORT_SA = association(OUT, TRANSPORT)
AH_SA = association(protocol=AH)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (HeaderSettings(hop_limit=-1), "ttl"),
        (HeaderSettings(hop_limit=256), "ttl"),
        (HeaderSettings(dscp=-1), "dscp"),
        (HeaderSettings(dscp=64), "dscp"),
        (HeaderSettings(flow_label=-1), "flow-label"),
        (HeaderSettings(flow_label=0x100000), "flow-label"),
        (HeaderSettings(tfc_padding=-1), "tfcpad"),
        (HeaderSettings(tfc_padding=65_536), "tfcpad"),
        (HeaderSettings(dummy_interval_ms=9), "dummy"),
        (HeaderSettings(dummy_interval_ms=86_400_001), "dummy"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: HeaderSettings, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        replace(TUNNEL_SA, header_settings=settings).checked()
    assert refused.value.field == field
    assert refused.value.allowed


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (HeaderSettings(df=DfRule.SET), "df"),
        (HeaderSettings(hop_limit=0), "ttl"),
        (HeaderSettings(dscp=0), "dscp"),
        (HeaderSettings(flow_label=0), "flow-label"),
        (HeaderSettings(tfc_padding=100), "tfcpad"),
        (HeaderSettings(dummy_interval_ms=100), "dummy"),
    ],
)
def test_transport_mode_has_no_outer_header_to_set_and_cannot_pad_as_in_the_kernel(
    settings: HeaderSettings, field: str
) -> None:
    with pytest.raises(RequestError) as refused:
        replace(TRANSPORT_SA, header_settings=settings).checked()
    assert (refused.value.field, refused.value.allowed) == (field, "mode tunnel")
    replace(TUNNEL_SA, header_settings=settings).checked()
    replace(TUNNEL_SA, mode=None, header_settings=settings).checked()


def test_flag_nopmtudisc_is_taken_in_either_mode_as_in_the_kernel() -> None:
    replace(TRANSPORT_SA, header_settings=HeaderSettings(df=DfRule.CLEAR)).checked()


@pytest.mark.parametrize(("member", "field"), [("tfc_padding", "tfcpad"), ("dummy_interval_ms", "dummy")])
def test_ah_hides_nothing(member: str, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        replace(AH_SA, header_settings=HeaderSettings(**{member: 100})).checked()
    assert (refused.value.field, refused.value.allowed) == (field, "proto esp")


@pytest.mark.parametrize(
    "change",
    [
        {"no_ecn": True},
        {"decap_dscp": True},
        {"header_settings": HeaderSettings(df=DfRule.CLEAR)},
        {"header_settings": HeaderSettings(hop_limit=63)},
        {"header_settings": HeaderSettings(dscp=0)},
        {"header_settings": HeaderSettings(flow_label=0)},
        {"header_settings": HeaderSettings(tfc_padding=1)},
        {"header_settings": HeaderSettings(dummy_interval_ms=10)},
    ],
)
def test_one_question_tells_whether_anything_was_set(change: dict[str, object]) -> None:
    assert TUNNEL_SA.default_headers
    assert not replace(TUNNEL_SA, **change).default_headers  # type: ignore[arg-type]
