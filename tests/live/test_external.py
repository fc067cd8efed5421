"""Protocol drivers outside drive two NICs of a running daemon, joined by a link.

Packets are framed with scapy, as a driver's author would by hand; SAs go in by the binary door.

    driver A ── NBL socket ── NIC left ══ link ══ NIC right ── NBL socket ── driver B
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from namespaces import Namespaces
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from vnicd import Vnicd, vnicd_in

from vnic.control.client import Client
from vnic.control.interface import (
    AddAdapter,
    AddPolicy,
    AddSa,
    DeleteAdapter,
    GetStatistics,
    ListAdapters,
    ListSas,
    Policy,
    ResetAdapter,
    Sa,
    Selector,
    Template,
    Wire,
)
from vnic.driver import BlockingDriver, Driver, Received, oid_request
from vnic.errors import ControlError
from vnic.ipsec.association import KeyMaterial
from vnic.ndis import oid as typed
from vnic.ndis.configuration_structs import (
    EncapsulationSetting,
    EncapsulationSwitch,
    OffloadEncapsulation,
    pack_offload_encapsulation,
)
from vnic.ndis.nbl import HEADER_LENGTH
from vnic.ndis.netbuffer import LargeSend, OffloadHandle, TransmitInfo
from vnic.ndis.oids import Oid, OidRequest, OidResult, RequestType
from vnic.ndis.oob import NO_SLOTS
from vnic.ndis.status import CryptoStatus, IndicationCode, NdisStatus
from vnic.ndis.structs import pack_add_sa

pytestmark = pytest.mark.live

T = TypeVar("T")

A, B = "192.0.2.1", "192.0.2.2"
AES_GCM_128 = 0x8  # sheet §10.1
IV, ICV = 8, 16
ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
TEXT = b"framed by hand, sealed by the NIC"
VNIC = Path(sys.executable).parent / "vnic"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "c" / "driver.c"

_spis = itertools.count(0x1000)


def key_of(spi: int) -> bytes:
    """AES-128 key and salt of an SA; every one has its own."""
    return struct.pack(">I", spi) * 5


@dataclass
class Nics:
    """A daemon with the adapters "left" and "right"."""

    daemon: Vnicd

    def path(self, adapter: str) -> str:
        path = self.daemon.call(ListAdapters(name=adapter)).adapters[0].nbl_socket
        assert path is not None
        return path

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(asyncio.wait_for(work, 20))

    def request(self, adapter: str, oid: Oid, buffer: bytes | bytearray) -> OidResult:
        async def work() -> OidResult:
            async with await Client.connect(str(self.daemon.socket)) as client:
                return await oid_request(client, adapter, OidRequest(oid, RequestType.SET, bytearray(buffer)))

        return self.run(work())

    def switch_on(self, adapter: str) -> None:
        setting = EncapsulationSetting(EncapsulationSwitch.ON, 2, 14)
        buffer = pack_offload_encapsulation(OffloadEncapsulation(setting, setting))
        assert self.request(adapter, Oid.OFFLOAD_ENCAPSULATION, buffer).status is NdisStatus.SUCCESS

    def offload(
        self, adapter: str, spi: int, *, inbound: bool, key: bytes = b"", ends: tuple[str, str] = (A, B)
    ) -> OffloadHandle:
        """Add an AES-GCM SA by the binary door; the handle is at 0x38 of the structure (sheet §4.6)."""
        element = typed.SaElement(
            typed.Operation.ESP,
            spi,
            encryption=typed.AlgorithmInfo(AES_GCM_128, KeyMaterial(key or key_of(spi)), 16),
        )
        request = typed.AddSa(inbound, socket.inet_aton(ends[0]), socket.inet_aton(ends[1]), (element,))
        result = self.request(adapter, Oid.TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA, pack_add_sa([request]))
        assert result.status is NdisStatus.SUCCESS, result.message
        (handle,) = struct.unpack_from("<Q", result.information_buffer, 0x38)
        assert handle
        return OffloadHandle(handle)


@pytest.fixture(scope="module")
def nics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nics]:
    with vnicd_in(tmp_path_factory.mktemp("nics")) as daemon:
        daemon.write("")
        daemon.start()
        made = Nics(daemon)
        daemon.call(AddAdapter(name="left", transport="external"))
        daemon.call(AddAdapter(name="right", transport="external", wire=Wire(kind="link", name="left")))
        for adapter in ("left", "right"):
            made.switch_on(adapter)
        yield made
        daemon.end()


class Packed(NamedTuple):
    """A packet with room for IV and ICV, and its padding."""

    frame: bytes
    pad_length: int
    next_header: int
    inner: bytes
    """What ESP protects."""

    def info(self, handle: OffloadHandle) -> TransmitInfo:
        return TransmitInfo(handle, OffloadHandle(0), self.next_header, self.pad_length, 0, 20)


def esp(spi: int, inner: Packet, *, number: int = 1, ends: tuple[str, str] = (A, B)) -> Packed:
    """Frame a transport-mode ESP packet as RFC 4303 §2 draws it."""
    whole = IP(bytes(IP(src=ends[0], dst=ends[1]) / inner))
    data = bytes(whole.payload)
    pad_length = -(len(data) + 2) % 4
    body = (
        struct.pack(">II", spi, number)
        + bytes(IV)
        + data
        + bytes(range(1, pad_length + 1))
        + bytes((pad_length, whole.proto))
        + bytes(ICV)
    )
    frame = bytes(ETHERNET / IP(src=ends[0], dst=ends[1], proto=50) / Raw(body))
    return Packed(frame, pad_length, whole.proto, data)


def opened(received: Received, length: int) -> bytes:
    """What stands behind ESP header and IV of an opened packet."""
    start = 14 + 20 + 8 + IV
    return bytes(received.frame[start : start + length])


DATAGRAM = UDP(sport=5000, dport=5001) / Raw(TEXT)


@pytest.mark.rule(159, 161, 168, 171, 176, 179, 182)
def test_one_nic_seals_what_the_other_opens(nics: Nics) -> None:
    spi = next(_spis)
    packed = esp(spi, DATAGRAM)
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True)
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        assert a.send([packed.frame], packed.info(out)) == (NdisStatus.SUCCESS, NO_SLOTS)
        received = b.receive()
    info = received.info
    assert info is not None
    assert (info.crypto_done, info.next_crypto_done, info.crypto_status) == (True, False, 0)
    assert (info.header_info_set, info.next_header, info.pad_length) == (True, 17, packed.pad_length)
    assert opened(received, len(packed.inner)) == packed.inner


@pytest.mark.rule(169, 174, 181)
def test_a_packet_without_an_sa_is_indicated_sealed_and_scapy_opens_it(nics: Nics) -> None:
    spi = next(_spis)
    packed = esp(spi, DATAGRAM)
    out = nics.offload("left", spi, inbound=False)
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        a.send([packed.frame], packed.info(out))
        received = b.receive()
    assert (received.slots, received.info) == (NO_SLOTS, None)
    assert TEXT not in bytes(received.frame)
    peer = SecurityAssociation(ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=key_of(spi))
    plain = peer.decrypt(Ether(bytes(received.frame))[IP])
    assert bytes(plain[UDP].payload) == TEXT


@pytest.mark.rule(171, 180, 184)
def test_a_wrong_key_is_reported_and_the_packet_left_as_it_came(nics: Nics) -> None:
    spi = next(_spis)
    packed = esp(spi, DATAGRAM)
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True, key=key_of(spi)[::-1])
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        a.send([packed.frame], packed.info(out))
        received = b.receive()
    assert received.info is not None
    assert received.info.crypto_done
    assert received.info.crypto_status is CryptoStatus.TRANSPORT_ESP_AUTH_FAILED
    assert received.slots.ipsec == 3 << 16 | 0x2
    peer = SecurityAssociation(ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=key_of(spi))
    assert bytes(peer.decrypt(Ether(bytes(received.frame))[IP])[UDP].payload) == TEXT


@pytest.mark.rule(165)
def test_an_unknown_handle_fails_the_send_and_nothing_goes_out(nics: Nics) -> None:
    packed = esp(next(_spis), DATAGRAM)
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        completion = a.send([packed.frame], packed.info(OffloadHandle(0x7FFFFFFF)))
        assert completion.status is NdisStatus.FAILURE
        a.send([b"\2\0\0\0\0\2\2\0\0\0\0\1\x88\xb5after"])
        assert bytes(b.receive().frame).endswith(b"after")


@pytest.mark.rule(167, 197)
def test_all_frames_of_a_list_are_sealed_and_keep_their_order(nics: Nics) -> None:
    spi = next(_spis)
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True)
    packets = [esp(spi, UDP(sport=5000, dport=n) / Raw(TEXT), number=n) for n in range(1, 41)]
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        lists = [packets[n : n + 8] for n in range(0, 40, 8)]
        asked = [a.post([one.frame for one in some], some[0].info(out)) for some in lists]
        assert [a.completion(one).status for one in asked] == [NdisStatus.SUCCESS] * 5
        received = [b.receive() for _ in packets]
    assert all(one.info is not None and one.info.verified for one in received)
    assert [opened(one, len(packed.inner)) for one, packed in zip(received, packets, strict=True)] == [
        packed.inner for packed in packets
    ]


@pytest.mark.rule(166, 189, 194, 195, 200)
@pytest.mark.parametrize("version", [1, 2])
def test_a_large_send_is_segmented_and_every_segment_sealed(nics: Nics, version: int) -> None:
    spi, mss = next(_spis), 1200
    payload = os.urandom(20 * mss + 77)
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True)
    segment = bytes(TCP(sport=4000, dport=80, seq=1000, flags="PA", chksum=pseudo_header_sum())) + payload
    body = struct.pack(">II", spi, 1) + bytes(IV) + segment
    length = 0 if version == 2 else 20 + len(body)
    frame = bytes(ETHERNET / IP(src=A, dst=B, proto=50, len=length, chksum=0) / Raw(body))
    info = TransmitInfo(out, OffloadHandle(0), 6, 0, 0, 20, LargeSend(mss, 0, version, False))
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        completion = a.send([frame], info)
        assert completion.status is NdisStatus.SUCCESS
        # Bits 0-29 are TcpPayload of LSOv1 and zero of LSOv2; bit 30 is the type (sheet §5.5).
        assert completion.slots.large_send == (1 << 30 if version == 2 else len(payload))
        received = [b.receive() for _ in range(21)]
    assert all(one.info is not None and one.info.verified for one in received)
    got = b""
    for number, one in enumerate(received):
        packet = Ether(bytes(one.frame))[IP]
        assert struct.unpack_from(">II", one.frame, 34) == (spi, 1 + number)
        assert one.info is not None
        end = packet.len - 20 - 8 - IV - ICV - 2 - one.info.pad_length
        tcp = TCP(opened(one, end))
        assert (tcp.seq, tcp.sport) == (1000 + number * mss, 4000)
        assert ("P" in tcp.flags) is (number == 20)
        fresh = IP(src=A, dst=B) / TCP(bytes(tcp))
        told = fresh[TCP].chksum
        del fresh[TCP].chksum
        assert IP(bytes(fresh))[TCP].chksum == told
        got += bytes(tcp.payload)
    assert got == payload


def pseudo_header_sum() -> int:
    """Sum of the pseudo-header without length, as a transport leaves it for LSO (sheet §8)."""
    data = socket.inet_aton(A) + socket.inet_aton(B) + bytes((0, 6))
    total = sum(struct.unpack(">5H", data))
    return (total & 0xFFFF) + (total >> 16)


@pytest.mark.rule(206, 208, 210)
def test_sas_survive_a_reset_that_the_driver_hears_of(nics: Nics) -> None:
    spi = next(_spis)
    packed = esp(spi, DATAGRAM)
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True)
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        nics.daemon.call(ResetAdapter(name="left"))
        assert [a.status().code for _ in range(2)] == [IndicationCode.RESET_START, IndicationCode.RESET_END]
        assert a.send([packed.frame], packed.info(out)).status is NdisStatus.SUCCESS
        received = b.receive()
    assert received.info is not None
    assert received.info.verified


def test_the_driver_on_an_event_loop_does_the_same(nics: Nics) -> None:
    spi = next(_spis)
    packets = [esp(spi, UDP(sport=5000, dport=n) / Raw(TEXT), number=n) for n in range(1, 101)]
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True)

    async def work() -> list[Received]:
        async with (
            await Client.connect(str(nics.daemon.socket)) as client,
            await Driver.attach_to(client, "left") as a,
            await Driver.attach_to(client, "right") as b,
        ):
            assert a.current_config
            ends = await asyncio.gather(*(a.send([one.frame], one.info(out)) for one in packets))
            assert {one.status for one in ends} == {NdisStatus.SUCCESS}
            received: list[Received] = []
            async for indicated in b.indications():
                assert isinstance(indicated, Received)
                received.append(indicated)
                if len(received) == len(packets):
                    break
            assert b.lost == 0
            return received

    received = nics.run(work())
    assert all(one.info is not None and one.info.verified for one in received)


def test_a_second_driver_is_told_why_it_cannot_attach(nics: Nics) -> None:
    with (
        BlockingDriver(nics.path("left")),
        pytest.raises(ControlError, match="another protocol driver is attached"),
    ):
        BlockingDriver(nics.path("left"))
    BlockingDriver(nics.path("left")).close()


def test_one_who_is_not_root_cannot_attach(nics: Nics) -> None:
    path = nics.path("left")
    assert os.stat(path).st_mode & 0o777 == 0o600
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            BlockingDriver(path)
        except ControlError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_messages_that_lie_cost_nobody_anything(nics: Nics) -> None:
    with BlockingDriver(nics.path("left")) as a, BlockingDriver(nics.path("right")) as b:
        for length in (1, 16, HEADER_LENGTH - 1, HEADER_LENGTH, 500):
            a.write(b"\xff" * length)
            a.write(struct.pack("<HBBIQII", 1, 1, 0, 0, length, 0xFFFFFFFF, 72).ljust(length, b"\0")[:length])
        a.write(
            struct.pack("<HBBIQII", 1, 1, 0, 0, 99, 1, 72).ljust(72, b"\0") + struct.pack("<II", 80, 10**9)
        )
        assert a.completion(99).status is NdisStatus.INVALID_LENGTH
        a.send([b"\2\0\0\0\0\2\2\0\0\0\0\1\x88\xb5after"])
        assert bytes(b.receive().frame).endswith(b"after")
    (statistics,) = nics.daemon.call(GetStatistics(adapter="left")).adapters
    assert statistics.nbl is not None
    assert statistics.nbl.messages_refused >= 10
    assert statistics.forwarder_errors == 0


def test_the_c_example_sends_and_receives(nics: Nics, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests need a C compiler"
    built = tmp_path / "driver"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", built, EXAMPLE], check=True, timeout=60
    )
    spi = next(_spis)
    out = nics.offload("left", spi, inbound=False)
    nics.offload("right", spi, inbound=True)
    receiver = subprocess.Popen(
        [built, nics.path("right"), "0", "0", "receive"], stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout is not None
    try:
        lines = [receiver.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("status indication 0x40020007, buffer of ")
        assert lines[1].startswith("status indication 0x40020006, buffer of ")
        assert lines[2] == "attached\n"
        sender = subprocess.run(
            [built, nics.path("left"), str(out), hex(spi), "send"],
            check=True,
            timeout=10,
            capture_output=True,
            text=True,
        )
        assert sender.stdout.endswith("attached\nsend 1 completed with status 0x00000000\n")
        told, _ = receiver.communicate(timeout=10)
    finally:
        receiver.kill()
        receiver.wait(10)
        receiver.stdout.close()
    assert told == (
        "received 94 bytes, CryptoDone 1, NextCryptoDone 0, CryptoStatus 0, NextHeader 17, PadLength 0, "
        "text 'sealed by the NIC'\n"
    )
    failed = subprocess.run(
        [built, nics.path("left"), "12345", hex(spi), "send"],
        timeout=10,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stdout.endswith("send 1 completed with status 0xc0000001\n")


def test_the_commands_in_the_c_example_work_as_they_stand(tmp_path: Path) -> None:
    assert shutil.which("jq"), "the example uses jq"
    text = EXAMPLE.read_text()
    commands = re.findall(r"^ \*     (.*)$", text[: text.index("*/")], re.MULTILINE)
    assert len(commands) >= 12
    with vnicd_in(tmp_path) as daemon:
        daemon.write("")
        daemon.start()
        for name in ("driver.c", "vnic_nbl.h"):
            shutil.copy(EXAMPLE.with_name(name), tmp_path)
        script = "\n".join(("set -e", f'vnic() {{ "{VNIC}" -S "{daemon.socket}" "$@"; }}', *commands))
        done = subprocess.run(
            ["bash", "-c", script.replace("/run/vnic", str(tmp_path))],
            cwd=tmp_path,
            timeout=60,
            capture_output=True,
            text=True,
            check=False,
        )
        daemon.end()
    assert done.returncode == 0, done.stderr
    assert "send 1 completed with status 0x00000000" in done.stdout
    assert "text 'sealed by the NIC'" in done.stdout


def test_an_external_nic_speaks_with_a_protected_host(
    nics: Nics, namespaces: Namespaces, tmp_path: Path
) -> None:
    """A driver pings a host behind an inline adapter; both directions are protected."""
    host = namespaces.create("h", ipv6=False)
    there, here = "10.78.0.1", "10.78.0.2"
    spi = next(_spis)
    call = nics.daemon.call
    call(AddAdapter(name="nic2", transport="external"))
    try:
        call(
            AddAdapter(
                name="host",
                tap=namespaces.device("t0"),
                netns=host.name,
                addresses=[f"{there}/24"],
                mac="02:00:00:00:00:02",
                wire=Wire(kind="link", name="nic2"),
            )
        )
        call_sas(call, here, there, spi)
        nics.switch_on("nic2")
        out = nics.offload("nic2", spi, inbound=False, ends=(here, there))
        nics.offload("nic2", spi + 1, inbound=True, ends=(there, here))
        with BlockingDriver(nics.path("nic2")) as driver:
            answer_arp(driver, here)
            packed = esp(spi, ICMP(type=8, id=7, seq=1) / Raw(TEXT), ends=(here, there))
            driver.send([packed.frame], packed.info(out))
            received = await_esp(driver, here)
        assert received.info is not None
        assert received.info.verified
        reply = ICMP(opened(received, len(packed.inner)))
        assert (reply.type, reply.id, bytes(reply.payload)) == (0, 7, TEXT)
        assert len(call(ListSas(adapter="nic2")).sas) == 2
        (statistics,) = call(GetStatistics(adapter="host")).adapters
        assert (statistics.card.rx_offloaded, statistics.card.tx_offloaded) == (1, 1)
    finally:
        next(_spis)
        for name in ("host", "nic2"):
            if any(one.name == name for one in call(ListAdapters()).adapters):
                call(DeleteAdapter(name=name))
    assert not os.path.exists(tmp_path / "nic2.nbl")


def call_sas(call: Any, here: str, there: str, spi: int) -> None:
    """Give the inline adapter its SAs and policies: in from the driver, out to it."""
    for src, dst, number, way in ((here, there, spi, "in"), (there, here, spi + 1, "out")):
        call(
            AddSa(
                adapter="host",
                sa=Sa(
                    src=src,
                    dst=dst,
                    proto="esp",
                    spi=number,
                    direction=way,  # type: ignore[arg-type]
                    encryption="aes-gcm-128",
                    encryption_key=key_of(number).hex(),
                ),
            )
        )
        call(
            AddPolicy(
                adapter="host",
                policy=Policy(
                    direction=way,  # type: ignore[arg-type]
                    selector=Selector(src=f"{src}/32", dst=f"{dst}/32"),
                    action="protect",
                    templates=[Template(proto="esp", mode="transport")],
                ),
            )
        )


def answer_arp(driver: BlockingDriver, here: str) -> None:
    """Tell the host whose address that is, unasked."""
    mac = "02:00:00:00:00:01"
    announcement = Ether(src=mac, dst="02:00:00:00:00:02") / ARP(
        op=1, hwsrc=mac, psrc=here, hwdst="00:00:00:00:00:00", pdst="10.78.0.1"
    )
    driver.send([bytes(announcement)])


def await_esp(driver: BlockingDriver, here: str) -> Received:
    for _ in range(50):
        received = driver.receive()
        packet = Ether(bytes(received.frame))
        if IP in packet and packet[IP].proto == 50 and packet[IP].dst == here:
            return received
    raise AssertionError("no ESP packet came")
