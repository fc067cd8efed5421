"""Write docs/conformance.md: every rule of the NDIS contract, what the card does, and the tests that show it.

Law: the rules are in tests/conformance/rules.toml, the tests say themselves what they show, by
`@pytest.mark.rule(n, ...)`; this module only joins the two. The tests are read, not run or imported.

Run it after a change of either: python -m scripts.conformance
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
RULES = TESTS / "conformance" / "rules.toml"
PAGE = ROOT / "docs" / "conformance.md"

LAST = 219
"""The rules are numbered from 1 to this."""

LEVELS = ("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "FACT", "TEST")
VERDICTS = ("does", "deviates", "host", "not-applicable")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; the members are described at the head of the file of rules."""

    number: int
    level: str
    statement: str
    verdict: str
    answer: str
    heading: str

    @property
    def applies(self) -> bool:
        """Whether a test can show it."""
        return self.verdict != "not-applicable"


@dataclass(frozen=True, slots=True, order=True)
class Shown:
    """A rule that a marker names, and where it stands."""

    number: int
    path: str
    """From the root of the tree."""
    line: int
    test: str
    """Name of the test, with its class; empty when the marker belongs to none."""


class MarkerError(Exception):
    """A marker that is no list of rule numbers."""


def rules(path: Path = RULES) -> list[Rule]:
    """Read the file of rules, in its order."""
    with path.open("rb") as file:
        headings = tomllib.load(file)["heading"]
    return [Rule(heading=heading["title"], **entry) for heading in headings for entry in heading["rule"]]


def markers(tests: Path = TESTS) -> list[Shown]:
    """Read every marker of every test file below a directory."""
    found: list[Shown] = []
    for path in sorted(tests.rglob("test_*.py")):
        found += markers_of(path.read_text(), path.relative_to(tests.parent).as_posix())
    return sorted(found)


def markers_of(source: str, path: str) -> list[Shown]:
    """Read the markers of one file: on tests, on classes, in `pytestmark` and on parameters.

    Raises:
        MarkerError: an argument of a marker is not a whole number.
    """
    tree = ast.parse(source)
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: list[Shown] = []
    attributed: set[int] = set()

    def take(test: str, *expressions: ast.expr) -> None:
        for call in _calls(expressions, assigned):
            attributed.add(id(call))
            found.extend(Shown(number, path, call.lineno, test) for number in _numbers(call, path))

    def visit(body: list[ast.stmt], prefix: str, above: list[ast.expr]) -> None:
        marks = [*above, *_pytestmark(body)]
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                take(prefix + node.name, *marks, *node.decorator_list)
            elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                visit(node.body, f"{prefix}{node.name}.", [*marks, *node.decorator_list])
            elif isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])).startswith("Test"):
                # A state machine of hypothesis becomes a test by an assignment.
                take(prefix + name, *marks)

    visit(tree.body, "", [])
    for node in ast.walk(tree):
        if _is_marker(node) and id(node) not in attributed:
            assert isinstance(node, ast.Call)
            found.extend(Shown(number, path, node.lineno, "") for number in _numbers(node, path))
    return found


def _is_marker(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "rule"
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "mark"
    )


def _pytestmark(body: list[ast.stmt]) -> list[ast.expr]:
    return [
        node.value
        for node in body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
    ]


def _calls(expressions: tuple[ast.expr, ...], assigned: dict[str, ast.expr]) -> Iterator[ast.Call]:
    """Give the markers in some expressions, and in what the module's names in them stand for."""
    seen: set[str] = set()
    todo: list[ast.AST] = list(expressions)
    while todo:
        for node in ast.walk(todo.pop()):
            if _is_marker(node):
                assert isinstance(node, ast.Call)
                yield node
            elif isinstance(node, ast.Name) and node.id in assigned and node.id not in seen:
                seen.add(node.id)
                todo.append(assigned[node.id])


def _numbers(call: ast.Call, path: str) -> list[int]:
    numbers = [
        argument.value
        for argument in call.args
        if isinstance(argument, ast.Constant) and type(argument.value) is int
    ]
    if not numbers or len(numbers) != len(call.args) or call.keywords:
        raise MarkerError(f"{path}:{call.lineno}: a marker names rules by number: {ast.unparse(call)}")
    return numbers


_HEAD = """# Conformance

Made from `tests/conformance/rules.toml` and the markers of the tests by `python -m scripts.conformance`; do
not edit by hand.

Every rule of the NDIS contract for IPsec task offload, versions 1 and 2, with what this card does about it. A
test fails when a rule is missing here, or when one that applies has no test that shows it.

| verdict | meaning |
| --- | --- |
| does | the card does so |
| deviates | on purpose it does not; the column beside says what it does instead |
| host | the transport or the protocol driver above the NIC does it |
| not-applicable | there is nothing of the kind in a network card that is a process |

"""


def page(every: list[Rule], shown: list[Shown]) -> str:
    """The page as Markdown."""
    by_rule: dict[int, dict[str, list[str]]] = {}
    for one in shown:
        names = by_rule.setdefault(one.number, {}).setdefault(one.path, [])
        if one.test not in names:
            names.append(one.test)
    counts = {verdict: sum(rule.verdict == verdict for rule in every) for verdict in VERDICTS}
    tested = sum(bool(by_rule.get(rule.number)) for rule in every if rule.applies)
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    text = [_HEAD, f"{len(every)} rules: {total}. Of the {sum(rule.applies for rule in every)} that apply, "]
    text.append(f"{tested} are shown by tests.\n")
    heading = ""
    for rule in every:
        if rule.heading != heading:
            heading = rule.heading
            text.append(f"\n## {heading}\n\n| rule | level | asks | verdict | here | tests |\n")
            text.append("| --- | --- | --- | --- | --- | --- |\n")
        tests = "<br>".join(
            f"[{Path(path).name}](../{path}): {', '.join(f'`{name}`' for name in names)}"
            for path, names in sorted(by_rule.get(rule.number, {}).items())
        )
        cells = (f"R{rule.number}", rule.level, rule.statement, rule.verdict, rule.answer, tests or "-")
        text.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(text)


def without_test(every: list[Rule], shown: list[Shown]) -> list[Rule]:
    """Give the rules that apply and that no test shows."""
    numbers = {one.number for one in shown if one.test}
    return [rule for rule in every if rule.applies and rule.number not in numbers]


if __name__ == "__main__":
    _rules, _markers = rules(), markers()
    PAGE.write_text(page(_rules, _markers))
    for _rule in without_test(_rules, _markers):
        print(f"R{_rule.number} [{_rule.level}] has no test: {_rule.statement}", file=sys.stderr)
