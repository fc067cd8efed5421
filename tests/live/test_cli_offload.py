"""The command on a card as NDIS sees it: OIDs, capabilities, slots of frames, resets, drivers outside.

The real vnicd and the real vnic; structures are built by `vnic.ndis.structs`.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from card import BIN, LEFT, RIGHT, Daemon, Pair, Refusal
from namespaces import Namespaces
from oid_door import ADD_SA, DELETE_SA, GCM_128
from traffic import ping

from vnic.ipsec.association import KeyMaterial
from vnic.ndis.oid import AddSa, AlgorithmInfo, Operation, SaElement
from vnic.ndis.structs import pack_add_sa, pack_delete_sa

pytestmark = pytest.mark.live

NEAR, FAR = bytes((10, 9, 0, 1)), bytes((10, 9, 0, 2))


def bundle(key: bytes, spi: int, *, outward: bool, at_left: bool) -> AddSa:
    """One end of an SA between the hosts; `outward` is from left to right."""
    source, destination = (NEAR, FAR) if outward else (FAR, NEAR)
    element = SaElement(Operation.ESP, spi, encryption=AlgorithmInfo(GCM_128, KeyMaterial(key)))
    return AddSa(outward != at_left, source, destination, (element,))


def command(daemon: Daemon, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run one command, whatever its exit code and whatever goes in."""
    return subprocess.run(
        [BIN / "vnic", "-S", str(daemon.socket), *words],
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )


def key_file(path: Path, content: bytes) -> str:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return str(path)


@pytest.fixture
def token(namespaces: Namespaces) -> str:
    """A name for devices of this test alone."""
    return secrets.token_hex(3)


def offload_by_oid(pair: Pair, tmp_path: Path) -> tuple[bytes, bytes]:
    """SAs in both directions by the binary door, policies by words; gives the keys."""
    outward, back = secrets.token_bytes(20), secrets.token_bytes(20)
    for name in (LEFT, RIGHT):
        left = name == LEFT
        buffer = pack_add_sa(
            [
                bundle(outward, 0x7101, outward=True, at_left=left),
                bundle(back, 0x7102, outward=False, at_left=left),
            ]
        )
        answer = pair.daemon.json("oid", "set", name, ADD_SA, key_file(tmp_path / name, bytes(buffer)))
        assert answer["status_name"] == "NDIS_STATUS_SUCCESS"
        assert len(answer["handles"]) == 2
        assert all(answer["handles"])
        assert answer["information_buffer"] is None
        one, other = ("out", "in") if left else ("in", "out")
        pair.daemon.batch(
            f"policy add dev {name} {one} src 10.9.0.1/32 dst 10.9.0.2/32 tmpl proto esp mode transport",
            f"policy add dev {name} {other} src 10.9.0.2/32 dst 10.9.0.1/32 tmpl proto esp mode transport",
        )
    return outward, back


def test_sas_of_binary_structures_carry_pings_and_their_keys_show_nowhere(
    clean_pair: Pair, tmp_path: Path
) -> None:
    daemon = clean_pair.daemon
    keys = offload_by_oid(clean_pair, tmp_path)
    assert ping(clean_pair.left, clean_pair.right.addresses[4], count=3) == 3
    shown = daemon.vnic("-s", "sa", "show", "dev", LEFT)
    assert "by nic" in shown
    sas = daemon.json("sa", "show", "dev", LEFT)
    assert {one["packets"] for one in sas} >= {3}

    path = tmp_path / LEFT
    again = command(daemon, "oid", "set", LEFT, ADD_SA, "-", stdin=path.read_bytes())
    assert again.returncode == 2
    assert b"NDIS_STATUS_INVALID_PARAMETER" in again.stdout
    assert b"entry 0: failed" in again.stdout
    written = again.stdout + again.stderr + daemon.log.encode() + shown.encode()
    for key in keys:
        for form in (key.hex().encode(), key.hex(" ").encode(), key):
            assert form not in written

    handles = pack_delete_sa([one["handle"] for one in sas])
    deleted = command(daemon, "oid", "set", LEFT, DELETE_SA, f"hex:{handles.hex()}")
    assert deleted.returncode == 0, deleted
    assert daemon.json("sa", "show", "dev", LEFT) == []
    unknown = command(daemon, "-j", "oid", "set", LEFT, DELETE_SA, "-", stdin=bytes(handles))
    assert unknown.returncode == 2
    assert json.loads(unknown.stdout)["status_name"] == "NDIS_STATUS_INVALID_PARAMETER"
    assert json.loads(unknown.stderr)["exit_code"] == 2


