"""Any call that fits its types is carried out or refused; nothing a client sends is a defect here."""

import asyncio
import contextlib
import dataclasses
import types
import typing
from typing import Any, Literal

import pytest
from asyncvarlink import varlinksignature
from daemon_fakes import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vnic.control import interface as api
from vnic.control.framing import decode, encode
from vnic.daemon.handlers import About, Handlers
from vnic.errors import VnicError

TEXTS = st.sampled_from(
    [
        "",
        "left",
        "right",
        "tap0",
        "tap1",
        "10.9.0.1",
        "10.9.0.2",
        "10.9.0.1/24",
        "10.9.0.0/24",
        "0.0.0.0",
        "::",
        "::/0",
        "2001:db8::1",
        "fe80::1%eth0",
        "255.255.255.255",
        "224.0.0.1/4",
        "02:00:00:00:00:01",
        "aes-gcm-128",
        "aes-gcm-256",
        "aes-cbc-128",
        "3des-cbc",
        "null",
        "hmac-sha256-128",
        "hmac-md5-96",
        "aes-gmac-128",
        "00" * 20,
        "ab" * 16,
        "cd" * 32,
        "0",
        "zz",
        "wireshark",
        "*IPsecOffloadV2",
        "OID_TCP_OFFLOAD_CURRENT_CONFIG",
        "AAAA",
        "/nonexistent/directory/file",
        "/",
        "nul\0inside",
        "line\nbreak",
        "\ud7ff\U0010ffff",
        "x" * 300,
    ]
)
NUMBERS = st.sampled_from([-1, 0, 1, 4, 6, 8, 50, 58, 64, 96, 128, 255, 256, 257, 1024, 1400, 65535, 65536])
INTEGERS = NUMBERS | st.integers(-(2**70), 2**70) | st.integers(2**32 - 2, 2**32 + 2)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that fit a type of the interface."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.none() | st.one_of([values_of(one) for one in arguments if one is not types.NoneType])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXTS, values_of(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(annotation):
        return messages_of(annotation)
    return {str: TEXTS, int: INTEGERS, float: st.floats(), bool: st.booleans()}[annotation]


def messages_of(message: Any) -> st.SearchStrategy[Any]:
    fields = {one.name: values_of(one.type) for one in api.fields_of(message)}
    return st.builds(message, **fields)


def tried(request_type: type[api.Call[Any]]) -> st.SearchStrategy[Any]:
    """Calls of one kind; no reset is held for longer than a moment."""
    requests = messages_of(request_type)
    if request_type is api.ResetAdapter:
        return st.builds(
            api.ResetAdapter, name=TEXTS, hold_ms=st.none() | st.sampled_from([-1, 0, 1, 60_001])
        )
    return requests


REQUESTS = st.one_of([tried(one) for one in api.CALLS if not one.streams])


def as_json(request: api.Call[Any], reply: Any) -> dict[str, Any]:
    """The reply as it would be sent."""
    signature = varlinksignature(getattr(api.AdapterInterface, type(request).__name__))
    assert signature is not None
    return {"parameters": signature.return_type.tojson(api.parameters_of(reply))}


START = [
    api.AddAdapter(name="left", tap="tap0", addresses=["10.9.0.1/24"]),
    api.AddAdapter(name="right", tap="tap1", wire=api.Wire(kind="link", name="left")),
    api.AddSa(
        adapter="left",
        sa=api.Sa(
            src="10.9.0.1",
            dst="10.9.0.2",
            proto="esp",
            spi=256,
            encryption="aes-gcm-128",
            encryption_key="01" * 20,
            esn=True,
        ),
    ),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, min_size=1, max_size=12))
def test_any_call_that_fits_its_types_is_answered_or_refused(requests: list[api.Call[Any]]) -> None:
    async def work() -> None:
        world = World()
        about = About(
            engine="reference",
            loop="asyncio",
            config=None,
            reveal_keys=True,
            clock=lambda: world.now,
            wall_clock=lambda: 1_700_000_000.0,
            started=900.0,
        )
        handlers = Handlers(world.adapters, world.events, about)
        try:
            for request in START:
                await handlers.answer(request)
            for request in requests:
                with contextlib.suppress(VnicError):
                    reply = await handlers.answer(request)
                    assert isinstance(reply, request.reply_type())
                    assert decode(encode(as_json(request, reply))[:-1])
        finally:
            await world.adapters.close()
        assert world.host.open_ports == []

    asyncio.run(work())


@pytest.mark.parametrize("request_type", [one for one in api.CALLS if not one.streams])
def test_every_call_is_among_those_tried(request_type: type[api.Call[Any]]) -> None:
    assert isinstance(messages_of(request_type), st.SearchStrategy)
