"""docs/conformance.md is complete, current, and true to the tests that it names."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from scripts.conformance import (
    LAST,
    LEVELS,
    PAGE,
    RULES,
    VERDICTS,
    MarkerError,
    Shown,
    markers,
    markers_of,
    page,
    rules,
    without_test,
)

EVERY = rules()
SHOWN = markers()


def test_every_rule_is_there_once_and_in_order() -> None:
    assert [rule.number for rule in EVERY] == list(range(1, LAST + 1))


def test_every_rule_has_a_level_a_verdict_and_an_answer() -> None:
    assert [rule for rule in EVERY if rule.level not in LEVELS or rule.verdict not in VERDICTS] == []
    sentence = re.compile(r"[A-Z0-9`].*\.")
    assert [rule.number for rule in EVERY if not sentence.fullmatch(rule.statement)] == []
    assert [rule.number for rule in EVERY if not sentence.fullmatch(rule.answer)] == []


def test_markers_name_rules_that_exist() -> None:
    assert [one for one in SHOWN if not 1 <= one.number <= LAST] == []


def test_every_marker_belongs_to_a_test() -> None:
    assert [one for one in SHOWN if not one.test] == []


def test_no_test_shows_a_rule_that_does_not_apply() -> None:
    idle = {rule.number for rule in EVERY if not rule.applies}
    assert [one for one in SHOWN if one.number in idle] == []


def test_every_rule_that_applies_has_a_test() -> None:
    missing = without_test(EVERY, SHOWN)
    assert missing == [], "\n".join(f"R{rule.number} [{rule.level}] {rule.statement}" for rule in missing)


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(EVERY, SHOWN), "run: python -m scripts.conformance"


def test_the_file_of_rules_names_no_heading_twice() -> None:
    titles = re.findall(r"^title = (.*)$", RULES.read_text(), re.MULTILINE)
    assert len(titles) == len(set(titles))
    changes = sum(one.heading != other.heading for one, other in pairwise(EVERY))
    assert changes == len(titles) - 1


def shown(source: str) -> list[tuple[int, str]]:
    return sorted((one.number, one.test) for one in markers_of(source, "tests/test_x.py"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@pytest.mark.rule(1, 2)\ndef test_a(): ...", [(1, "test_a"), (2, "test_a")]),
        (
            "@pytest.mark.rule(1)\n@pytest.mark.rule(2)\nasync def test_a(): ...",
            [(1, "test_a"), (2, "test_a")],
        ),
        (
            "pytestmark = pytest.mark.rule(3)\ndef test_a(): ...\ndef test_b(): ...",
            [(3, "test_a"), (3, "test_b")],
        ),
        ("pytestmark = [pytest.mark.live, pytest.mark.rule(3)]\ndef test_a(): ...", [(3, "test_a")]),
        ("@pytest.mark.rule(4)\nclass TestX:\n    def test_a(self): ...", [(4, "TestX.test_a")]),
        (
            "class TestX:\n    pytestmark = pytest.mark.rule(4)\n    def test_a(self): ...",
            [(4, "TestX.test_a")],
        ),
        (
            "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.rule(5))])\ndef test_a(n): ...",
            [(5, "test_a")],
        ),
        (
            "ROWS = [pytest.param(1, marks=[pytest.mark.rule(5)])]\n"
            "@pytest.mark.parametrize('n', ROWS)\ndef test_a(n): ...",
            [(5, "test_a")],
        ),
        ("pytestmark = pytest.mark.rule(6)\nTestMachine = Machine.TestCase", [(6, "TestMachine")]),
        ("@pytest.mark.rule(7)\ndef helper(): ...", [(7, "")]),
        ("def test_a(): ...", []),
    ],
)
def test_markers_are_found_where_pytest_takes_them(source: str, expected: list[tuple[int, str]]) -> None:
    assert shown(source) == expected


@pytest.mark.parametrize("arguments", ["", "'R1'", "R1", "1, x", "number=1", "True", "*numbers"])
def test_a_marker_without_plain_numbers_is_refused(arguments: str) -> None:
    with pytest.raises(MarkerError, match=r"tests/test_x\.py:1: "):
        shown(f"@pytest.mark.rule({arguments})\ndef test_a(): ...")


def test_a_rule_without_test_and_a_stale_page_are_noticed() -> None:
    one = next(rule for rule in EVERY if rule.applies)
    fewer = [mark for mark in SHOWN if mark.number != one.number]
    assert one in without_test(EVERY, fewer)
    assert one in without_test(EVERY, [*fewer, Shown(one.number, "tests/test_x.py", 1, "")])
    more = [*fewer, Shown(one.number, "tests/test_x.py", 1, "test_it")]
    assert one not in without_test(EVERY, more)
    assert page(EVERY, more) != page(EVERY, fewer)
