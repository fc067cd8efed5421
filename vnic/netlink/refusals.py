"""Refusals: what the operating system said, in a sentence a person can act on.

Law: errno in, PortError out; no system calls here.
"""

from __future__ import annotations

import errno
import os

from pyroute2.netlink.exceptions import NetlinkError

from vnic.errors import PortError

_HINTS = {
    errno.EPERM: "run as root (CAP_NET_ADMIN, CAP_NET_RAW; for a named namespace CAP_SYS_ADMIN)",
    errno.EACCES: "run as root; for an IPv6 address see that IPv6 is enabled",
    errno.ENODEV: "there is no such device: create it first or correct the name (`ip link show`)",
    errno.ENXIO: "there is no such device: create it first or correct the name (`ip link show`)",
    errno.ENOENT: "it does not exist: create it first or correct the name",
    errno.EBUSY: "another program uses it: stop that program or choose another name",
    errno.EEXIST: "it exists already: choose another name or delete the old one",
    errno.EMFILE: "too many open files: raise LimitNOFILE",
    errno.ENFILE: "too many open files in the system: raise fs.file-max",
    errno.EAFNOSUPPORT: "the kernel lacks this protocol family: load its module",
    errno.EADDRNOTAVAIL: "it takes no such address: see that IPv6 is enabled",
}


def code_of(error: OSError | NetlinkError) -> int:
    """Give the errno of an OSError or NetlinkError; EIO when it carries none."""
    code = error.code if isinstance(error, NetlinkError) else error.errno
    return int(code) if code else errno.EIO


def where(netns: str | None) -> str:
    """Name a network namespace for a message: " in namespace left", or nothing for the current one."""
    return "" if netns is None else f" in namespace {netns}"


def refusal(action: str, error: OSError | NetlinkError, *, hint: str = "") -> PortError:
    """Make the PortError for `action` that the kernel refused with `error`.

    Args:
        action: what was attempted, with device and namespace: "create TAP tap0 in namespace left".
        error: the refusal; its errno gives the reason and, unless `hint` is given, the advice.
        hint: what to do about it, when the caller knows better than the errno.
    """
    code = code_of(error)
    reason = os.strerror(code)
    if isinstance(error, NetlinkError) and error.args[1:] and str(error.args[1]) != reason:
        reason = f"{reason}, {error.args[1]}"
    text = f"cannot {action}: {reason} ({errno.errorcode.get(code, code)})"
    advice = hint or _HINTS.get(code, "")
    return PortError(f"{text}; {advice}" if advice else text)
