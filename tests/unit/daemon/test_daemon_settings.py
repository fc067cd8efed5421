"""What an adapter may be asked to be, and how to get from one setting to another."""

from dataclasses import replace
from typing import Any

import pytest

from vnic.control.interface import AddAdapter, Capabilities, SetAdapter, Wire
from vnic.daemon.settings import change, checked, udp_ends
from vnic.errors import RequestError

PLAIN = checked(AddAdapter(name="left", tap="tap0"))
CARD = checked(AddAdapter(name="card", transport="external"))
ALL_ON = {"*IPsecOffloadV1IPv4": 3, "*IPsecOffloadV2": 3, "*IPsecOffloadV2IPv4": 3}


def test_what_is_left_out_gets_its_default() -> None:
    filled = checked(AddAdapter(name="left", tap="tap0"))
    assert filled == AddAdapter(
        name="left",
        tap="tap0",
        addresses=[],
        features_off=[],
        wire=Wire(kind="none"),
        non_ip="pass",
        fragments="drop",
        policy_default_in="allow",
        policy_default_out="allow",
        fragmentation="before",
        vlan="protect",
        prohibited="silent",
        reassembly=4 << 20,
        cipher_limits="warn",
        transport="inline",
        software=True,
        queues=1,
        keywords=ALL_ON,
    )
    assert checked(filled) == filled


@pytest.mark.parametrize("limit", [0, (128 << 10) - 1, (1 << 30) + 1])
def test_memory_for_fragments_holds_one_packet_and_is_not_all_there_is(limit: int) -> None:
    with pytest.raises(RequestError) as refused:
        checked(AddAdapter(name="left", tap="tap0", reassembly=limit))
    assert refused.value.field == "reassembly"


def test_an_external_transport_has_a_wire_and_keywords_and_nothing_of_a_host() -> None:
    assert AddAdapter(name="card", wire=Wire(kind="none"), transport="external", keywords=ALL_ON) == CARD
    assert checked(CARD) == CARD
    checked(replace(CARD, nbl_socket="/run/vnic/card.nbl"))


@pytest.mark.parametrize(
    "changes",
    [
        {"fragments": "any"},
        {"tap": "tap0"},
        {"netns": "red"},
        {"addresses": ["10.0.0.1/24"]},
        {"mac": "02:00:00:00:00:01"},
        {"mtu": 1400},
        {"non_ip": "pass"},
        {"features_off": ["tx-checksumming"]},
        {"policy_default_in": "allow"},
        {"policy_default_out": "allow"},
        {"software": False},
        {"nbl_socket": "card.nbl"},
        {"nbl_socket": "/" + "x" * 107},
        {"nbl_socket": "/nul\0"},
    ],
)
def test_what_an_external_transport_cannot_have_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        checked(replace(CARD, **changes))
    assert caught.value.field in changes
    assert caught.value.allowed


