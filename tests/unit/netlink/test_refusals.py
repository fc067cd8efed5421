"""Refusals: from errno to advice."""

from __future__ import annotations

import errno

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from vnic.errors import PortError
from vnic.netlink.refusals import code_of, refusal, where


def test_message_names_action_reason_and_advice() -> None:
    error = refusal(f"open TAP tap0{where('left')}", OSError(errno.EBUSY, "busy"))
    assert isinstance(error, PortError)
    assert str(error) == (
        "cannot open TAP tap0 in namespace left: Device or resource busy (EBUSY); "
        "another program uses it: stop that program or choose another name"
    )


def test_explanation_of_the_kernel_is_kept() -> None:
    error = refusal("create foo", NetlinkError(errno.EOPNOTSUPP, "Unknown device type"))
    assert "Operation not supported, Unknown device type" in str(error)


def test_reason_without_explanation_is_not_said_twice() -> None:
    assert str(refusal("do it", NetlinkError(errno.ERANGE))).count("out of range") == 1


def test_hint_of_the_caller_wins() -> None:
    assert str(refusal("do it", OSError(errno.EBUSY, "busy"), hint="do that")).endswith("(EBUSY); do that")


def test_error_without_advice_is_still_a_sentence() -> None:
    assert (
        str(refusal("do it", OSError(errno.EXDEV, "x"))) == "cannot do it: Invalid cross-device link (EXDEV)"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EPERM, "no"), errno.EPERM),
        (NetlinkError(19), errno.ENODEV),
        (OSError("bare"), errno.EIO),
    ],
)
def test_code_is_found_in_both_kinds_of_error(error: OSError | NetlinkError, code: int) -> None:
    assert code_of(error) == code


def test_own_namespace_goes_without_saying() -> None:
    assert where(None) == ""
