"""wireguard-go, the WireGuard of user space, as Debian ships it.

Source: wireguard-go(1), wg(8).
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.peers.installed import missing_packages, wait_for_echo, wait_until
from scripts.lab import LEFT, REFERENCE_ADDRESS, RIGHT, SIDES, Lab

TEXT = "wireguard-go of the distribution, over the same veth pair"

_ADDRESS = {LEFT: "10.6.0.1", RIGHT: "10.6.0.2"}
_PORT = 51820


def missing() -> str:
    return missing_packages({"wireguard-go": "wireguard-go", "wg": "wireguard-tools"})


def start(lab: Lab) -> str:
    """Start one on each side, and give the address of the right."""
    device = {side: f"{lab.token}w{side[0]}" for side in SIDES}
    public = {}
    keys = {}
    for side in SIDES:
        command = ["ip", "netns", "exec", lab.namespace[side], "wireguard-go", "--foreground", device[side]]
        lab.start(command, env=os.environ | {"LOG_LEVEL": "error"})
        keys[side] = lab.directory / f"wireguard-{side}.key"
        keys[side].touch(mode=0o600)
        keys[side].write_text(lab.run_in(side, ["wg", "genkey"]))
        public[side] = lab.run_in(side, ["sh", "-c", f"wg pubkey <{keys[side]}"]).strip()
    for side, far in ((LEFT, RIGHT), (RIGHT, LEFT)):
        wait_until(Path(f"/var/run/wireguard/{device[side]}.sock").exists, "the start of wireguard-go")
        peer = [
            "peer",
            public[far],
            "endpoint",
            f"{REFERENCE_ADDRESS[far]}:{_PORT}",
            "allowed-ips",
            "10.6.0.0/24",
        ]
        own = ["private-key", str(keys[side]), "listen-port", str(_PORT)]
        lab.run_in(side, ["wg", "set", device[side], *own, *peer])
        lab.configure(side, device[side], _ADDRESS[side])
    wait_for_echo(lab, _ADDRESS[RIGHT], "wireguard-go")
    return _ADDRESS[RIGHT]