def test_queries_answer_in_words_and_numbers(clean_pair: Pair) -> None:
    daemon = clean_pair.daemon
    text = daemon.vnic("oid", "query", LEFT, "tcp_offload_hardware_capabilities")
    assert text.startswith(
        "OID_TCP_OFFLOAD_HARDWARE_CAPABILITIES 0xfc01020d: NDIS_STATUS_SUCCESS 0x00000000\n"
    )
    # NDIS_OBJECT_HEADER: type 0xA7 (sheet §2).
    assert "    0000  a7 " in text
    short = command(daemon, "oid", "query", LEFT, "0xfc01020d", "room", "4")
    assert short.returncode == 2
    assert b"NDIS_STATUS_BUFFER_TOO_SHORT" in short.stderr
    assert b"needed " in short.stdout
    assert "OID_OFFLOAD_ENCAPSULATION" in daemon.vnic("oid", "list")
    assert daemon.json("oid", "cancel", LEFT, "7") == {"count": 0}


@pytest.mark.rule(161, 162, 176)
def test_frames_are_watched_with_their_slots(clean_pair: Pair, tmp_path: Path) -> None:
    daemon = clean_pair.daemon
    offload_by_oid(clean_pair, tmp_path)
    handles = {one["handle"] for one in daemon.json("sa", "show", "dev", LEFT)}
    out = tmp_path / "frames"
    with out.open("wb") as file:
        watching = subprocess.Popen(
            [BIN / "vnic", "-S", str(daemon.socket), "-j", "nbl", "watch", LEFT, "count", "8"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 20
            while watching.poll() is None and time.monotonic() < deadline:
                assert ping(clean_pair.left, clean_pair.right.addresses[4], count=1) == 1
            assert watching.wait(5) == 0
        finally:
            watching.kill()
            watching.wait()
    frames = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(frames) == 8
    sent = [one for one in frames if one["direction"] == "send" and one["oob"]["ipsec"]]
    received = [one for one in frames if one["direction"] == "receive" and one["oob"]["ipsec"]]
    assert sent
    assert received
    for one in sent:
        assert one["oob"]["ipsec"] in handles
        # ICMP inside, the ESP header 20 bytes into the packet: 5 words (R161, R162).
        assert one["oob"]["header"] & 0xFF == 1
        assert one["oob"]["header"] >> 24 == 5
        assert one["status_name"] == "NDIS_STATUS_SUCCESS"
    for one in received:
        # CryptoDone, CryptoStatus SUCCESS (R176).
        assert one["oob"]["ipsec"] == 0x2
        assert one["oob"]["members"]["CryptoStatus"] == "CRYPTO_SUCCESS"
        # Opened in place: the ICMP header stands behind ESP header and IV.
        frame = bytes.fromhex(one["frame"])
        assert frame[14 + 9] == 50
        assert frame[14 + 20 + 16] in (0, 8)


def features(daemon: Daemon, adapter: str) -> dict[str, Any]:
    (capabilities,) = daemon.json("caps", adapter)
    return {one["name"]: one for one in capabilities["features"]}


@pytest.mark.rule(3, 27, 40)
def test_a_card_is_modelled_shown_with_reasons_and_changed_by_its_keywords(
    daemon: Daemon, token: str
) -> None:
    daemon.vnic(
        *f"adapter add gcm tap vc{token} caps encryptions aes-gcm-128,null integrities none esn off "
        "sa_capacity 1".split()
    )
    text = daemon.vnic("caps", "gcm")
    assert "sa_capacity: 1, 0 used, 1 free\n" in text
    assert "esp: on\n" in text
    assert "ah: off [fixed]\n" in text
    assert "esn: off [fixed]\n" in text
    assert "aes-cbc-128" not in text

    daemon.vnic("adapter", "set", "gcm", "keyword", "IPsecOffloadV2", "0")
    assert features(daemon, "gcm")["esp"]["enabled"]
    daemon.vnic("adapter", "restart", "gcm")
    esp = features(daemon, "gcm")["esp"]
    assert (esp["hardware"], esp["enabled"]) == (True, False)
    assert "*IPsecOffloadV2 is 0" in esp["reason"]
    assert f"esp: off ({esp['reason']})\n" in daemon.vnic("caps", "gcm")
    daemon.vnic("adapter", "set", "gcm", "keyword", "*IPsecOffloadV2", "3")
    daemon.vnic("adapter", "restart", "gcm")
    assert features(daemon, "gcm")["esp"]["enabled"]


@pytest.mark.rule(92)
def test_what_the_nic_refuses_software_takes_and_both_are_told(daemon: Daemon, token: str) -> None:
    daemon.vnic(*f"adapter add small tap vs{token} caps encryptions aes-gcm-128 sa_capacity 1".split())
    daemon.vnic(*f"adapter add alone tap va{token} software off caps encryptions aes-gcm-128".split())
    gcm = "src 192.0.2.1 dst 192.0.2.2 esp aes-gcm-128 key -"
    cbc = "src 192.0.2.1 dst 192.0.2.2 esp spi 0x300 aes-cbc-128 key - hmac-sha1-96 key -"
    keys = "".join(secrets.token_hex(length) + "\n" for length in (16, 20))
    first = command(
        daemon,
        "-d",
        "sa",
        "add",
        "dev",
        "small",
        "out",
        *gcm.split(),
        "spi",
        "0x100",
        stdin=secrets.token_hex(20).encode() + b"\n",
    )
    assert first.returncode == 0, first
    assert first.stderr == b""
    full = command(
        daemon,
        "-d",
        "sa",
        "add",
        "dev",
        "small",
        "out",
        *gcm.split(),
        "spi",
        "0x200",
        stdin=secrets.token_hex(20).encode() + b"\n",
    )
    assert full.returncode == 0, full
    assert b"NDIS_STATUS_RESOURCES" in full.stderr
    assert b"handle 0x0 by software" in full.stdout
    lacks = command(daemon, "sa", "add", "dev", "small", "out", *cbc.split(), stdin=keys.encode())
    assert lacks.returncode == 0, lacks
    assert b"NDIS_STATUS_NOT_SUPPORTED" in lacks.stderr
    assert {one["sa"]["spi"]: one["offload"] for one in daemon.json("sa", "show", "dev", "small")} == {
        0x100: "nic",
        0x200: "software",
        0x300: "software",
    }
    assert "sa_capacity: 1, 1 used, 0 free\n" in daemon.vnic("caps", "small")
    refused = command(daemon, "sa", "add", "dev", "alone", "out", *cbc.split(), stdin=keys.encode())
    assert refused.returncode == 2
    assert b"NDIS_STATUS_NOT_SUPPORTED" in refused.stderr
    assert daemon.vnic("sa", "deleteall", "dev", "small") == ""
    assert daemon.json("sa", "show") == []


@pytest.mark.rule(80, 209)
def test_the_life_of_a_nic_in_words_and_events(daemon: Daemon, token: str) -> None:
    daemon.vnic("adapter", "add", "one", "tap", f"vl{token}")
    with daemon.monitor() as monitor:
        daemon.vnic("adapter", "pause", "one")
        assert daemon.adapter("one")["state"] == "paused"
        assert "one: paused" in daemon.vnic("adapter")
        daemon.vnic("adapter", "resume", "one")
        holding = subprocess.Popen(
            [BIN / "vnic", "-S", str(daemon.socket), "adapter", "reset", "one", "hold", "1500"],
            stdin=subprocess.DEVNULL,
        )
        try:
            start = monitor.wait_for(lambda event: "RESET_START" in event["text"])
            assert start["kind"] == "status_indication"
            assert start["indication"]["name"] == "NDIS_STATUS_RESET_START"
            assert daemon.adapter("one")["state"] == "resetting"
            with pytest.raises(Refusal, match="NDIS_STATUS_RESET_IN_PROGRESS"):
                daemon.vnic("adapter", "reset", "one")
        finally:
            assert holding.wait(10) == 0
        monitor.wait_for(lambda event: "RESET_END" in event["text"])
        assert daemon.adapter("one")["state"] == "running"
        daemon.vnic("adapter", "remove", "one")
        assert daemon.adapter("one")["state"] == "removed"
        refused = command(daemon, "oid", "query", "one", "tcp_offload_current_config")
        assert refused.returncode == 2
        assert b"NDIS_STATUS_NOT_ACCEPTED" in refused.stdout
        with pytest.raises(Refusal, match="NDIS_STATUS_NOT_ACCEPTED"):
            daemon.vnic("adapter", "resume", "one")
        daemon.vnic("adapter", "delete", "one")
    assert daemon.json("adapter") == []


def test_watching_ends_with_an_error_when_the_adapter_goes(daemon: Daemon, token: str) -> None:
    daemon.vnic("adapter", "add", "one", "tap", f"vw{token}")
    watching = subprocess.Popen(
        [BIN / "vnic", "-S", str(daemon.socket), "nbl", "watch", "one"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(0.5)
        daemon.vnic("adapter", "delete", "one")
        _, error = watching.communicate(timeout=10)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 2
    assert "it was deleted" in error


def test_a_socket_for_a_driver_comes_and_goes_with_its_adapter(daemon: Daemon, tmp_path: Path) -> None:
    daemon.vnic("adapter", "add", "bare", "transport", "external")
    path = daemon.socket.parent / "bare.nbl"
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert stat.S_IMODE(path.lstat().st_mode) & 0o007 == 0
    assert path.lstat().st_uid == os.geteuid()
    own = tmp_path / "own.nbl"
    daemon.vnic(
        "adapter", "add", "own", "transport", "external", "nbl-socket", str(own), "wire", "link", "bare"
    )
    assert stat.S_ISSOCK(own.lstat().st_mode)
    state = daemon.adapter("own")
    assert (state["transport"], state["nbl_socket"], state["tap"], state["driver"]) == (
        "external",
        str(own),
        None,
        False,
    )
    text = daemon.vnic("adapter", "show", "bare")
    assert f"transport external nbl-socket {path} driver none" in text
    assert daemon.vnic("-s", "-br", "adapter")
    assert "NBL" in daemon.vnic("stats", "bare")
    assert "esp: off (no OID_OFFLOAD_ENCAPSULATION yet (R55))" in daemon.vnic("caps", "bare")
    for words in ("policy add dev bare in src 10.0.0.0/8", "adapter set bare mtu 1400"):
        with pytest.raises(Refusal, match="external transport"):
            daemon.vnic(*words.split())
    with pytest.raises(Refusal, match="transport inline"):
        daemon.vnic("adapter", "add", "x", "transport", "external", "tap", "x0")
    daemon.vnic("adapter", "delete", "own")
    assert not own.exists()
    daemon.vnic("adapter", "delete", "bare")
    assert not path.exists()


def test_a_configuration_of_cards_is_checked_and_carried_out(daemon: Daemon, token: str) -> None:
    daemon.configure(
        "[host]\nenable_ipsec_offload = false\n"
        f'[[adapter]]\nname = "card"\ntap = "vf{token}"\n'
        "[adapter.capabilities]\nesn = false\nv1 = { enabled = false }\n"
        '[adapter.keywords]\n"*IPsecOffloadV2" = 2\n'
        '[[adapter]]\nname = "bare"\ntransport = "external"\n'
    )
    check = subprocess.run(
        [BIN / "vnicd", "--config", daemon.socket.parent / "vnic.toml", "--check-config"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert check.returncode == 0, check
    daemon.close()
    daemon.start()
    assert [one["name"] for one in daemon.json("adapter")] == ["bare", "card"]
    known = features(daemon, "card")
    assert not known["esn"]["hardware"]
    assert not known["v1.enabled"]["hardware"]
    assert known["esp"]["hardware"]
    assert not known["esp"]["enabled"]
    assert daemon.adapter("card")["keywords"]["*IPsecOffloadV2"] == 2


def test_the_program_runs_as_a_module_too(daemon: Daemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vnic", "-S", str(daemon.socket), "oid", "list"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
