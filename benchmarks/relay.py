"""The reference of the latency case: a bare relay between two TAPs, the least that a program can do.

Law: no more than open, read and write; what a card adds to this is the card's own cost.

    python -m benchmarks.relay NETNS IFNAME NETNS IFNAME

It makes the two TAPs, one in each namespace, prints "ready" and copies frames both ways until it is ended;
the TAPs go with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys

from pyroute2 import netns

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_LIMIT = 65536


def open_tap(namespace: str, name: str) -> int:
    """Make a TAP in a namespace; return its non-blocking descriptor."""
    netns.pushns(namespace)
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    finally:
        netns.popns()
    return descriptor


def main(words: list[str]) -> None:
    left, right = open_tap(words[0], words[1]), open_tap(words[2], words[3])
    across = {left: right, right: left}
    poller = select.epoll()
    for descriptor in across:
        poller.register(descriptor, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for descriptor, _ in poller.poll():
            try:
                while True:
                    os.write(across[descriptor], os.read(descriptor, FRAME_LIMIT))
            except OSError:
                # Nothing more to read, or a device that is down: the next event tells.
                continue


if __name__ == "__main__":
    main(sys.argv[1:])
