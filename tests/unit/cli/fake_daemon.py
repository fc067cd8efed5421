"""A daemon that is only a memory: the real server on a real socket, answers from a table.

Law: nothing here knows what a command should send; it notes what came and answers what the test said.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from vnic.control import interface as api
from vnic.control.access import Access, Peer
from vnic.control.server import Server

Reply = TypeVar("Reply")

Answer = object | Exception | Callable[[Any], object]


class Memory:
    """The service: requests as they came, answers as they were set."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.answers: dict[type[Any], Answer] = dict(DEFAULTS)
        self.events: list[api.Event] = []
        self.nbls: list[api.Nbl] = []

    def answer(self, request: api.Call[Reply]) -> Awaitable[Reply]:
        return self._answer(request)

    async def _answer(self, request: api.Call[Reply]) -> Reply:
        self.requests.append(request)
        answer = self.answers[type(request)]
        if callable(answer) and not isinstance(answer, type):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return cast(Reply, answer)

    async def stream(self, request: api.Call[Reply]) -> AsyncIterator[Reply]:
        if request.parts:
            # One part for each element, as a long answer comes.
            answer = cast(api.SasReply, await self._answer(request))
            for sa in answer.sas or [None]:
                yield cast(Reply, api.SasReply(sas=[] if sa is None else [sa]))
            return
        self.requests.append(request)
        if isinstance(request, api.WatchNbls):
            for nbl in self.nbls:
                yield cast(Reply, api.NblReply(nbl=nbl))
            return
        for event in self.events:
            yield cast(Reply, api.MonitorReply(event=event))


class FakeDaemon:
    """The server on a thread of its own. `uid` is whom it takes every caller for."""

    def __init__(self, directory: Path, uid: int = 0) -> None:
        self.path = str(directory / "vnic.sock")
        self.memory = Memory()
        self._uid = uid
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.path)
        listening.listen()
        server = Server(
            self.memory,
            Access(readers=12345),
            peer_of=lambda connection: Peer(1, self._uid, frozenset({12345})),
        )
        self._loop.run_until_complete(server.start(listening))
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(server.close(0))
        self._loop.close()

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        assert not self._thread.is_alive()


# ------------------------------------------------------------------------------------------- samples

