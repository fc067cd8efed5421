"""The exceptions of vnic.

Law: a bad request raises one of these; a bad packet never does outside `packet` (it becomes a
CryptoStatus or a DropReason). No message ever holds key material.

    VnicError
    ├── PacketError     malformed bytes (never leaves transport or miniport)
    ├── RequestError    a request that names a wrong value: field, value, what is allowed
    │   ├── ConfigError     the same, in a configuration file
    │   └── OidError        refused by the NIC, carries the NDIS status
    ├── PortError       the operating system refused a device or a socket
    └── ControlError    the control socket: not reached, not allowed, broken
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vnic.ndis.status import NdisStatus


class VnicError(Exception):
    """Root of every exception that vnic raises on purpose."""


class PacketError(VnicError):
    """Bytes that are not a well-formed header or packet."""


class RequestError(VnicError):
    """A request that cannot be carried out as written; nothing was changed.

    Args:
        message: what was wrong and what to do, one sentence.
        field: the word, key or member at fault ("spi", "aead", "mode"); "" if none alone is.
        value: the value given, as text; keys are never repeated here.
        allowed: the values that would be accepted, as text.
    """

    def __init__(self, message: str, *, field: str = "", value: str = "", allowed: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        text = self.message
        if self.field:
            text += f" [{self.field}"
            if self.value:
                text += f" = {self.value}"
            text += "]"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        return text


class ConfigError(RequestError):
    """A configuration file that cannot be used; `path` names the file, `field` the dotted key."""

    def __init__(
        self, message: str, *, path: str = "", field: str = "", value: str = "", allowed: str = ""
    ) -> None:
        super().__init__(message, field=field, value=value, allowed=allowed)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {super().__str__()}" if self.path else super().__str__()


class OidError(RequestError):
    """An SA request that the NIC refused, with the NDIS status it answers."""

    def __init__(
        self, status: NdisStatus, message: str, *, field: str = "", value: str = "", allowed: str = ""
    ) -> None:
        super().__init__(message, field=field, value=value, allowed=allowed)
        self.status = status


class PortError(VnicError):
    """A device, namespace or socket the operating system refused; wraps the OSError."""


class ControlError(VnicError):
    """The control socket could not be reached or used."""
