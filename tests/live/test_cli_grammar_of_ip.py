"""iproute2 as the judge of the grammar: what `ip` can read, the command can read.

`ip` parses a whole line before it asks the kernel. Exit code 2 (or 0) says that it understood and the kernel
answered; anything else that it did not understand. This kernel need not have ESP for that.
"""

from __future__ import annotations

import functools
import io
import random
import shlex
import subprocess
from dataclasses import replace

import pytest
from namespaces import Namespace, Namespaces

from vnic.cli.commands import Place, read
from vnic.cli.session import Options, Session
from vnic.cli.words import UsageError, Words
from vnic.control.interface import Policy, Sa

pytestmark = pytest.mark.live

UNDERSTOOD = (0, 2)
OFFLOAD = "offload packet dev left"
SHUFFLES = 40

GCM = "aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128"
CBC = "enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f"
SHA1 = "auth 'hmac(sha1)' 0x000102030405060708090a0b0c0d0e0f10111213"
SHA256 = "auth-trunc 'hmac(sha256)' 0x" + "07" * 32 + " 128"

STATE_LINES = [
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel reqid 5 {GCM}",
    f"src 10.0.0.1/32 dst 10.0.0.2 spi 256 proto esp mode transport {CBC} {SHA1}",
    f"src 2001:db8::1 dst 2001:db8::2 proto esp spi 0400 {SHA256} {CBC} replay-window 64 flag esn align4",
    "dst 10.0.0.2 src 10.0.0.1 proto esp spi 0x100 enc 'ecb(cipher_null)' '' "
    "auth 'hmac(md5)' sixteencharacter",
    f"proto ah src 10.0.0.1 dst 10.0.0.2 spi 0x100 {SHA256} flag 0x40 mode tun",
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 {GCM} "
    "sel src 10/8 dst 10.1.2.3/24 proto tcp sport 0 dport 0x50",
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 {GCM} "
    "sel proto ipv6-icmp type 128 code 0 reqid 0xffffffff",
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 {GCM} sel proto 47 replay-window 32 replay-oseq 0",
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 {GCM} offload packet dev left dir out",
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 {CBC} {SHA1} flag noecn decap-dscp nopmtudisc af-unspec",
    f"src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 flag esn replay-window 128 replay-seq 1 replay-oseq 7 "
    f"replay-seq-hi 1 replay-oseq-hi 2 offload packet dev left dir in {GCM}",
]
POLICY_LINES = [
    "src 10.0.0.0/24 dst 10.1.0.0/24 dir out tmpl src 1.1.1.1 dst 2.2.2.2 proto esp reqid 5 mode tunnel",
    "dir in src 10/8 dst 10.1.2.3 proto udp dport 53 action block priority 0x10 ptype main",
    "dst ::/0 dir out priority 7 tmpl proto esp mode transport tmpl proto ah level required",
    "dir out tmpl src 1.1.1.1 dst 2.2.2.2 proto esp spi 0x100 mode tunnel src 10.0.0.0/24 proto tcp sport 80",
    "src 10.0.0.0/24 dir in action allow offload packet dev left",
    "proto icmp type 8 code 0 dir out action allow",
    "src 10.0.0.0/24 dst 10.1.0.0/24 proto any dir in tmpl reqid 5 proto esp",
]


@functools.cache
def knows_packet_offload() -> bool:
    """Whether this `ip` has the word `packet` (iproute2 6.2); before, states had offload without it."""
    done = subprocess.run(["ip", "xfrm", "state", "help"], capture_output=True, text=True, check=False)
    return "packet" in done.stderr.partition("offload")[2].partition("]")[0]


@pytest.fixture
def somewhere(namespaces: Namespaces) -> Namespace:
    """A namespace with a device `left`, so that `ip` finds what a line offloads to."""
    made = namespaces.create("ip", ipv6=False)
    made.ip("link", "add", "left", "type", "veth", "peer", "name", "peer")
    return made


def judged(somewhere: Namespace, what: str, line: str) -> bool:
    """Whether `ip` understood a line; it is taken back if the kernel did it."""
    if not knows_packet_offload():
        line = line.replace(OFFLOAD, "offload dev left" if what == "state" else "")
    done = somewhere.ip("xfrm", what, "add", *shlex.split(line), check=False)
    if done.returncode == 0:
        somewhere.ip("xfrm", what, "flush")
    return done.returncode in UNDERSTOOD


def understood(what: str, line: str) -> Sa | Policy:
    """What the command makes of a line; it is never sent."""
    from vnic.cli import associations, policies

    words = Words(["xfrm", what, "add", *shlex.split(line)])
    _, found = read(words, Place())
    session = Session(Options(), io.StringIO(), io.StringIO(), None, exposure="")
    return associations.sa_of(found, session) if what == "state" else policies.policy_of(found, session)


@pytest.mark.parametrize("line", STATE_LINES)
def test_lines_that_ip_reads_as_states_are_read_here(somewhere: Namespace, line: str) -> None:
    assert judged(somewhere, "state", line)
    assert understood("state", line)


@pytest.mark.parametrize("line", POLICY_LINES)
def test_lines_that_ip_reads_as_policies_are_read_here(somewhere: Namespace, line: str) -> None:
    assert judged(somewhere, "policy", line)
    assert understood("policy", line)


def test_the_order_of_the_words_is_as_free_as_in_ip_and_means_the_same(somewhere: Namespace) -> None:
    chance = random.Random(4301)
    pieces = {
        "state": [
            "src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100",
            "mode tunnel",
            "reqid 7",
            "replay-window 64",
            "flag esn align4",
            "sel src 10.1.0.0/16 dst 10.2.0.0/16 proto tcp dport 80",
            CBC,
            SHA256,
            "offload packet dev left dir out",
        ],
        "policy": [
            "src 10.1.0.0/16 dst 10.2.0.0/16 proto tcp dport 80",
            "dir out",
            "priority 7",
            "ptype main",
            "action allow",
            "tmpl src 1.1.1.1 dst 2.2.2.2 proto esp spi 0x100 reqid 3 mode tunnel level required",
        ],
    }
    for what, parts in pieces.items():
        wanted = understood(what, " ".join(parts))
        for _ in range(SHUFFLES):
            chance.shuffle(parts)
            line = " ".join(parts)
            if "dport 80 src" in line:
                # `ip` takes these addresses for those of the selector; here that is an error.
                with pytest.raises(UsageError):
                    understood(what, line)
                continue
            assert judged(somewhere, what, line), line
            assert understood(what, line) == wanted, line


def spelled_out(made: Sa | Policy) -> Policy:
    """A policy with nothing left to be filled in."""
    assert isinstance(made, Policy)
    templates = [
        replace(one, mode=one.mode or "transport", reqid=one.reqid or 0) for one in made.templates or []
    ]
    return replace(made, priority=made.priority or 0, templates=templates)


def test_what_the_kernel_shows_of_a_policy_is_read_here(somewhere: Namespace) -> None:
    for line in POLICY_LINES:
        if "offload" in line:
            continue
        done = somewhere.ip("xfrm", "policy", "add", *shlex.split(line), check=False)
        if done.returncode != 0:
            continue
        shown = somewhere.ip("xfrm", "policy").stdout
        somewhere.ip("xfrm", "policy", "flush")
        assert spelled_out(understood("policy", " ".join(shown.split()))) == spelled_out(
            understood("policy", line)
        )