PORT = api.PortStatistics(rx_frames=10, rx_bytes=1000, tx_frames=20, tx_bytes=2000)
CARD = api.CardStatistics(
    tx_offloaded=7,
    rx_offloaded=8,
    tx_bypassed=1,
    rx_bypassed=2,
    tx_passed=3,
    rx_passed=4,
    tx_software=5,
    rx_software=6,
    tx_fragmented=9,
    tx_fragments=19,
    rx_fragments=16,
    rx_reassembled=8,
    rx_path_mtu=13,
    tx_dummies=25,
    tx_reassembled=24,
    tx_prohibited_answered=20,
    tx_prohibited_unanswered=21,
    rx_prohibited_answered=22,
    rx_prohibited_unanswered=23,
    rx_peer_moved=14,
    tx_nat_keepalives=15,
    tx_too_big_answered=11,
    tx_too_big_unanswered=12,
)
ADAPTER = api.AdapterState(
    name="left",
    state="running",
    reason="",
    engine="reference",
    tap=api.TapState(
        name="vnic0",
        netns="red",
        mac="02:00:00:00:00:01",
        mtu=1422,
        mtu_default=True,
        addresses=["10.1.0.1/24", "192.0.2.1/24"],
        up=True,
        attached=False,
        features={"tx-checksumming": "on", "tx-udp-segmentation": "off: the kernel refused"},
        queues=1,
    ),
    wire=api.WireState(kind="link", name="right", netns=None, mtu=1500, features={}),
    non_ip="pass",
    fragments="drop",
    policy_default_in="allow",
    policy_default_out="block",
    fragmentation="before",
    vlan="protect",
    prohibited="silent",
    reassembly=4 << 20,
    cipher_limits="warn",
    capture=None,
    sa_count=2,
    policy_count=2,
    card=CARD,
    tap_statistics=PORT,
    wire_statistics=PORT,
    transport="inline",
    nbl_socket=None,
    driver=False,
    software=True,
    keywords={"*IPsecOffloadV1IPv4": 3, "*IPsecOffloadV2": 3, "*IPsecOffloadV2IPv4": 3},
    load_balancing=None,
    wire_faults=[],
    filler_sas=0,
)
EXTERNAL = replace(
    ADAPTER,
    name="bare",
    state="paused",
    tap=None,
    tap_statistics=None,
    non_ip=None,
    fragments=None,
    policy_default_in=None,
    policy_default_out=None,
    fragmentation=None,
    vlan=None,
    prohibited=None,
    reassembly=None,
    cipher_limits=None,
    policy_count=0,
    transport="external",
    nbl_socket="/run/vnic/bare.nbl",
    driver=True,
    software=False,
    keywords={"*IPsecOffloadV1IPv4": 3, "*IPsecOffloadV2": 2, "*IPsecOffloadV2IPv4": 3},
)
SA_OUT = api.Sa(
    src="192.0.2.1",
    dst="192.0.2.2",
    proto="esp",
    spi=0x101,
    mode="tunnel",
    direction="out",
    encryption="aes-gcm-128",
    icv_length=128,
    esn=False,
    replay_window=1024,
    reqid=1,
    sequence_number=2,
    ah_alignment=8,
    decap_dscp=False,
    no_ecn=False,
    no_pmtu_discovery=False,
)
SA_IN = api.Sa(
    src="2001:db8::2",
    dst="2001:db8::1",
    proto="esp",
    spi=0x201,
    mode="transport",
    direction="in",
    encryption="des-cbc",
    integrity="hmac-sha256-128",
    icv_length=96,
    esn=True,
    replay_window=64,
    reqid=0,
    selector=api.Selector(src="2001:db8::/32", dst="::/0", proto=6, sport=None, dport=80),
    sequence_number=(1 << 32) + 5,
    ah_alignment=8,
    decap_dscp=True,
    no_ecn=True,
    no_pmtu_discovery=True,
)
STATE_OUT = api.SaState(
    adapter="left",
    sa=SA_OUT,
    handle=1,
    weak=[],
    packets=2,
    bytes=168,
    drops={},
    replay_bitmap="",
    added="2026-01-02T03:04:05.000000Z",
    used="2026-01-02T03:04:06.000000Z",
    offload="nic",
)
STATE_IN = api.SaState(
    adapter="left",
    sa=SA_IN,
    handle=2,
    weak=["des-cbc: 56-bit key: broken by exhaustive search (RFC 8221)"],
    packets=5,
    bytes=420,
    drops={"in_icv": 3, "in_replay_duplicate": 1},
    replay_bitmap="1f",
    added="2026-01-02T03:04:05.000000Z",
    used=None,
    offload="software",
)
POLICY_OUT = api.PolicyState(
    adapter="left",
    policy=api.Policy(
        direction="out",
        selector=api.Selector(src="10.1.0.0/24", dst="10.2.0.0/24", proto=6, dport=80),
        action="protect",
        templates=[
            api.Template(proto="esp", mode="tunnel", src="192.0.2.1", dst="192.0.2.2", reqid=1, spi=0)
        ],
        priority=7,
        index=1,
    ),
)
POLICY_IN = api.PolicyState(
    adapter="left",
    policy=api.Policy(
        direction="in",
        selector=api.Selector(src="10.2.0.0/24", dst="10.1.0.0/24", proto=0),
        action="discard",
        templates=[],
        priority=0,
        index=2,
    ),
)
TESTED = api.TestPolicyReply(
    adapter="left",
    direction="out",
    sport=None,
    dport=None,
    verdict="bypass",
    drop=None,
    policy=None,
    templates=[],
)
DROP = api.DropCount(
    name="in_icv",
    text="the integrity check failed",
    xfrm_stat="XfrmInStateProtoError",
    place="card",
    packets=3,
)
STATISTICS = api.AdapterStatistics(
    adapter="left",
    card=CARD,
    tap=PORT,
    wire=PORT,
    drops=[DROP],
    forwarder_errors=0,
    sa_count=2,
    sas=[STATE_OUT, STATE_IN],
    nbl=None,
    wire_faults=[],
    punts=None,
)
NDIS = api.NdisCapabilities(
    encapsulation=2,
    ipv6_supported=True,
    ipv4_options=True,
    ipv6_non_ipsec_extension_headers=True,
    ah=True,
    esp=True,
    ah_esp_combined=True,
    transport=True,
    tunnel=True,
    transport_tunnel_combined=True,
    lso_supported=False,
    extended_sequence_numbers=True,
    udp_esp=0,
    authentication_algorithms=0x3F,
    encryption_algorithms=0x1FF,
    sa_offload_capacity=131072,
)
V1 = api.V1State(
    encapsulation=6,
    ah_esp_combined=True,
    transport_tunnel_combined=True,
    ipv4_options=True,
    udp_esp=15,
    ah_md5=True,
    ah_sha1=True,
    ah_transport=True,
    ah_tunnel=True,
    ah_send=True,
    ah_receive=True,
    esp_des=True,
    esp_triple_des=True,
    esp_null=True,
    esp_transport=True,
    esp_tunnel=True,
    esp_send=True,
    esp_receive=True,
)
CAPABILITIES = api.AdapterCapabilities(
    adapter="left",
    engine="reference",
    ndis=NDIS,
    encryptions=[
        api.AlgorithmCapability(
            name="aes-gcm-128",
            kernel_name="rfc4106(gcm(aes))",
            ndis_identifier=8,
            supported=True,
            key_length=160,
            salt_length=32,
            icv_lengths=[128, 96, 64],
            weak="",
            source="RFC 4106",
        ),
        api.AlgorithmCapability(
            name="des-cbc",
            kernel_name="cbc(des)",
            ndis_identifier=2,
            supported=False,
            key_length=64,
            salt_length=0,
            icv_lengths=[],
            weak="56-bit key",
            source="RFC 2405",
        ),
    ],
    integrities=[],
    tap_features={"tx-checksumming": "on"},
    wire_features={},
    hardware=NDIS,
    v1=V1,
    v1_hardware=V1,
    features=[
        api.Feature(name="esp", hardware=True, enabled=True, reason=""),
        api.Feature(name="ah", hardware=True, enabled=False, reason="keyword *IPsecOffloadV2 is 2 (ESP)"),
        api.Feature(name="esn", hardware=False, enabled=False, reason="the hardware cannot"),
        api.Feature(name="encryptions.aes-gcm-128", hardware=True, enabled=True, reason=""),
        api.Feature(name="encryptions.des-cbc", hardware=False, enabled=False, reason="the hardware cannot"),
        api.Feature(name="v1.ah_send", hardware=True, enabled=False, reason="no OID_OFFLOAD_ENCAPSULATION"),
    ],
    sas_offloaded=2,
)
SA_REPLY = api.SaReply(
    adapter="left",
    direction="out",
    handle=3,
    status=0,
    status_name="NDIS_STATUS_SUCCESS",
    weak=[],
    offload="nic",
    message="",
)
OID_REPLY = api.OidReply(
    oid=0xFC01020B,
    oid_name="OID_TCP_OFFLOAD_CURRENT_CONFIG",
    status=0,
    status_name="NDIS_STATUS_SUCCESS",
    information_buffer="p/8OAAAB",
    bytes_read=0,
    bytes_written=6,
    bytes_needed=0,
    supported_revision=3,
    handles=[],
    message="",
    field="",
    value="",
    allowed="",
)
NBL_SEND = api.Nbl(
    adapter="left",
    direction="send",
    time="2026-01-02T03:04:05.000000Z",
    frame="0200000000020200000000010800450000340000400040320000c0000201c0000202000001010000000201020304",
    length=66,
    status=0,
    status_name="NDIS_STATUS_SUCCESS",
    reason="",
    oob=api.Oob(
        checksum=0,
        ipsec=1,
        large_send=0,
        tunnel=0,
        header=0x05000204,
        members={"OffloadHandle": "0x1", "NextHeader": "4", "PadLength": "2"},
    ),
    lost=0,
)
NBL_RECEIVE = replace(
    NBL_SEND,
    direction="receive",
    oob=api.Oob(checksum=0, ipsec=2, large_send=0, tunnel=0, header=0, members={"CryptoDone": "1"}),
    lost=3,
)
DEFAULTS_OF_LEFT = [api.PolicyDefault(adapter="left", inbound="allow", outbound="block")]
SUBSCRIBED = api.Event(
    sequence_number=4, time="2026-01-02T03:04:05.000000Z", kind="subscribed", text="listening begins"
)
SA_ADDED = api.Event(
    sequence_number=5,
    time="2026-01-02T03:04:06.000000Z",
    kind="sa_added",
    text="adapter left: SA out esp spi 0x00000101 dst 192.0.2.2 added",
    adapter="left",
    sa=api.SaName(dst="192.0.2.2", proto="esp", spi=0x101, direction="out", src="192.0.2.1"),
    handle=1,
)
LOST = api.Event(
    sequence_number=9, time="2026-01-02T03:04:07.000000Z", kind="lost", text="4 events lost", lost=4
)
ADDED_ELSEWHERE = api.Event(
    sequence_number=10,
    time="2026-01-02T03:04:08.000000Z",
    kind="adapter_added",
    text="adapter right: added",
    adapter="right",
)

