"""strongSwan with its plugin kernel-libipsec: ESP tunnels in user space, in UDP, AES-128-GCM.

Two daemons on one machine need a /run each, which a mount namespace gives them.

Source: docs.strongswan.org, plugin kernel-libipsec; swanctl.conf(5).
"""

from __future__ import annotations

import os
import secrets

from benchmarks.peers.installed import missing_packages, wait_for_echo, wait_until
from scripts.lab import LEFT, REFERENCE_ADDRESS, RIGHT, SIDES, Lab

TEXT = "strongSwan kernel-libipsec of the distribution, AES-128-GCM, over the same veth pair"

_ADDRESS = {LEFT: "10.4.0.1", RIGHT: "10.4.0.2"}
_CHARON = "/usr/lib/ipsec/charon"
_PLUGINS = (
    "random nonce openssl aes sha1 sha2 hmac kdf gcm pem x509 pubkey kernel-libipsec kernel-netlink "
    "socket-default vici updown"
)

_SETTINGS = """
charon {{
  load = {plugins}
  port = 500
  port_nat_t = 4500
  plugins {{
    vici {{ socket = unix://{vici} }}
  }}
  filelog {{ log {{ path = {log} }} }}
}}
"""

_CONNECTION = """
connections {{
  peer {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes128gcm16-prfsha256-ecp256
    encap = yes
    local {{ auth = psk
      id = {side} }}
    remote {{ auth = psk
      id = {far} }}
    children {{
      net {{
        local_ts = {near_ts}/32
        remote_ts = {far_ts}/32
        esp_proposals = aes128gcm16
        updown = /usr/lib/ipsec/_updown iptables
      }}
    }}
  }}
}}
secrets {{
  ike-peer {{ secret = {secret} }}
}}
"""


def missing() -> str:
    return missing_packages(
        {
            _CHARON: "strongswan-charon",
            "swanctl": "strongswan-swanctl",
            "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so": "libcharon-extra-plugins",
            "/usr/lib/ipsec/plugins/libstrongswan-openssl.so": "libstrongswan-standard-plugins",
        }
    )


def start(lab: Lab) -> str:
    """Start one on each side, and give the address of the right."""
    secret = secrets.token_hex(16)
    socket = {side: lab.directory / f"strongswan-{side}.vici" for side in SIDES}
    for side, far in ((LEFT, RIGHT), (RIGHT, LEFT)):
        settings = lab.directory / f"strongswan-{side}.conf"
        log = lab.directory / f"strongswan-{side}.log"
        settings.write_text(_SETTINGS.format(plugins=_PLUGINS, vici=socket[side], log=log))
        connection = lab.directory / f"swanctl-{side}.conf"
        connection.touch(mode=0o600)
        connection.write_text(
            _CONNECTION.format(
                local=REFERENCE_ADDRESS[side],
                remote=REFERENCE_ADDRESS[far],
                side=side,
                far=far,
                near_ts=_ADDRESS[side],
                far_ts=_ADDRESS[far],
                secret=secret,
            )
        )
        lab.run_in(side, ["ip", "address", "add", f"{_ADDRESS[side]}/32", "dev", "lo"])
        # A new mount namespace first: `ip netns exec` has one too, but shares /run with the rest.
        inside = f"mount -t tmpfs none /run && exec {_CHARON}"
        command = ["ip", "netns", "exec", lab.namespace[side], "unshare", "--mount", "sh", "-c", inside]
        lab.start(command, env=os.environ | {"STRONGSWAN_CONF": str(settings)})
    for side in SIDES:
        wait_until(socket[side].exists, "the start of strongSwan")
        uri = f"unix://{socket[side]}"
        file = str(lab.directory / f"swanctl-{side}.conf")
        lab.run_in(side, ["swanctl", "--load-all", "--noprompt", "--uri", uri, "--file", file])
    lab.run_in(LEFT, ["swanctl", "--initiate", "--child", "net", "--uri", f"unix://{socket[LEFT]}"])
    wait_for_echo(lab, _ADDRESS[RIGHT], "strongSwan")
    return _ADDRESS[RIGHT]
