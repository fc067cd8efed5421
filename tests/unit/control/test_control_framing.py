"""Messages as bytes: hostile ones, and calls that do not fit their types."""

import contextlib

import pytest
from asyncvarlink import varlinksignature
from asyncvarlink.conversion import ConversionError
from hypothesis import given
from hypothesis import strategies as st

from vnic.control.framing import END, decode, encode, misfit
from vnic.control.interface import AdapterInterface, AddAdapter, AddPolicy, AddSa, Call, DeleteAdapter
from vnic.errors import ControlError, RequestError

SA = {"src": "192.0.2.1", "dst": "192.0.2.2", "proto": "esp", "spi": 256}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": NaN}',
        b'{"a": 1} {"b": 2}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ControlError):
        decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_control_error(data: bytes) -> None:
    with contextlib.suppress(ControlError):
        assert isinstance(decode(data), dict)


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 2**64 - 1) | st.text() | st.booleans(), max_size=4)
)
def test_what_is_encoded_decodes_to_the_same(message: dict[str, object]) -> None:
    data = encode(message)
    assert data.endswith(END)
    assert END not in data[:-1]
    assert decode(data[:-1]) == message


def refusal_of(request: type[Call[object]], parameters: dict[str, object]) -> RequestError:
    signature = varlinksignature(getattr(AdapterInterface, request.__name__))
    assert signature is not None
    with pytest.raises(ConversionError) as caught:
        signature.parameter_type.fromjson(parameters)  # type: ignore[arg-type]
    return misfit(request, parameters, caught.value)


@pytest.mark.parametrize(
    ("request_type", "parameters", "field", "value", "allowed"),
    [
        (DeleteAdapter, {}, "name", "", "string"),
        (AddAdapter, {"name": 5, "tap": "t"}, "name", "", "string"),
        (AddAdapter, {"name": "a", "tap": "t", "mtu": "x"}, "mtu", "", "int"),
        (AddAdapter, {"name": "a", "tap": "t", "non_ip": "maybe"}, "non_ip", "maybe", "pass, drop"),
        (AddAdapter, {"name": "a", "tap": "t", "non_ip": 7}, "non_ip", "", "pass, drop"),
        (AddAdapter, {"name": "a", "tap": "t", "addresses": ["x", 3]}, "addresses.1", "", "string"),
        (
            AddAdapter,
            {"name": "a", "tap": "t", "wire": {"kind": "air"}},
            "wire.kind",
            "air",
            "none, link, netdev, tap, udp",
        ),
        (
            AddAdapter,
            {"name": "a", "tap": "t", "wire": {}},
            "wire",
            "",
            "kind, name, netns, local, remote, keepalive, follow",
        ),
        (AddAdapter, {"name": "a", "tap": "t", "colour": 1}, "colour", "", ""),
        (AddSa, {"sa": SA | {"proto": "gre"}}, "sa.proto", "gre", "esp, ah"),
        (AddSa, {"sa": SA | {"spi": "0x100"}}, "sa.spi", "", "int"),
        (
            AddPolicy,
            {
                "policy": {
                    "direction": "in",
                    "selector": {},
                    "action": "protect",
                    "templates": [{"proto": "x"}],
                }
            },
            "policy.templates.0.proto",
            "x",
            "esp, ah",
        ),
    ],
)
def test_misfit_names_the_parameter_and_what_it_takes(
    request_type: type[Call[object]], parameters: dict[str, object], field: str, value: str, allowed: str
) -> None:
    error = refusal_of(request_type, parameters)
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_misfit_repeats_no_key() -> None:
    secret = "5ec7e7" * 10
    error = refusal_of(AddSa, {"sa": SA | {"encryption_key": [secret]}})
    assert secret not in str(error)
    error = refusal_of(AddSa, {"sa": SA | {"encryption_key": {"key": secret}}})
    assert secret not in str(error)


def test_misfit_cuts_what_a_stranger_wrote() -> None:
    error = refusal_of(AddAdapter, {"name": "a", "tap": "t", "non_ip": "x" * 100_000})
    assert len(error.value) <= 80
    error = refusal_of(AddAdapter, {"name": "a", "tap": "t", "y" * 100_000: 1})
    assert len(str(error)) < 400
