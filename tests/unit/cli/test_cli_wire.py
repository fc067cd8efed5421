"""`vnic wire`."""

from dataclasses import replace

import pytest
from fake_daemon import ADAPTER, STATISTICS
from in_process import Command

from vnic.control import interface as api

GOOD = api.WireFaultState(
    direction="rx",
    in_force=False,
    loss=0.0,
    duplicate=0.0,
    corrupt=0.0,
    reorder=0.0,
    reorder_packets=1,
    delay_ms=0.0,
    jitter_ms=0.0,
    rate=0,
    limit=1000,
    seed=7,
    stalled=False,
    armed=[],
    waiting=0,
    counts={"lost": 3, "duplicated": 0},
)
BAD = replace(
    GOOD,
    direction="tx",
    in_force=True,
    loss=1.0,
    duplicate=0.1,
    corrupt=0.01,
    reorder=5.0,
    reorder_packets=8,
    delay_ms=2.0,
    jitter_ms=0.5,
    rate=100_000_000,
    stalled=True,
    armed=["flip-icv 3", "hold"],
    waiting=4,
)
WORDS = (
    "tx loss 1% duplicate 0.1% corrupt 0.01% reorder 5%/8 delay 2ms jitter 0.5ms rate 100mbit "
    "limit 1000 seed 7 stalled armed: flip-icv 3, hold waiting 4"
)


def test_set_says_everything_in_the_words_of_netem(vnic: Command) -> None:
    line = (
        "wire set left dir tx loss 1% duplicate 0.1% reorder 5%/8 corrupt .01 delay 2ms jitter 500us "
        "rate 100mbit limit 2000 seed 7"
    )
    result = vnic(line)
    assert (result.code, result.out) == (0, "")
    assert result.request == api.SetWireFaults(
        name="left",
        direction="tx",
        loss=1.0,
        duplicate=0.1,
        reorder=5.0,
        reorder_packets=8,
        corrupt=0.01,
        delay_ms=2.0,
        jitter_ms=0.5,
        rate=100_000_000,
        limit=2000,
        seed=7,
    )


@pytest.mark.parametrize(
    ("words", "member", "value"),
    [
        ("delay 1.5s", "delay_ms", 1500.0),
        ("delay 0", "delay_ms", 0.0),
        ("rate 1mbps", "rate", 8_000_000),
        ("rate 10Kbit", "rate", 10_000),
        ("rate 1Mibit", "rate", 1 << 20),
        ("rate 2000", "rate", 2000),
        ("rate 0", "rate", 0),
        ("loss 100", "loss", 100.0),
        ("seed 0x10", "seed", 16),
    ],
)
def test_units_are_those_of_tc(vnic: Command, words: str, member: str, value: float) -> None:
    assert getattr(vnic(f"wire set left {words}").request, member) == value


def test_a_reordered_frame_is_passed_by_one_unless_told(vnic: Command) -> None:
    request = vnic("wire set left reorder 5%").request
    assert (request.reorder, request.reorder_packets) == (5.0, 1)


@pytest.mark.parametrize(
    ("line", "field", "allowed"),
    [
        ("wire set left loss 101%", "loss", "0% to 100%"),
        ("wire set left loss -1%", "loss", "0% to 100%"),
        ("wire set left loss nan", "loss", "0% to 100%"),
        ("wire set left reorder 5%/0", "reorder", "1 to 65536 packets"),
        ("wire set left reorder 5%/", "reorder", "1 to 65536 packets"),
        ("wire set left delay 2", "delay", "0 to 60000ms, with its unit: 2ms, 500us, 1.5s"),
        ("wire set left delay 61s", "delay", "0 to 60000ms, with its unit: 2ms, 500us, 1.5s"),
        ("wire set left rate fast", "rate", "1kbit to 1tbit, such as 100mbit, or 0 for no limit"),
        ("wire set left rate 1bit", "rate", "1kbit to 1tbit, such as 100mbit, or 0 for no limit"),
        ("wire set left limit 0", "limit", "1 to 65536 packets"),
        ("wire set left dir up loss 1%", "dir", "tx, rx"),
        ("wire set left", "set", "dir, loss"),
        ("wire set left dir tx", "set", "dir, loss"),
        ("wire do left", "do", "one of flip-icv, replay"),
        ("wire do left stall release", "do", "one of flip-icv, replay"),
        ("wire do left flip-icv 128", "flip-icv", "0 to 127"),
        ("wire do left replay 0", "replay", "1 to 1000 times"),
        ("wire do left truncate 13", "truncate", "14 to 65535 bytes"),
        ("wire do left hold 65537", "hold", "1 to 65536 packets"),
    ],
)
def test_what_no_wire_can_do_is_refused_with_what_it_can(
    vnic: Command, line: str, field: str, allowed: str
) -> None:
    result = vnic(f"-j {line}")
    assert (result.code, result.requests) == (1, [])
    assert result.error["field"] == field
    assert allowed in result.error["allowed"]


