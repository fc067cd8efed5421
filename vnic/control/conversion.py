"""Parameters and replies as typed values, quickly.

Law: what fits a type is the same here as in the published interface. `msgspec` converts; whatever it does not
take, asyncvarlink judges, whose errors say where and what.

Source: https://varlink.org/Interface-Definition.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from asyncvarlink import VarlinkMethodSignature, varlinksignature
from asyncvarlink.conversion import ConversionError

from vnic.control.framing import misfit
from vnic.control.interface import AdapterInterface, Call, fields_of

Reply = TypeVar("Reply")
Request = TypeVar("Request", bound=Call[Any])

_Members = dict[str, "type | None"]


def signature_of(request: type[Call[Any]]) -> VarlinkMethodSignature:
    """Give the types of a method as asyncvarlink knows them."""
    signature = varlinksignature(getattr(AdapterInterface, request.__name__))
    assert signature is not None
    return signature


def call_of(request: type[Request], parameters: dict[str, Any]) -> Request:
    """Make a call of its parameters.

    Raises:
        RequestError: one is missing, unknown, or of another type.
    """
    try:
        made: Request | None = msgspec.convert(parameters, request)
    except (msgspec.ValidationError, OverflowError):
        made = None
    if made is not None and not _holds_unknown(parameters, request):
        return made
    try:
        return request(**signature_of(request).parameter_type.fromjson(parameters))
    except ConversionError as error:
        raise misfit(request, parameters, error) from None


def reply_of(request: type[Call[Reply]], parameters: Any) -> Reply:
    """Make a reply of its parameters.

    Raises:
        ConversionError: they do not fit.
    """
    kind = request.reply_type()
    try:
        made: Reply = msgspec.convert(parameters, kind)
    except (msgspec.ValidationError, OverflowError):
        made = kind(**signature_of(request).return_type.fromjson(parameters))
    return made


def _holds_unknown(value: Mapping[str, Any], kind: type) -> bool:
    """Whether a mapping that fits a dataclass has members that this one has not, at any depth."""
    members = _members(kind)
    for name, member in value.items():
        if name not in members:
            return True
        inner = members[name]
        if inner is None or member is None:
            continue
        for one in member if isinstance(member, list) else (member,):
            if _holds_unknown(one, inner):
                return True
    return False


@functools.cache
def _members(kind: type) -> _Members:
    """Give the members of a dataclass, each with the dataclass it holds, alone or in a list, or None."""
    return {one.name: _dataclass_in(one.type) for one in fields_of(kind)}


def _dataclass_in(annotation: Any) -> type | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (one for one in typing.get_args(annotation) if one is not types.NoneType)
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
    return annotation if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else None