DEFAULTS: dict[type[Any], Answer] = {
    api.AddAdapter: api.AdapterReply(adapter=ADAPTER),
    api.SetAdapter: api.AdapterReply(adapter=ADAPTER),
    api.DeleteAdapter: api.NoReply(),
    api.ResetAdapter: api.AdapterReply(adapter=ADAPTER),
    api.PauseAdapter: api.AdapterReply(adapter=ADAPTER),
    api.ResumeAdapter: api.AdapterReply(adapter=ADAPTER),
    api.RestartAdapter: api.AdapterReply(adapter=ADAPTER),
    api.RemoveAdapter: api.AdapterReply(adapter=ADAPTER),
    api.SetWireFaults: api.AdapterReply(adapter=ADAPTER),
    api.DoWireFault: api.AdapterReply(adapter=ADAPTER),
    api.ClearWireFaults: api.AdapterReply(adapter=ADAPTER),
    api.OidRequest: OID_REPLY,
    api.CancelOidRequest: api.CancelReply(count=1),
    api.ListAdapters: api.AdaptersReply(adapters=[ADAPTER]),
    api.AddSa: SA_REPLY,
    api.ReplaceSa: SA_REPLY,
    api.UpdateSa: SA_REPLY,
    api.DeleteSa: SA_REPLY,
    api.RekeySas: lambda request: api.RekeyReply(sas=[SA_REPLY for _ in request.sas]),
    api.RequestSaDeletion: SA_REPLY,
    api.FlushSas: api.FlushSasReply(count=2, status=0, status_name="NDIS_STATUS_SUCCESS"),
    api.ListSas: api.SasReply(sas=[STATE_OUT, STATE_IN]),
    api.AddPolicy: lambda request: api.PolicyReply(adapter="left", policy=request.policy),
    api.DeletePolicy: api.PolicyReply(adapter="left", policy=POLICY_OUT.policy),
    api.FlushPolicies: api.FlushPoliciesReply(count=1),
    api.ListPolicies: api.PoliciesReply(policies=[POLICY_OUT, POLICY_IN]),
    api.TestPolicy: lambda request: TESTED,
    api.SetPolicyDefault: api.PolicyDefaultsReply(defaults=DEFAULTS_OF_LEFT),
    api.GetPolicyDefault: api.PolicyDefaultsReply(defaults=DEFAULTS_OF_LEFT),
    api.ListDropReasons: api.DropReasonsReply(
        reasons=[
            api.DropReasonText(name=DROP.name, text=DROP.text, xfrm_stat=DROP.xfrm_stat),
            api.DropReasonText(name="out_too_big", text="too big", xfrm_stat=""),
        ]
    ),
    api.GetMtus: api.MtusReply(
        adapters=[
            api.AdapterMtu(
                adapter="left",
                wire_mtu=1500,
                mtu=1446,
                policies=[
                    api.PolicyMtu(index=1, selector=POLICY_OUT.policy.selector, overhead=54, mtu=1446),
                ],
                sas=[
                    api.SaMtu(
                        sa=api.SaName(
                            dst="192.0.2.2", proto="esp", spi=0x201, direction="out", src="192.0.2.1"
                        ),
                        mode="tunnel",
                        path_mtu=1300,
                        path_known_s=599.6,
                        overhead=54,
                        mtu=1246,
                    )
                ],
            )
        ]
    ),
    api.GetStatistics: api.StatisticsReply(adapters=[STATISTICS]),
    api.GetCapabilities: api.CapabilitiesReply(adapters=[CAPABILITIES]),
    api.ExportKeys: api.KeysReply(lines=['"IPv4","192.0.2.1"', '"IPv6","2001:db8::2"']),
    api.GetDaemon: api.DaemonReply(
        version="0.1.0",
        engine="reference",
        ciphers="OpenSSL 3.5.4 30 Sep 2025",
        engine_reason="vnic-native is not installed",
        pid=42,
        started="2026-01-02T03:04:05.000000Z",
        uptime_s=12.3,
        loop="uvloop",
        config=None,
        adapter_count=1,
    ),
}