@pytest.mark.parametrize(
    ("words", "action", "value"),
    [
        ("flip-icv 0", "flip_icv", 0),
        ("replay 3", "replay", 3),
        ("hold", "hold", None),
        ("hold 20", "hold", 20),
        ("release", "release", None),
        ("truncate 60", "truncate", 60),
        ("stall", "stall", None),
        ("fill", "fill", None),
    ],
)
def test_one_thing_is_done_to_a_wire(
    vnic: Command, words: str, action: api.AimWord, value: int | None
) -> None:
    wanted = api.DoWireFault(name="left", action=action, value=value)
    assert vnic(f"wire do left {words}").request == wanted
    assert vnic(f"wire do left {words} dir rx").request == replace(wanted, direction="rx")


def test_clear_names_the_adapter_and_may_name_a_direction(vnic: Command) -> None:
    assert vnic("wire clear left").request == api.ClearWireFaults(name="left")
    assert vnic("wire clear left dir rx").request == api.ClearWireFaults(name="left", direction="rx")


def test_show_says_what_is_in_force_and_what_was_done(vnic: Command) -> None:
    faulty = replace(ADAPTER, wire_faults=[BAD, GOOD])
    vnic.memory.answers[api.ListAdapters] = api.AdaptersReply(adapters=[faulty])
    assert vnic("wire show left").out == (
        f"left:\n    {WORDS}\n    tx done: lost 3\n    rx no faults\n    rx done: lost 3\n"
    )
    (document,) = vnic("-j wire").json
    assert document["adapter"] == "left"
    assert document["wire_faults"][0]["loss"] == 1.0


def test_a_wire_without_faults_says_so_and_the_adapter_says_nothing(vnic: Command) -> None:
    assert vnic("wire").out == "left:\n    no faults\n"
    assert "faults" not in vnic("adapter show left").out


def test_adapter_show_names_the_faults_in_force(vnic: Command) -> None:
    faulty = replace(ADAPTER, wire_faults=[BAD, GOOD])
    vnic.memory.answers[api.ListAdapters] = api.AdaptersReply(adapters=[faulty])
    lines = vnic("adapter show left").out.splitlines()
    assert f"    faults {WORDS}" in lines
    assert sum("faults" in line for line in lines) == 1


def test_a_filled_table_is_shown(vnic: Command) -> None:
    filled = replace(ADAPTER, filler_sas=64)
    vnic.memory.answers[api.ListAdapters] = api.AdaptersReply(adapters=[filled])
    assert vnic("wire").out == "left:\n    sa table filled with 64\n"
    assert "    faults sa table filled with 64\n" in vnic("adapter show left").out


def test_statistics_name_the_faults_done(vnic: Command) -> None:
    faulty = replace(STATISTICS, wire_faults=[api.WireFaultCount(direction="rx", kind="lost", frames=3)])
    vnic.memory.answers[api.GetStatistics] = api.StatisticsReply(adapters=[faulty])
    lines = [line.split() for line in vnic("stats").out.splitlines()]
    assert ["lost", "rx", "3"] in lines


def test_what_the_native_engine_has_left_is_counted_by_reason(vnic: Command) -> None:
    left = replace(STATISTICS, punts=[api.PuntCount(reason="unknown_flow", frames=3)])
    vnic.memory.answers[api.GetStatistics] = api.StatisticsReply(adapters=[left])
    lines = [line.split() for line in vnic("stats").out.splitlines()]
    assert ["LEFT", "BY", "NATIVE", "FRAMES"] in lines
    assert ["unknown_flow", "3"] in lines
