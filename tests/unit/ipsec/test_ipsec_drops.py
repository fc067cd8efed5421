"""The table of drop reasons."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vnic.ipsec.drops import DropReason

XFRM_STAT = frozenset(
    {
        "XfrmInError",
        "XfrmInBufferError",
        "XfrmInHdrError",
        "XfrmInNoStates",
        "XfrmInStateProtoError",
        "XfrmInStateModeError",
        "XfrmInStateSeqError",
        "XfrmInStateExpired",
        "XfrmInStateMismatch",
        "XfrmInStateInvalid",
        "XfrmInTmplMismatch",
        "XfrmInNoPols",
        "XfrmInPolBlock",
        "XfrmInPolError",
        "XfrmOutError",
        "XfrmOutBundleGenError",
        "XfrmOutBundleCheckError",
        "XfrmOutNoStates",
        "XfrmOutStateProtoError",
        "XfrmOutStateModeError",
        "XfrmOutStateSeqError",
        "XfrmOutStateExpired",
        "XfrmOutPolBlock",
        "XfrmOutPolDead",
        "XfrmOutPolError",
        "XfrmFwdHdrError",
        "XfrmOutStateInvalid",
        "XfrmAcquireError",
    }
)
"""Documentation/networking/xfrm_proc.rst of the kernel."""


def test_names_and_texts_are_unique() -> None:
    members = list(DropReason)
    assert len({member.value for member in members}) == len(DropReason.__members__)
    told = {(member.value.partition("_")[0], member.text) for member in members}
    assert len(told) == len(members)


@pytest.mark.parametrize("reason", DropReason, ids=lambda reason: reason.value)
def test_name_is_that_of_the_member_and_the_text_is_a_clause(reason: DropReason) -> None:
    assert reason.value == reason.name.lower()
    assert re.fullmatch(r"[a-z_]+", reason.value)
    assert reason.text
    assert not reason.text.endswith(".")
    assert DropReason(reason.value) is reason


@pytest.mark.parametrize("reason", DropReason, ids=lambda reason: reason.value)
def test_kernel_name_exists_and_has_the_same_direction(reason: DropReason) -> None:
    if not reason.xfrm_stat:
        return
    assert reason.xfrm_stat in XFRM_STAT
    assert reason.xfrm_stat.startswith("XfrmIn" if reason.value.startswith("in_") else "XfrmOut")


def test_running_kernel_knows_the_names_too() -> None:
    stat = Path("/proc/net/xfrm_stat")
    if not stat.exists():
        pytest.skip("kernel lacks /proc/net/xfrm_stat")
    known = {line.split()[0] for line in stat.read_text().splitlines()}
    assert {reason.xfrm_stat for reason in DropReason if reason.xfrm_stat} <= known


def test_ports_and_a_stopped_nic_have_no_kernel_counter() -> None:
    ports = [reason for reason in DropReason if not reason.value.startswith(("in_", "out_"))]
    assert {reason.value for reason in ports} == {
        "tap_receive",
        "tap_write",
        "wire_write",
        "wire_down",
        "wire_not_esp",
        "wire_stranger",
        "wire_ike",
        "wire_receive",
        "link_queue_full",
        "nbl_queue_full",
        "nbl_no_driver",
        "fault_loss",
        "fault_queue_full",
        "nic_stopped",
    }
    assert not any(reason.xfrm_stat for reason in ports)
