"""The text of the published interface file, with the comments of the Python types.

Law: reads `interface`, adds nothing to it. The file beside this module is what the daemon hands out; it is
generated (`python -m vnic.control.interface`), and a test holds the two together.

Source: https://varlink.org/Interface-Definition.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from asyncvarlink import varlinksignature
from asyncvarlink.conversion import VarlinkType

from vnic.control.interface import CALLS, INTERFACE, AdapterInterface, fields_of

_WIDTH = 110


def render() -> str:
    """Generate the text of the interface file from the types. Needs their source files."""
    lines = [*_comment(inspect.getdoc(AdapterInterface)), f"interface {INTERFACE}", ""]
    for struct in _structs():
        lines += [*_comment(inspect.getdoc(struct)), f"type {struct.__name__} {_body(struct)}", ""]
    for request in CALLS:
        signature = varlinksignature(getattr(AdapterInterface, request.__name__))
        assert signature is not None
        lines += [
            *_comment(inspect.getdoc(request)),
            f"method {request.__name__}{_body(request)} -> {_body(request.reply_type())}",
            "",
        ]
    for error in AdapterInterface.errors:
        lines += [
            *_comment(inspect.getdoc(error)),
            f"error {error.__name__} {error.paramtype.as_varlink}",
            "",
        ]
    return "\n".join(lines)


def _structs() -> list[type]:
    """Every dataclass that calls and replies are made of, each after those it holds."""
    found: dict[type, None] = {}

    def visit(annotation: Any) -> None:
        for argument in typing.get_args(annotation):
            visit(argument)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and annotation not in found:
            for one in fields_of(annotation):
                visit(one.type)
            found[annotation] = None

    for request in CALLS:
        for message in (request, request.reply_type()):
            for one in fields_of(message):
                visit(one.type)
    return list(found)


def _body(message: type) -> str:
    """Give the fields of a dataclass in parentheses, one a line with its comment."""
    fields = fields_of(message)
    if not fields:
        return "()"
    comments = _field_comments(message)
    blocks = []
    for position, one in enumerate(fields):
        varlink_type = VarlinkType.from_type_annotation(one.type).as_varlink
        comma = "," if position < len(fields) - 1 else ""
        lines = [*_comment(comments.get(one.name)), f"{one.name}: {varlink_type}{comma}"]
        blocks.append(textwrap.indent("\n".join(lines), "  "))
    return "(\n" + "\n".join(blocks) + "\n)"


def _field_comments(message: type) -> dict[str, str]:
    """Read the strings that stand below the fields of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(message))).body
    assert isinstance(tree, ast.ClassDef)
    comments: dict[str, str] = {}
    for above, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    comments[above.target.id] = inspect.cleandoc(text)
    return comments


def _comment(text: str | None) -> Iterator[str]:
    for paragraph in (text or "").splitlines():
        for line in textwrap.wrap(paragraph, _WIDTH - 2) or [""]:
            yield f"# {line}".rstrip()
