"""Messages as bytes: one JSON object and a zero byte each.

Law: bytes in, a dictionary or a ControlError out, whatever the bytes; nothing here knows what a message
means. A message that does not fit its types becomes a RequestError that repeats no key.

Source: https://varlink.org/Wire-Protocol.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

import msgspec
from asyncvarlink.conversion import ConversionError, VarlinkType

from vnic.control.interface import Call, fields_of
from vnic.errors import ControlError, RequestError

END = b"\0"

MESSAGE_LIMIT = 1 << 20
"""Bytes of one call."""

_SHOWN_LENGTH = 80
"""Characters of a stranger's text that an error repeats."""


def encode(message: dict[str, Any]) -> bytes:
    """Give the bytes of a message of builtins and of messages of the interface, END included."""
    return msgspec.json.encode(message) + END


def decode(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Read a message without its END.

    Raises:
        ControlError: it is not one JSON object in UTF-8, or nested without end.
    """
    try:
        message = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ControlError(f"not a JSON message ({type(error).__name__})") from None
    if not isinstance(message, dict):
        raise ControlError(f"a message is a JSON object, not {type(message).__name__}")
    return message


def misfit(request: type[Call[Any]], parameters: Any, error: ConversionError) -> RequestError:
    """Say which parameter of a call does not fit its type, and what would.

    Args:
        request: the call.
        parameters: its parameters as given; only the values of enumerations are repeated.
        error: how the conversion failed.
    """
    annotation: Any = request
    value: Any = parameters
    for step in error.location:
        annotation = _inside(annotation, step)
        try:
            value = getattr(value, str(step)) if dataclasses.is_dataclass(value) else value[step]
        except (LookupError, AttributeError, TypeError):
            value = None
    annotation = _without_none(annotation)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        if isinstance(value, str):
            text, shown = "no such choice", value
        else:
            text, shown = "not a text", ""
        allowed = ", ".join(choices)
    else:
        text, shown = error.message, ""
        allowed = "" if annotation is None else VarlinkType.from_type_annotation(annotation).as_varlink
        if dataclasses.is_dataclass(annotation):
            allowed = ", ".join(one.name for one in fields_of(annotation))
    return RequestError(
        _short(text),
        field=_short(".".join(map(str, error.location))) or request.__name__,
        value=_short(shown),
        allowed=allowed,
    )


def _inside(annotation: Any, step: str | int) -> Any:
    """Give the type of a member of a type, or None."""
    annotation = _without_none(annotation)
    arguments = typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return {one.name: one.type for one in fields_of(annotation)}.get(str(step))
    return arguments[-1] if arguments and typing.get_origin(annotation) in (list, dict) else None


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (one for one in typing.get_args(annotation) if one is not types.NoneType)
    return annotation


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"