@pytest.mark.parametrize("name", ["a", "left.2", "x" * 32, "A-b_c.9"])
def test_good_names_pass(name: str) -> None:
    assert checked(replace(PLAIN, name=name)).name == name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 33}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "ä"}, "name"),
        ({"tap": ""}, "tap"),
        ({"tap": None}, "tap"),
        ({"nbl_socket": "/run/vnic/x.nbl"}, "nbl_socket"),
        ({"capabilities": Capabilities(encryptions=["aes"])}, "capabilities.encryptions"),
        ({"keywords": {"x": 1}}, "keywords"),
        ({"tap": "tap%d"}, "tap"),
        ({"netns": "../x"}, "netns"),
        ({"mtu": 0}, "mtu"),
        ({"mtu": -5}, "mtu"),
        ({"mac": "02:00:00:00:00"}, "mac"),
        ({"addresses": ["10.0.0.1/33"]}, "address"),
        ({"features_off": ["tso"]}, "offload"),
        ({"wire": Wire(kind="link")}, "wire.name"),
        ({"wire": Wire(kind="netdev")}, "wire.name"),
        ({"wire": Wire(kind="none", name="x")}, "wire.name"),
        ({"wire": Wire(kind="link", name="left")}, "wire.name"),
        ({"wire": Wire(kind="tap", name="tap0")}, "wire.name"),
        ({"wire": Wire(kind="tap", name="tap1", local="192.0.2.1")}, "wire.local"),
        ({"wire": Wire(kind="none", follow=True)}, "wire.follow"),
        ({"wire": Wire(kind="udp", remote="192.0.2.2")}, "wire.local"),
        ({"wire": Wire(kind="udp", name="x", local="192.0.2.1", remote="192.0.2.2")}, "wire.name"),
        ({"wire": Wire(kind="udp", local="192.0.2.1", remote="2001:db8::2")}, "wire.remote"),
        ({"wire": Wire(kind="udp", local="192.0.2.1:0", remote="192.0.2.2")}, "wire.local"),
        ({"wire": Wire(kind="udp", local="192.0.2.1:65536", remote="192.0.2.2")}, "wire.local"),
        ({"wire": Wire(kind="udp", local="[2001:db8::1]x", remote="2001:db8::2")}, "wire.local"),
        ({"wire": Wire(kind="udp", local="0.0.0.0", remote="192.0.2.2")}, "wire.local"),
        ({"wire": Wire(kind="udp", local="192.0.2.1", remote="224.0.0.1")}, "wire.remote"),
        ({"wire": Wire(kind="udp", local="192.0.2.1", remote="host.example")}, "wire.remote"),
        ({"wire": Wire(kind="udp", local="192.0.2.1", remote="192.0.2.2", keepalive=-1)}, "wire.keepalive"),
    ],
)
def test_values_no_adapter_can_have_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        checked(replace(PLAIN, **changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("local", "remote", "ends"),
    [
        ("192.0.2.1", "192.0.2.2:4501", "192.0.2.1:4500 192.0.2.2:4501"),
        ("2001:db8::1", "[2001:db8::2]:4501", "[2001:db8::1]:4500 [2001:db8::2]:4501"),
        ("[2001:db8::1]", "2001:db8::2", "[2001:db8::1]:4500 [2001:db8::2]:4500"),
    ],
)
def test_ends_of_a_udp_wire_have_port_4500_unless_they_say_another(
    local: str, remote: str, ends: str
) -> None:
    found = udp_ends(Wire(kind="udp", local=local, remote=remote))
    assert " ".join(map(str, found)) == ends


def test_the_same_tap_name_in_another_namespace_is_another_device() -> None:
    checked(replace(PLAIN, wire=Wire(kind="tap", name="tap0", netns="red")))


def test_no_difference_changes_nothing() -> None:
    assert change(PLAIN, PLAIN) == (False, None)


@pytest.mark.parametrize(
    ("changes", "request_values"),
    [
        ({"mtu": 1400}, {"mtu": 1400}),
        ({"fragmentation": "after"}, {"fragmentation": "after"}),
        ({"cipher_limits": "enforce"}, {"cipher_limits": "enforce"}),
        ({"vlan": "drop", "prohibited": "answer"}, {"vlan": "drop", "prohibited": "answer"}),
        ({"reassembly": 1 << 20}, {"reassembly": 1 << 20}),
        ({"mac": "02:00:00:00:00:09"}, {"mac": "02:00:00:00:00:09"}),
        ({"wire": Wire(kind="netdev", name="eth0")}, {"wire": Wire(kind="netdev", name="eth0")}),
        ({"non_ip": "drop", "policy_default_in": "block"}, {"non_ip": "drop", "policy_default_in": "block"}),
        ({"addresses": ["10.0.0.1/24"]}, {"addresses": ["10.0.0.1/24"]}),
        ({"keywords": {**ALL_ON, "*IPsecOffloadV2": 0}}, {"keywords": {**ALL_ON, "*IPsecOffloadV2": 0}}),
    ],
)
def test_what_can_be_set_is_set_in_place(changes: dict[str, Any], request_values: dict[str, Any]) -> None:
    assert change(PLAIN, replace(PLAIN, **changes)) == (False, SetAdapter(name="left", **request_values))


def test_mtu_that_is_no_longer_fixed_goes_back_to_the_default() -> None:
    fixed = replace(PLAIN, mtu=1400)
    assert change(fixed, PLAIN) == (False, SetAdapter(name="left", mtu=0))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"tap": "tap9"}),
        ({}, {"netns": "red"}),
        ({}, {"features_off": ["tx-checksumming"]}),
        ({"addresses": ["10.0.0.1/24"]}, {}),
        ({"mac": "02:00:00:00:00:09"}, {}),
        ({}, {"capabilities": Capabilities(esn=False)}),
        ({}, {"software": False}),
        ({}, {"transport": "external"}),
        ({"transport": "external"}, {"transport": "external", "nbl_socket": "/run/x.nbl"}),
    ],
)
def test_what_cannot_be_set_needs_a_new_adapter(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert change(replace(PLAIN, **old), replace(PLAIN, **new)).remake


def test_the_same_card_in_other_words_is_the_same_card() -> None:
    said = replace(PLAIN, capabilities=Capabilities(ah=True, esp=True, transport=True))
    assert change(PLAIN, said) == (False, None)
