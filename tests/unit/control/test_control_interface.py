"""The interface: what is published, who may call, and that keys stay hidden."""

import dataclasses
import re
from importlib import resources
from typing import Any

import pytest
import varlink
from asyncvarlink import varlinksignature

from vnic.control.description import render
from vnic.control.interface import (
    CALLS,
    INTERFACE,
    AdapterInterface,
    Call,
    KeysReply,
    ListSas,
    Sa,
    fields_of,
)

READABLE = {
    "ListAdapters",
    "ListSas",
    "ListPolicies",
    "TestPolicy",
    "GetPolicyDefault",
    "GetMtus",
    "ListDropReasons",
    "GetStatistics",
    "GetCapabilities",
    "GetDaemon",
    "Monitor",
}


def test_published_file_is_what_the_code_generates() -> None:
    published = resources.files("vnic.control").joinpath(f"{INTERFACE}.varlink").read_text(encoding="utf-8")
    assert published == render(), (
        "run: python -m vnic.control.interface > vnic/control/io.vnic.Adapter.varlink"
    )


def test_the_daemon_hands_out_the_published_file() -> None:
    assert AdapterInterface.render_interface_description() == render()


def test_published_file_says_the_same_as_the_types() -> None:
    assert _members(render()) == _members(AdapterInterface.render_interface_description(comments=False))


def _members(text: str) -> set[str]:
    """Every type, method and error without comments and white space."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    members = re.split(r"^(?=(?:interface|type|method|error) )", lines, flags=re.MULTILINE)
    return {"".join(member.split()) for member in members}


def test_a_client_not_ours_can_parse_the_published_file() -> None:
    parsed = varlink.Interface(render())
    assert parsed.name == INTERFACE
    assert {request.__name__ for request in CALLS} <= set(parsed.members)


def test_published_file_explains_every_type_and_method() -> None:
    previous = ""
    for line in render().splitlines():
        if line.startswith(("type ", "method ", "error ", "interface ")):
            assert previous.startswith("# "), line
        previous = line


@pytest.mark.parametrize("request_type", CALLS, ids=lambda one: one.__name__)
def test_reader_may_call_only_what_looks(request_type: type[Call[Any]]) -> None:
    assert request_type.reader == (request_type.__name__ in READABLE)


def test_reader_may_list_sas_but_not_their_keys() -> None:
    assert ListSas().open_to_reader()
    assert not ListSas(reveal_keys=True).open_to_reader()


@pytest.mark.parametrize("request_type", CALLS, ids=lambda one: one.__name__)
def test_every_method_takes_the_fields_of_its_call(request_type: type[Call[Any]]) -> None:
    signature = varlinksignature(getattr(AdapterInterface, request_type.__name__))
    assert signature is not None
    assert signature.more == request_type.streams
    assert list(signature.parameter_type.as_type.__annotations__) == [
        one.name for one in fields_of(request_type)
    ]
    assert list(signature.return_type.as_type.__annotations__) == [
        one.name for one in fields_of(request_type.reply_type())
    ]


@pytest.mark.parametrize("request_type", CALLS, ids=lambda one: one.__name__)
def test_what_may_be_left_out_is_null_in_the_interface(request_type: type[Call[Any]]) -> None:
    for one in fields_of(request_type):
        if one.default is not dataclasses.MISSING:
            assert one.default is None
            assert type(None) in one.type.__args__, one.name


def test_keys_do_not_show_in_repr() -> None:
    sa = Sa(
        src="192.0.2.1",
        dst="192.0.2.2",
        proto="esp",
        spi=256,
        encryption="aes-gcm-128",
        encryption_key="ab" * 20,
        integrity_key="cd" * 20,
    )
    assert "abab" not in repr(sa)
    assert "cdcd" not in repr(sa)
    assert "abab" not in repr(KeysReply(lines=["ab" * 20]))
