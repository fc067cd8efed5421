"""OpenVPN in user space: AES-128-GCM over UDP, without its kernel module.

Source: openvpn(8); peer-fingerprint mode of OpenVPN 2.6.
"""

from __future__ import annotations

from benchmarks.peers.installed import missing_packages, wait_for_echo
from scripts.lab import LEFT, REFERENCE_ADDRESS, RIGHT, SIDES, Lab

TEXT = "OpenVPN of the distribution, AES-128-GCM, over the same veth pair"

_ADDRESS = {LEFT: "10.5.0.1", RIGHT: "10.5.0.2"}


def missing() -> str:
    return missing_packages({"openvpn": "openvpn", "openssl": "openssl"})


def start(lab: Lab) -> str:
    """Start one on each side, and give the address of the right."""
    print_of = {}
    for side in SIDES:
        key, certificate = (lab.directory / f"openvpn-{side}.{end}" for end in ("key", "crt"))
        options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        names = ["-subj", f"/CN={side}", "-keyout", str(key), "-out", str(certificate)]
        lab.run_in(side, ["openssl", "req", "-x509", *options, *names])
        shown = lab.run_in(
            side, ["openssl", "x509", "-in", str(certificate), "-noout", "-fingerprint", "-sha256"]
        )
        print_of[side] = shown.strip().partition("=")[2]
    for side, far in ((LEFT, RIGHT), (RIGHT, LEFT)):
        role = ["--tls-client"] if side == LEFT else ["--tls-server", "--dh", "none"]
        lab.start(
            [
                *("ip", "netns", "exec", lab.namespace[side], "openvpn", *role),
                *("--dev", f"{lab.token}o{side[0]}", "--dev-type", "tun", "--proto", "udp"),
                *("--local", REFERENCE_ADDRESS[side], "--remote", REFERENCE_ADDRESS[far]),
                *("--ifconfig", _ADDRESS[side], _ADDRESS[far]),
                *("--key", str(lab.directory / f"openvpn-{side}.key")),
                *("--cert", str(lab.directory / f"openvpn-{side}.crt")),
                *("--peer-fingerprint", print_of[far], "--data-ciphers", "AES-128-GCM"),
                *("--disable-dco", "--sndbuf", "4194304", "--rcvbuf", "4194304"),
            ]
        )
    wait_for_echo(lab, _ADDRESS[RIGHT], "OpenVPN")
    return _ADDRESS[RIGHT]
