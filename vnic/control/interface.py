"""The Varlink interface io.vnic.Adapter, derived from the Python types below.

Law: messages only. Every method is a dataclass, `Call[Reply]`, whose fields are its parameters; client,
server and the published interface file all read the same classes. A key is hexadecimal text, and a field
that holds one never shows in `repr`.

What is optional on input is None by default; what a method changes is either done whole or refused whole.
This module does without postponed annotations: asyncvarlink reads the types as objects.

Source: https://varlink.org/Interface-Definition; NDIS members by the names of the sheet.
"""

import dataclasses
import inspect
import logging
import sys
import typing
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from asyncvarlink import TypedVarlinkErrorReply, VarlinkInterface, varlinkmethod

from vnic.errors import RequestError, VnicError

log = logging.getLogger(__name__)

INTERFACE = "io.vnic.Adapter"

DirectionWord = Literal["in", "out"]
ProtocolWord = Literal["esp", "ah"]
ModeWord = Literal["transport", "tunnel"]
ActionWord = Literal["protect", "bypass", "discard"]
DefaultWord = Literal["allow", "block"]
CipherLimitsWord = Literal["warn", "enforce"]
NonIpWord = Literal["pass", "drop"]
FragmentationWord = Literal["before", "after"]
VerdictWord = Literal["protect", "bypass", "drop"]
FragmentsWord = Literal["drop", "any", "stateful"]
VlanWord = Literal["protect", "pass", "drop"]
ProhibitedWord = Literal["silent", "answer"]
DfWord = Literal["copy", "set", "clear"]
WireWord = Literal["none", "link", "netdev", "tap", "udp"]
CaptureWord = Literal["off", "wire", "tap"]
StateWord = Literal["running", "failed", "paused", "resetting", "removed"]
PlaceWord = Literal["card", "tap", "wire", "nbl"]
TransportWord = Literal["inline", "external"]
OffloadWord = Literal["nic", "software", "none"]
UdpEspWord = Literal["udp_transport", "udp_tunnel", "transport_over_udp_tunnel", "udp_transport_over_tunnel"]
RequestTypeWord = Literal["query", "set"]
NblDirectionWord = Literal["send", "receive"]
WireDirectionWord = Literal["tx", "rx"]
AimWord = Literal["flip_icv", "replay", "hold", "release", "truncate", "stall", "fill"]
EventWord = Literal[
    "subscribed",
    "lost",
    "daemon_reloaded",
    "daemon_stopping",
    "adapter_added",
    "adapter_changed",
    "adapter_failed",
    "adapter_deleted",
    "sa_added",
    "sa_updated",
    "sa_deleted",
    "sa_rekeyed",
    "sa_withheld",
    "sa_expiring",
    "sa_expired",
    "policy_added",
    "policy_updated",
    "policy_deleted",
    "policy_default_changed",
    "sequence_low",
    "sequence_exhausted",
    "cipher_limit",
    "peer_moved",
    "drop",
    "status_indication",
    "load_balancing",
]

Reply_co = TypeVar("Reply_co", covariant=True)

Message = TypeVar("Message")


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[Message]) -> type[Message]:
    """Make a struct type of the interface, or a reply."""
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def call(cls: type[Message]) -> type[Message]:
    """Make a method of the interface."""
    return dataclass(frozen=True, kw_only=True)(cls)


class Call(Generic[Reply_co]):
    """A method: its fields are the parameters, its type argument is the dataclass of the reply."""

    reader: ClassVar[bool] = False
    """Whether one who may only look may call it; all else needs an administrator."""
    streams: ClassVar[bool] = False
    """Whether replies follow one another until the caller goes."""
    parts: ClassVar[bool] = False
    """Whether a caller who takes more than one reply (`more`) gets a long answer in parts."""

    def shows_keys(self) -> bool:
        """Whether this very call asks for keys."""
        return False

    def open_to_reader(self) -> bool:
        """Whether one who may only look may make this very call."""
        return self.reader and not self.shows_keys()

    @classmethod
    def reply_type(cls) -> type[Reply_co]:
        """The dataclass of the reply."""
        (base,) = (base for base in cls.__dict__["__orig_bases__"] if typing.get_origin(base) is Call)
        (reply,) = typing.get_args(base)
        return typing.cast("type[Reply_co]", reply)


# ------------------------------------------------------------------------------------------ values


@value
class Wire:
    """What the card is plugged into."""

    kind: WireWord
    name: str | None = None
    """link: the other adapter; netdev, tap: the device."""
    netns: str | None = None
    """Namespace of the device or socket; null is the daemon's own."""
    local: str | None = None
    """udp: address to bind, with or without a port: "192.0.2.1:4500", "[2001:db8::1]:4500", "192.0.2.1"."""
    remote: str | None = None
    """udp: the other end, likewise."""
    keepalive: int | None = None
    """udp: seconds without a datagram after which a keepalive is sent (20); 0 is never."""
    follow: bool | None = None
    """udp: whether the other end may move: to where an authenticated packet newer than all before came from
    (false)."""


@value
class Capture:
    """A recording of what passes one side of the card, in pcapng."""

    place: CaptureWord
    """Which side; "off" ends the recording."""
    file: str | None = None
    """Absolute path of a file that does not exist yet."""


@value
class V1Capabilities:
    """NDIS_IPSEC_OFFLOAD_V1: what a card can do by the V1 OIDs; null is the default, which is all."""

    enabled: bool | None = None
    """False: a card without V1."""
    ah_esp_combined: bool | None = None
    transport_tunnel_combined: bool | None = None
    ipv4_options: bool | None = None
    udp_esp: list[UdpEspWord] | None = None
    ah_md5: bool | None = None
    ah_sha1: bool | None = None
    ah_transport: bool | None = None
    ah_tunnel: bool | None = None
    ah_send: bool | None = None
    ah_receive: bool | None = None
    esp_des: bool | None = None
    esp_triple_des: bool | None = None
    esp_null: bool | None = None
    esp_transport: bool | None = None
    esp_tunnel: bool | None = None
    esp_send: bool | None = None
    esp_receive: bool | None = None


@value
class Capabilities:
    """What a card can do, to model a particular one; null is the default, which is all."""

    encryptions: list[str] | None = None
    """Names of the algorithm table."""
    integrities: list[str] | None = None
    ah: bool | None = None
    esp: bool | None = None
    ah_esp_combined: bool | None = None
    transport: bool | None = None
    tunnel: bool | None = None
    transport_tunnel_combined: bool | None = None
    ipv4_options: bool | None = None
    ipv6: bool | None = None
    ipv6_extension_headers: bool | None = None
    esn: bool | None = None
    lso: bool | None = None
    """Large send offload of IPsec traffic."""
    udp_esp: list[UdpEspWord] | None = None
    sa_capacity: int | None = None
    """SA bundles that fit."""
    v1: V1Capabilities | None = None


@value
class CaptureState:
    """A recording under way, or one that a full disk or its limit has ended."""

    place: CaptureWord
    file: str
    state: str
    """"on" or "off: REASON"."""
    frames_written: int
    frames_lost: int
    """Frames not recorded because the disk was too slow or refused."""


@value
class Selector:
    """Which packets. For ICMP sport is the type and dport the code, for a mobility header sport is the type;
    null matches any. src or dst is given."""

    src: str | None = None
    """Prefix such as 192.0.2.0/24; null is all of the family of dst."""
    dst: str | None = None
    proto: int | None = None
    sport: int | None = None
    dport: int | None = None
    sport_last: int | None = None
    """Last of a range that sport begins; null is sport alone."""
    dport_last: int | None = None


@value
class Lifetime:
    """When an SA should be replaced (soft, told once by sa_expiring) and when it ends (hard, told by
    sa_expired; it is gone then). Null or 0 is no limit."""

    time_soft: int | None = None
    """Seconds since it was added."""
    time_hard: int | None = None
    time_use_soft: int | None = None
    """Seconds since its first packet."""
    time_use_hard: int | None = None
    byte_soft: int | None = None
    """As SaState.bytes counts."""
    byte_hard: int | None = None
    packet_soft: int | None = None
    """As SaState.packets counts."""
    packet_hard: int | None = None


@value
class Encapsulation:
    """The UDP header in front of ESP (`encap espinudp` of `ip xfrm`)."""

    sport: int
    """Source port of the SA's packets; of an inbound SA 0 is any."""
    dport: int
    oaddr: str | None = None
    """What a peer behind a NAT calls itself, for checksums in transport mode; null: not known."""
    follow: bool | None = None
    """Inbound: answers go where authenticated packets come from, when that changes. Null is no."""
    keepalive: int | None = None
    """Outbound: seconds without a packet after which a NAT keepalive is sent; null is 20, 0 is never."""


@value
class Peer:
    """Where the far end of an SA with UDP encapsulation is."""

    address: str
    port: int


@value
class Sa:
    """One security association, as it is asked for and as it is shown."""

    src: str
    dst: str
    proto: ProtocolWord
    spi: int
    mode: ModeWord | None = None
    """Null in a request is transport. Null in an answer: either, as its packets show; so are SAs that came by
    an OID, which names no mode."""
    direction: DirectionWord | None = None
    """Null: out if src is an address of the TAP, in if dst is one."""
    encryption: str | None = None
    """Name as in the algorithm table: aes-gcm-128, aes-cbc-256, null …; null for AH."""
    encryption_key: str | None = field(default=None, repr=False)
    """Hexadecimal, key and salt together; null in answers unless keys were asked for."""
    integrity: str | None = None
    integrity_key: str | None = field(default=None, repr=False)
    icv_length: int | None = None
    """Bits; null is the algorithm's default."""
    esn: bool | None = None
    replay_window: int | None = None
    """Packets; null is the default, 0 switches the check off."""
    reqid: int | None = None
    selector: Selector | None = None
    """Traffic the SA may carry; null is all."""
    sequence_number: int | None = None
    """Out: last number used. In: highest number seen."""
    ah_alignment: int | None = None
    """4 or 8 bytes, IPv4 only."""
    decap_dscp: bool | None = None
    no_ecn: bool | None = None
    no_pmtu_discovery: bool | None = None
    """The same as df clear."""
    df: DfWord | None = None
    """Of outer IPv4 headers; null is copy."""
    hop_limit: int | None = None
    """TTL or hop limit of outer headers; null is 64, 0 copies that of the packet inside."""
    dscp: int | None = None
    """Of outer headers; null copies."""
    flow_label: int | None = None
    """Of outer IPv6 headers; null copies."""
    dummy_interval: int | None = None
    """Out: milliseconds without a packet after which an ESP tunnel sends a dummy; null or 0 is never."""
    tfc_padding: int | None = None
    """Out: bytes to which packets inside an ESP tunnel are padded, as far as the path takes them; null or 0:
    they are not."""
    lifetime: Lifetime | None = None
    """Null: it lives until it is deleted."""
    encap: Encapsulation | None = None
    """ESP only; null: ESP stands behind the IP header."""
    fresh: bool | None = None
    """Out, in requests: its key never sent anything, so that it may send although the record of sequence
    numbers was lost. Of no effect where the record is good."""


@value
class SaName:
    """What names an SA in events."""

    dst: str
    proto: ProtocolWord
    spi: int
    direction: DirectionWord | None = None
    """Null where the data path tells of it: there destination, protocol and SPI say all."""
    src: str | None = None


@value
class SaState:
    """One SA of an adapter with its live state."""

    adapter: str
    sa: Sa
    handle: int
    """Offload handle, unique in the daemon; 0 when the NIC does not hold it."""
    weak: list[str]
    """Why its algorithms should not be used."""
    packets: int
    bytes: int
    drops: dict[str, int]
    """Packets dropped, by the name of the reason."""
    replay_bitmap: str
    """In: hexadecimal; bit n is number sequence_number - n. Empty for out."""
    added: str
    """RFC 3339."""
    used: str | None
    """RFC 3339; null if it never was."""
    offload: OffloadWord
    """Who works on its packets: the NIC, software IPsec, or nobody."""
    expiring: bool = False
    """A soft limit of its lifetime is reached."""
    needed_window: int = 0
    """In: packets of the smallest replay window that would have taken every late packet so far; 0: none was
    late. Replays older than the window cannot be told from late packets, and count too."""
    reserved: int | None = None
    """Out: the last sequence number that is reserved in the state directory; null where none are kept."""
    withheld: bool = False
    """Out: it may not send: the record of sequence numbers was lost, and its key is not said to be fresh."""
    replaced: bool = False
    """In: rekeying has put another in its place; it takes what is still under way."""
    leaves: str | None = None
    """RFC 3339; when it goes because it was replaced. Null: nobody said."""
    peer: Peer | None = None
    """Where its far end is now, if it moved and was followed."""


@value
class Template:
    """Which SA a policy with action protect wants, one per IPsec header, innermost first."""

    proto: ProtocolWord
    mode: ModeWord | None = None
    src: str | None = None
    """Null in transport mode."""
    dst: str | None = None
    reqid: int | None = None
    """Null or 0 is any."""
    spi: int | None = None


@value
class Policy:
    """One entry of the SPD; lower priority is looked at first."""

    direction: DirectionWord
    selector: Selector
    action: ActionWord
    templates: list[Template] | None = None
    priority: int | None = None
    index: int | None = None
    """Given by the daemon."""


@value
class PolicyState:
    """One policy of an adapter."""

    adapter: str
    policy: Policy


@value
class PolicyDefault:
    """What happens on one adapter to packets that match no policy."""

    adapter: str
    inbound: DefaultWord
    outbound: DefaultWord


@value
class DropReasonText:
    """One row of the table of reasons."""

    name: str
    text: str
    xfrm_stat: str
    """Counter of /proc/net/xfrm_stat for the same event; empty where the kernel has none."""


@value
class DropCount:
    """Frames of one adapter that ended for one reason."""

    name: str
    text: str
    xfrm_stat: str
    place: PlaceWord
    """Where: in the card, or at one of its two ports."""
    packets: int


@value
class PortStatistics:
    """Counters of one port; rx is towards the card, tx away from it."""

    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int


@value
class CardStatistics:
    """Counters of the card, in wire packets; tx is host to wire, rx is wire to host."""

    tx_offloaded: int
    rx_offloaded: int
    tx_bypassed: int
    rx_bypassed: int
    tx_passed: int
    rx_passed: int
    tx_software: int
    """Packets the NIC may or can not seal, sealed by software IPsec."""
    rx_software: int
    tx_fragmented: int
    """Packets cut into fragments, before or after they were protected, because they did not fit."""
    tx_fragments: int
    """The fragments they were cut into."""
    rx_fragments: int
    """Fragments of ESP and AH packets that were put together."""
    rx_reassembled: int
    """The packets they made; software IPsec opens them (R17)."""
    rx_path_mtu: int
    """ICMP messages that told the path MTU of an SA and were believed."""
    tx_dummies: int
    """Dummy packets that were sent."""
    tx_reassembled: int
    """Packets of the host that were put together from fragments before transport mode protected them."""
    tx_prohibited_answered: int
    """Packets that policy discarded and that were answered by ICMP, the host's and the wire's."""
    tx_prohibited_unanswered: int
    rx_prohibited_answered: int
    rx_prohibited_unanswered: int
    rx_peer_moved: int
    """Times the far end of an SA with UDP encapsulation moved and was followed."""
    tx_nat_keepalives: int
    """NAT keepalives sent. Those that came are counted as in_nat_keepalive."""
    tx_too_big_answered: int
    """Packets that did not fit and might not be cut, whose sender was told the MTU by ICMP."""
    tx_too_big_unanswered: int
    """The same, left out to limit the rate."""


@value
class NblStatistics:
    """Counters of the NBL socket of an external transport."""

    sends: int
    """Net buffer lists the driver handed down."""
    sends_failed: int
    """Of those, completed with another status than SUCCESS."""
    indications: int
    """Frames indicated to the driver."""
    messages_refused: int
    """Messages that were no net buffer list."""


@value
class WireFaultState:
    """What one direction of a wire does to frames because it was asked to, and has done."""

    direction: WireDirectionWord
    """tx: from the card to the wire."""
    in_force: bool
    """Anything is done to frames, or some are still on their way."""
    loss: float
    """Percent, as are the next three."""
    duplicate: float
    corrupt: float
    reorder: float
    reorder_packets: int
    """How many later frames pass a reordered one."""
    delay_ms: float
    jitter_ms: float
    rate: int
    """Bits per second; 0 is no limit."""
    limit: int
    """Frames that may wait."""
    seed: int
    stalled: bool
    armed: list[str]
    """Aimed faults that wait for their packet."""
    waiting: int
    """Frames on their way or held back now."""
    counts: dict[str, int]
    """Faults done since the adapter was made, by kind."""


@value
class WireFaultCount:
    """How often a fault was done to the wire of an adapter."""

    direction: WireDirectionWord
    kind: str
    frames: int


@value
class PuntCount:
    """Frames that the native engine has left to the reference engine for one reason. They are not lost."""

    reason: str
    frames: int


@value
class AdapterStatistics:
    """All counters of one adapter."""

    adapter: str
    card: CardStatistics
    tap: PortStatistics | None
    """Null with an external transport."""
    wire: PortStatistics
    drops: list[DropCount]
    """Reasons that were counted at least once."""
    forwarder_errors: int
    """Bursts given up because of a defect; 0 on a healthy adapter."""
    sa_count: int
    sas: list[SaState]
    """Empty if they were not asked for."""
    nbl: NblStatistics | None
    """Null with the inline transport."""
    wire_faults: list[WireFaultCount]
    """Faults that the wire was asked for and did at least once."""
    punts: list[PuntCount] | None
    """What the native engine has left to the reference engine at least once; null on another engine."""


@value
class TapState:
    """The host side of an adapter."""

    name: str
    netns: str | None
    mac: str
    mtu: int
    mtu_default: bool
    """The MTU follows the wire and the policies; false when it was fixed."""
    addresses: list[str]
    up: bool
    attached: bool
    """The device was there before and stays when the adapter goes."""
    features: dict[str, str]
    """Offloads by ethtool name: "on" or "off: REASON"."""
    queues: int
    """Descriptors the device is read and written through."""


@value
class WireState:
    """The wire side of an adapter."""

    kind: WireWord
    name: str | None
    netns: str | None
    mtu: int
    features: dict[str, str]
    local: str | None = None
    """udp: the address and port that is bound."""
    remote: str | None = None
    """udp: the other end as it was set."""
    peer: str | None = None
    """udp: where datagrams go now."""
    keepalive: int | None = None
    follow: bool | None = None


@value
class AdapterState:
    """One adapter, its settings and what is in force."""

    name: str
    state: StateWord
    reason: str
    """Why it failed, else empty."""
    engine: str
    tap: TapState | None
    """Null with an external transport."""
    wire: WireState
    non_ip: NonIpWord | None
    """Null with an external transport, as are the next two."""
    policy_default_in: DefaultWord | None
    policy_default_out: DefaultWord | None
    fragmentation: FragmentationWord | None
    """When an IPv4 packet too big for a tunnel is cut; null with an external transport."""
    vlan: VlanWord | None
    prohibited: ProhibitedWord | None
    reassembly: int | None
    cipher_limits: CipherLimitsWord | None
    """Null with an external transport."""
    capture: CaptureState | None
    sa_count: int
    policy_count: int
    card: CardStatistics
    tap_statistics: PortStatistics | None
    wire_statistics: PortStatistics
    transport: TransportWord
    nbl_socket: str | None
    """Path of the socket a protocol driver attaches to; null with the inline transport."""
    driver: bool
    """Whether a protocol driver is attached."""
    software: bool
    """Whether software IPsec takes what the NIC may or can not; false with an external transport."""
    keywords: dict[str, int]
    """The registry of the adapter: standardized keywords and their values."""
    load_balancing: str | None
    """The load-balancing device above the TAP, which keeps IPsec from the NIC (R18); null is none."""
    wire_faults: list[WireFaultState]
    """Both directions of the wire, once faults were asked for; empty before."""
    filler_sas: int
    """SAs that only fill the NIC's table because that was asked for."""
    fragments: FragmentsWord | None
    """What becomes of later fragments where the policy names ports; null with an external transport."""


@value
class NdisCapabilities:
    """NDIS_IPSEC_OFFLOAD_V2, members named as there."""

    encapsulation: int
    ipv6_supported: bool
    ipv4_options: bool
    ipv6_non_ipsec_extension_headers: bool
    ah: bool
    esp: bool
    ah_esp_combined: bool
    transport: bool
    tunnel: bool
    transport_tunnel_combined: bool
    lso_supported: bool
    extended_sequence_numbers: bool
    udp_esp: int
    authentication_algorithms: int
    encryption_algorithms: int
    sa_offload_capacity: int


@value
class AlgorithmCapability:
    """One algorithm of the table and whether the NIC has it."""

    name: str
    kernel_name: str
    ndis_identifier: int
    supported: bool
    key_length: int
    """Bits, with the salt."""
    salt_length: int
    icv_lengths: list[int]
    """Bits, the default first; empty when it makes no ICV."""
    weak: str
    """Why it should not be used, else empty."""
    source: str


@value
class V1State:
    """NDIS_IPSEC_OFFLOAD_V1, members named as there."""

    encapsulation: int
    ah_esp_combined: bool
    transport_tunnel_combined: bool
    ipv4_options: bool
    udp_esp: int
    ah_md5: bool
    ah_sha1: bool
    ah_transport: bool
    ah_tunnel: bool
    ah_send: bool
    ah_receive: bool
    esp_des: bool
    esp_triple_des: bool
    esp_null: bool
    esp_transport: bool
    esp_tunnel: bool
    esp_send: bool
    esp_receive: bool


@value
class Feature:
    """One thing a card may be able to do, as `ethtool -k` lists them."""

    name: str
    """As the configuration calls it: `esn`, `encryptions.aes-gcm-128`, `udp_esp.udp_tunnel`, `v1.ah_send`."""
    hardware: bool
    """The hardware can."""
    enabled: bool
    """And it is on now."""
    reason: str
    """Why it is off, else empty."""


@value
class AdapterCapabilities:
    """What one adapter can do."""

    adapter: str
    engine: str
    ndis: NdisCapabilities
    """The current configuration."""
    encryptions: list[AlgorithmCapability]
    integrities: list[AlgorithmCapability]
    tap_features: dict[str, str]
    wire_features: dict[str, str]
    hardware: NdisCapabilities
    """What the hardware could do."""
    v1: V1State
    """The current configuration of V1."""
    v1_hardware: V1State
    features: list[Feature]
    """Everything the NIC could be able to do, whether it is on, and why not."""
    sas_offloaded: int
    """SA bundles the NIC holds now; `hardware.sa_offload_capacity` fit."""


@value
class DropEvent:
    """A packet that was dropped; at most one event of a kind, reason and SA per second."""

    name: str
    text: str
    xfrm_stat: str
    src: str
    dst: str
    sequence_number: int
    suppressed: int
    """Events of the same kind left out since the last one."""
    proto: ProtocolWord | None
    """ESP or AH, as the packet or its SA has it; null where it is neither."""
    spi: int | None
    """As the packet names it, also where there is no such SA."""
    flow_label: int
    """Of the IPv6 header that stands in clear; 0 for IPv4."""


@value
class Indication:
    """A status indication of the NIC (NDIS_STATUS_INDICATION)."""

    code: int
    name: str
    buffer: str
    """StatusBuffer, hexadecimal: an NDIS_OFFLOAD, or empty."""


@value
class Event:
    """Something that happened. Numbers rise by one per event of the daemon; a gap is a loss."""

    sequence_number: int
    """subscribed: that of the last event before. lost: that of the last one lost."""
    time: str
    """RFC 3339, UTC, microseconds."""
    kind: EventWord
    text: str
    """The same for a person."""
    adapter: str | None = None
    sa: SaName | None = None
    handle: int | None = None
    old: SaName | None = None
    """sa_rekeyed: the SA that `sa` has taken the place of."""
    policy: Policy | None = None
    drop: DropEvent | None = None
    indication: Indication | None = None
    peer: Peer | None = None
    """peer_moved: where the far end of the SA is now."""
    limit: str | None = None
    """sa_expiring, sa_expired: the limit that was reached: time-soft, … packet-hard; grace, where
    rekeying has put another in its place.
    sequence_low: 75 % or 90 %. cipher_limit: cipher-soft or cipher-hard; where that is enforced, sa_expired
    tells of cipher-hard."""
    lost: int | None = None
    """Events this subscriber did not get because it was slow."""


@value
class Oob:
    """Out-of-band information of a net buffer list, by slot of its info array: exact values, and their
    members in words."""

    checksum: int
    """Slot 0."""
    ipsec: int
    """Slot 1, V1 and V2."""
    large_send: int
    """Slot 2."""
    tunnel: int
    """Slot 11."""
    header: int
    """Slot 12."""
    members: dict[str, str]


@value
class Nbl:
    """A frame with its out-of-band information as it passed between transport and NIC."""

    adapter: str
    direction: NblDirectionWord
    time: str
    """RFC 3339, UTC, microseconds."""
    frame: str
    """Hexadecimal, cut at the length asked for: a send as it leaves, a receive before it is stripped."""
    length: int
    status: int
    """Completion status of a send; 0 for a receive."""
    status_name: str
    reason: str
    """Why the NIC refused a send, if that is to be said; else empty."""
    oob: Oob
    lost: int
    """Frames this watcher did not get before this one because it was slow."""


# ---------------------------------------------------------------------------------------- adapters


@value
class AdapterReply:
    """The adapter as it is now."""

    adapter: AdapterState


@value
class NoReply:
    """Done."""


@value
class AdaptersReply:
    """Adapters, by name."""

    adapters: list[AdapterState]


@call
class AddAdapter(Call[AdapterReply]):
    """Make an adapter: a TAP on the host side, a wire on the other. All of it, or nothing."""

    name: str
    tap: str | None = None
    """Device name; a persistent TAP of that name is attached to. Null with an external transport, which is
    the host itself; needed with the inline one."""
    netns: str | None = None
    addresses: list[str] | None = None
    """CIDR form."""
    mac: str | None = None
    mtu: int | None = None
    """Null: the wire's less what the policies in force need."""
    wire: Wire | None = None
    """Null is none."""
    non_ip: NonIpWord | None = None
    """Null is pass."""
    features_off: list[str] | None = None
    """Offloads of the TAP not to use, by ethtool name."""
    policy_default_in: DefaultWord | None = None
    """Null is allow."""
    policy_default_out: DefaultWord | None = None
    fragmentation: FragmentationWord | None = None
    """When an IPv4 packet without DF that is too big for its tunnel is cut: before it is protected, or after.
    Null is before. Transport mode, and a policy or SA that names ports, always cut after."""
    vlan: VlanWord | None = None
    """What becomes of frames with VLAN tags. Null is protect: policy governs what is behind the tags. Pass:
    they pass as they are, in clear."""
    prohibited: ProhibitedWord | None = None
    """Whether senders are told by ICMP that policy discarded their packets. Null is silent."""
    reassembly: int | None = None
    """Bytes of memory for fragments that wait for the others. Null is 4 MiB."""
    cipher_limits: CipherLimitsWord | None = None
    """Whether the limits of ciphers with 64-bit blocks are only told (warn) or end the SA (enforce). Null is
    warn."""
    transport: TransportWord | None = None
    """Null is inline. External: a protocol driver attaches to the NBL socket."""
    nbl_socket: str | None = None
    """Absolute path; null is NAME.nbl beside the control socket. External transport only."""
    software: bool | None = None
    """Whether software IPsec takes what the NIC may or can not; null is true. False: the NIC's refusal of an
    SA is the request's refusal, and such packets are dropped."""
    queues: int | None = None
    """Of the TAP, 1 to 16; null is 1. A persistent TAP must have been made for one, or for several."""
    capabilities: Capabilities | None = None
    """The card to model; null can do all."""
    keywords: dict[str, int] | None = None
    """Standardized keywords, *IPsecOffloadV1IPv4, *IPsecOffloadV2 and *IPsecOffloadV2IPv4: 0 disabled, 1 AH,
    2 ESP, 3 both. What is left out is 3."""
    fragments: FragmentsWord | None = None
    """What becomes of a later fragment where the policy names ports, which it does not show. Null is drop.
    Any: only policies without ports are looked at. Stateful: as its first fragment (RFC 4301 §7)."""


@call
class SetAdapter(Call[AdapterReply]):
    """Change an adapter; null leaves what it is. All of it, or nothing."""

    name: str
    mtu: int | None = None
    """0: back to the default."""
    mac: str | None = None
    addresses: list[str] | None = None
    """Addresses to add."""
    up: bool | None = None
    wire: Wire | None = None
    non_ip: NonIpWord | None = None
    policy_default_in: DefaultWord | None = None
    policy_default_out: DefaultWord | None = None
    fragmentation: FragmentationWord | None = None
    vlan: VlanWord | None = None
    prohibited: ProhibitedWord | None = None
    reassembly: int | None = None
    cipher_limits: CipherLimitsWord | None = None
    capture: Capture | None = None
    keywords: dict[str, int] | None = None
    """Written to the registry; in force after RestartAdapter."""
    fragments: FragmentsWord | None = None


@call
class ResetAdapter(Call[AdapterReply]):
    """Reset the NIC: sends and requests under way end with REQUEST_ABORTED, SAs survive (R204-R210)."""

    name: str
    hold_ms: int | None = None
    """Stay in reset that long, up to 60000; null is not at all."""


@call
class PauseAdapter(Call[AdapterReply]):
    """Pause the NIC: it moves no frames; sends of a driver complete with NDIS_STATUS_PAUSED."""

    name: str


@call
class ResumeAdapter(Call[AdapterReply]):
    """End a pause."""

    name: str


@call
class RestartAdapter(Call[AdapterReply]):
    """Halt the NIC and initialize it again: its SA table is emptied and the registry read anew (R40, R211).

    The inline transport then offloads its SAs again, under new handles; a driver is told and does so."""

    name: str


@call
class RemoveAdapter(Call[AdapterReply]):
    """Pull the card out: every request is NOT_ACCEPTED from now on (R80), until the adapter is deleted."""

    name: str


@call
class SetWireFaults(Call[AdapterReply]):
    """Make the wire of an adapter faulty; null leaves what is. The generator begins anew from its seed.

    The same seed and the same frames give the same faults. A frame suffers one of loss, duplication,
    corruption and reordering at most."""

    name: str
    direction: WireDirectionWord | None = None
    """Null is both. tx: from the card to the wire."""
    loss: float | None = None
    """Percent of the frames, as are the next three."""
    duplicate: float | None = None
    corrupt: float | None = None
    """One bit of each, anywhere behind the Ethernet header."""
    reorder: float | None = None
    reorder_packets: int | None = None
    """How many later frames pass a reordered one: 1 to 65536; it goes on after a second at the latest."""
    delay_ms: float | None = None
    """0 to 60000."""
    jitter_ms: float | None = None
    """The delay is spread evenly over this much less and this much more."""
    rate: int | None = None
    """Bits per second, counting Ethernet frames without their FCS; 0 is no limit."""
    limit: int | None = None
    """Frames that may wait, 1000 until it is set; what comes beyond is dropped and counted."""
    seed: int | None = None
    """One is chosen, and shown, if none ever was given."""


@call
class DoWireFault(Call[AdapterReply]):
    """Do one thing to the wire of an adapter.

    flip_icv, hold and truncate wait for the next IPsec packet they fit; replay sends the last one again, or
    the next if none was seen. Such a packet suffers nothing else. stall lets nothing move until release,
    which also lets go what is held. fill adds SAs for nobody until the NIC's table is full; ClearWireFaults
    takes them away."""

    name: str
    action: AimWord
    direction: WireDirectionWord | None = None
    """Null: both for stall and release, tx for the others."""
    value: int | None = None
    """flip_icv: the bit, 0 is the first on the wire. replay: how often. hold: how many packets pass it, null
    is until release. truncate: bytes of the frame that stay."""


@call
class ClearWireFaults(Call[AdapterReply]):
    """Make the wire of an adapter a good one again; what is on its way arrives at once.

    With both directions the SAs go that only fill the NIC's table."""

    name: str
    direction: WireDirectionWord | None = None
    """Null is both."""


@call
class DeleteAdapter(Call[NoReply]):
    """Remove an adapter with its SAs, policies and the devices it made; a link's other end stays."""

    name: str


@call
class ListAdapters(Call[AdaptersReply]):
    """Show the adapters, or one."""

    reader = True

    name: str | None = None


# --------------------------------------------------------------------------------------------- SAs


@value
class SaReply:
    """What the NIC answered."""

    adapter: str
    direction: DirectionWord
    handle: int
    status: int
    """The NIC's. Not SUCCESS, with handle 0: the NIC refused it and software IPsec has taken it."""
    status_name: str
    weak: list[str]
    offload: OffloadWord
    message: str
    """Why the NIC refused it, else empty."""


@value
class FlushSasReply:
    """How many SAs were deleted."""

    count: int
    status: int
    status_name: str


@value
class SasReply:
    """SAs, oldest first."""

    sas: list[SaState]


@call
class AddSa(Call[SaReply]):
    """Offload an SA (OID_TCP_TASK_IPSEC_OFFLOAD_V2_ADD_SA); gives its handle."""

    sa: Sa
    adapter: str | None = None
    """Null: the only one."""


@call
class ReplaceSa(Call[SaReply]):
    """Put an SA in the place of the one with the same destination, protocol and SPI, which must exist."""

    sa: Sa
    adapter: str | None = None


@call
class UpdateSa(Call[SaReply]):
    """Set the upper half of an extended sequence number (OID_TCP_TASK_IPSEC_OFFLOAD_V2_UPDATE_SA).

    The SA is named by its handle or by dst, proto and spi. A null adapter is the only one that has the SA."""

    sequence_number_high_order: int
    adapter: str | None = None
    handle: int | None = None
    dst: str | None = None
    proto: ProtocolWord | None = None
    spi: int | None = None


@call
class DeleteSa(Call[SaReply]):
    """Remove an SA (OID_TCP_TASK_IPSEC_OFFLOAD_V2_DELETE_SA), named as for UpdateSa."""

    adapter: str | None = None
    handle: int | None = None
    dst: str | None = None
    proto: ProtocolWord | None = None
    spi: int | None = None


@value
class Renewal:
    """An SA that is to be replaced, and SPI, algorithms and keys of its successor. All else the successor has
    from the old SA; its numbers begin anew."""

    new_spi: int
    handle: int | None = None
    """Names the old SA; or spi does, with dst and proto where several SAs have it."""
    spi: int | None = None
    dst: str | None = None
    proto: ProtocolWord | None = None
    encryption: str | None = None
    encryption_key: str | None = field(default=None, repr=False)
    integrity: str | None = None
    integrity_key: str | None = field(default=None, repr=False)
    icv_length: int | None = None
    """Bits; null is the algorithm's default."""
    lifetime: Lifetime | None = None
    """Null: the limits of the old one, counted anew."""


@value
class RekeyReply:
    """What became of each successor, in the order of the request."""

    sas: list[SaReply]


@call
class RekeySas(Call[RekeyReply]):
    """Put successors in the place of SAs, make before break: successors of inbound SAs are added, then
    those of outbound SAs, which seal from then on; the old outbound SAs are deleted, the old inbound ones
    when `grace` is over. Refused whole, if any part cannot be done."""

    sas: list[Renewal]
    """All inbound, all outbound, or both."""
    adapter: str | None = None
    """Null: the only one."""
    grace: int | None = None
    """Seconds. Null is 10 where an outbound SA is replaced as well; else the old inbound SAs go on until they
    are deleted, because only the peer knows when it has switched."""


@call
class RequestSaDeletion(Call[SaReply]):
    """Have the NIC ask the transport to delete an inbound SA: SaDeleteReq on its next packets (R183)."""

    adapter: str | None = None
    handle: int | None = None
    dst: str | None = None
    proto: ProtocolWord | None = None
    spi: int | None = None


@call
class FlushSas(Call[FlushSasReply]):
    """Remove all SAs, of one adapter or protocol if named."""

    adapter: str | None = None
    proto: ProtocolWord | None = None


@call
class ListSas(Call[SasReply]):
    """Show the SAs, of one adapter if named. Keys only for an administrator who asks.

    Called with `more` the answer comes in parts; without, one answer holds up to 10,000 SAs and a call that
    has more is refused."""

    reader = True
    parts = True

    adapter: str | None = None
    reveal_keys: bool | None = None

    def shows_keys(self) -> bool:
        return bool(self.reveal_keys)


# ---------------------------------------------------------------------------------------- policies


@value
class PolicyReply:
    """The policy as it is in the SPD, or as it was."""

    adapter: str
    policy: Policy


@value
class FlushPoliciesReply:
    """How many policies were deleted."""

    count: int


@value
class PoliciesReply:
    """Policies in the order they are looked at."""

    policies: list[PolicyState]


@value
class SaMtu:
    """How large the packets of one outbound SA may be, in bytes."""

    sa: SaName
    mode: ModeWord | None
    path_mtu: int
    """Largest IP packet that gets to the far end, as far as is known."""
    path_known_s: float | None
    """Seconds until what the wire told of the path is forgotten; null: it told nothing."""
    overhead: int
    """What the SA adds to the largest packet."""
    mtu: int
    """Largest IP packet it can carry, where no other SA protects it too."""


@value
class PolicyMtu:
    """How large the packets of one outbound policy may be, in bytes, by the wire's MTU."""

    index: int
    selector: Selector
    overhead: int
    """What all its SAs add to the largest packet."""
    mtu: int


@value
class AdapterMtu:
    """How large packets of one adapter may be, in bytes."""

    adapter: str
    wire_mtu: int
    mtu: int
    """What fits under every policy; the TAP's, unless that was fixed."""
    policies: list[PolicyMtu]
    sas: list[SaMtu]


@value
class MtusReply:
    """How large packets may be, of every adapter asked for."""

    adapters: list[AdapterMtu]


@value
class PolicyDefaultsReply:
    """The defaults of every adapter asked for."""

    defaults: list[PolicyDefault]


@call
class AddPolicy(Call[PolicyReply]):
    """Put a policy into the SPD; with update it takes the place of one with the same selector."""

    policy: Policy
    adapter: str | None = None
    update: bool | None = None


@call
class DeletePolicy(Call[PolicyReply]):
    """Remove the policy with this selector, or with this index."""

    direction: DirectionWord
    adapter: str | None = None
    selector: Selector | None = None
    index: int | None = None


@call
class FlushPolicies(Call[FlushPoliciesReply]):
    """Remove all policies, of one adapter or direction if named."""

    adapter: str | None = None
    direction: DirectionWord | None = None


@call
class ListPolicies(Call[PoliciesReply]):
    """Show the policies, of one adapter if named."""

    reader = True

    adapter: str | None = None


@value
class TestedTemplate:
    """One template of the policy that decides, and the SA that carries it out now."""

    template: Template
    sa: SaName | None
    """Out: the SA whose number would be taken. In: the newest that the peer could use. Null: none fits."""
    handle: int
    """0: none, or the NIC does not hold it."""
    offload: OffloadWord | None
    """Who works on it; null without an SA."""


@value
class TestPolicyReply:
    """What would become of a packet, and why."""

    adapter: str
    direction: DirectionWord
    sport: int | None
    """The port, type or code that was looked up; null: none, as a later fragment shows none."""
    dport: int | None
    verdict: VerdictWord
    drop: DropReasonText | None
    """Why it would be dropped; null if not."""
    policy: Policy | None
    """The policy that decides; null: the default does, or nothing can without the ports."""
    templates: list[TestedTemplate]
    """Those of the policy, innermost first."""


@call
class TestPolicy(Call[TestPolicyReply]):
    """Ask what would become of a packet. The data path's own lookup answers; nothing is sent, and nothing
    changes.

    ARP and neighbour discovery pass whatever it says."""

    reader = True

    src: str
    dst: str
    proto: int
    sport: int | None = None
    """Port; for ICMP the type, for a mobility header its type. Of a protocol with ports null is 49152, any
    port of a client, if dport is given."""
    dport: int | None = None
    """Port; for ICMP the code, where null is 0 if sport is given. Without sport and dport the packet is a
    later fragment of such a protocol, which shows neither."""
    direction: DirectionWord | None = None
    """Null is out."""
    adapter: str | None = None


@call
class SetPolicyDefault(Call[PolicyDefaultsReply]):
    """Say what happens to packets that match no policy; null leaves it. A null adapter is all of them."""

    adapter: str | None = None
    inbound: DefaultWord | None = None
    outbound: DefaultWord | None = None


@call
class GetPolicyDefault(Call[PolicyDefaultsReply]):
    """Show what happens to packets that match no policy."""

    reader = True

    adapter: str | None = None


# --------------------------------------------------------------------------------- looking and rest


@value
class DropReasonsReply:
    """The table of reasons."""

    reasons: list[DropReasonText]


@value
class StatisticsReply:
    """Counters, by adapter."""

    adapters: list[AdapterStatistics]


@value
class CapabilitiesReply:
    """Capabilities, by adapter."""

    adapters: list[AdapterCapabilities]


@value
class KeysReply:
    """Lines of a key file."""

    lines: list[str] = field(repr=False)


@value
class DaemonReply:
    """The daemon itself."""

    version: str
    engine: str
    """Engine of adapters with the inline transport: reference or native."""
    ciphers: str
    """Library of its ciphers, with version, and the code path for this CPU if it tells."""
    engine_reason: str
    """Why it is not the native one, where `auto` would have taken that; else empty."""
    pid: int
    started: str
    """RFC 3339."""
    uptime_s: float
    loop: str
    """uvloop or asyncio."""
    config: str | None
    """Path of the configuration file; null if there is none."""
    adapter_count: int


@value
class MonitorReply:
    """One event."""

    event: Event


@value
class OidReply:
    """The answer to an OID request."""

    oid: int
    oid_name: str
    """Its NDIS name, or the number in hexadecimal."""
    status: int
    """NDIS_STATUS."""
    status_name: str
    information_buffer: str = field(repr=False)
    """Base64; after a set the whole buffer with what the NIC wrote back, after a query what it wrote."""
    bytes_read: int
    bytes_written: int
    bytes_needed: int
    supported_revision: int
    handles: list[int]
    """After an addition: OffloadHandle of each entry as it stands in the buffer, 0 for one that failed."""
    message: str
    """What was wrong, for a person; empty on success. With a list of which some entries failed: why the first
    of them did."""
    field: str
    value: str
    allowed: str


@value
class CancelReply:
    """How many requests were ended."""

    count: int


@value
class NblReply:
    """One frame."""

    nbl: Nbl


@call
class OidRequest(Call[OidReply]):
    """Hand the NIC an NDIS OID request with its exact binary structures (x64). Any status is an answer."""

    adapter: str
    oid: str
    """Name, with or without OID_, or number."""
    request_type: RequestTypeWord
    information_buffer: str | None = field(default=None, repr=False)
    """Base64."""
    information_buffer_length: int | None = None
    """Of a query: room for the answer, in bytes; null is enough for any."""
    request_id: int | None = None
    """The key for CancelOidRequest."""


@call
class CancelOidRequest(Call[CancelReply]):
    """End the requests under way that have this id, with REQUEST_ABORTED (R77)."""

    adapter: str
    request_id: int


@call
class WatchNbls(Call[NblReply]):
    """See frames with their out-of-band information as they pass between transport and NIC, from now on.

    Shows plain text, and so needs an administrator."""

    streams = True

    adapter: str
    snap_length: int | None = None
    """Bytes of each frame; null is all."""


@call
class GetMtus(Call[MtusReply]):
    """Show how large packets may be under each outbound policy and SA, of one adapter if named.

    One answer holds up to 10,000 policies and SAs; a call that has more is refused.
    """

    reader = True

    adapter: str | None = None


@call
class ListDropReasons(Call[DropReasonsReply]):
    """Show every reason for which a frame is not passed on."""

    reader = True


@call
class GetStatistics(Call[StatisticsReply]):
    """Show the counters, of one adapter if named."""

    reader = True

    adapter: str | None = None
    sas: bool | None = None
    """Whether to describe each SA; null is true up to 10,000 SAs."""


@call
class GetCapabilities(Call[CapabilitiesReply]):
    """Show what the NIC can do, of one adapter if named."""

    reader = True

    adapter: str | None = None


@call
class ExportKeys(Call[KeysReply]):
    """Give the keys of the SAs in the form another program reads.

    "wireshark": lines of Wireshark's UAT file esp_sa."""

    adapter: str | None = None
    format: str | None = None
    """Null is wireshark, the only one so far."""

    def shows_keys(self) -> bool:
        return True


@call
class GetDaemon(Call[DaemonReply]):
    """Show the daemon."""

    reader = True


@call
class Monitor(Call[MonitorReply]):
    """Hear of every event from now on; the first answer says that the listening has begun.

    A listener that does not keep up loses the oldest events and is told how many."""

    reader = True
    streams = True


CALLS: tuple[type[Call[Any]], ...] = (
    AddAdapter,
    SetAdapter,
    DeleteAdapter,
    ResetAdapter,
    PauseAdapter,
    ResumeAdapter,
    RestartAdapter,
    RemoveAdapter,
    SetWireFaults,
    DoWireFault,
    ClearWireFaults,
    ListAdapters,
    AddSa,
    ReplaceSa,
    UpdateSa,
    DeleteSa,
    RekeySas,
    RequestSaDeletion,
    FlushSas,
    ListSas,
    AddPolicy,
    DeletePolicy,
    FlushPolicies,
    ListPolicies,
    TestPolicy,
    SetPolicyDefault,
    GetPolicyDefault,
    GetMtus,
    ListDropReasons,
    GetStatistics,
    GetCapabilities,
    ExportKeys,
    OidRequest,
    CancelOidRequest,
    WatchNbls,
    GetDaemon,
    Monitor,
)
"""Every method of the interface."""


# ------------------------------------------------------------------------------------------ errors


class Refused(TypedVarlinkErrorReply, interface=INTERFACE):
    """The request cannot be carried out as written; nothing was changed.

    field and value are what was wrong, allowed what would be accepted; status is the NIC's, null when it
    was not asked."""

    class Parameters:
        message: str
        field: str
        value: str
        allowed: str
        status: int | None
        status_name: str | None


class PermissionDenied(TypedVarlinkErrorReply, interface=INTERFACE):
    """The caller may not do this."""

    class Parameters:
        message: str


class InternalError(TypedVarlinkErrorReply, interface=INTERFACE):
    """A defect of the daemon; its log says where."""

    class Parameters:
        message: str


# --------------------------------------------------------------------------------------- interface


class Service(Protocol):
    """Who carries the calls out."""

    def answer(self, request: Call[Reply_co]) -> Awaitable[Reply_co]:
        """Carry out a call.

        Raises:
            VnicError: it is refused; nothing was changed.
        """
        ...

    def stream(self, request: Call[Reply_co]) -> AsyncIterator[Reply_co]:
        """Carry out a call whose class has `streams`, or `parts`."""
        ...


class AdapterInterface(VarlinkInterface, name=INTERFACE):
    """Virtual network cards with IPsec offload: adapters, their SAs, policies and counters."""

    errors = (Refused, PermissionDenied, InternalError)

    def __init__(self, service: Service, *, administrator: bool, caller: str) -> None:
        """Serve one caller.

        Args:
            administrator: whether the caller may change things and see keys.
            caller: who it is, for the log.
        """
        self.service = service
        self.administrator = administrator
        self.caller = caller

    @classmethod
    def render_interface_description(cls, *, comments: bool = True) -> str:
        """Give the published interface file; `python -m vnic.control.interface` generates it."""
        if not comments:
            return super().render_interface_description(comments=False)
        return resources.files(__package__).joinpath(f"{INTERFACE}.varlink").read_text(encoding="utf-8")

    def admit(self, request: Call[Any]) -> None:
        """Let a call of this caller pass, and note who changes things and who sees keys.

        Raises:
            PermissionDenied: it needs an administrator.
        """
        if request.open_to_reader():
            return
        if not self.administrator:
            raise PermissionDenied(message="only an administrator may do this; run it as root")
        level = logging.WARNING if request.shows_keys() else logging.DEBUG
        keys = " asks for keys" if request.shows_keys() else ""
        log.log(level, "%s by %s%s", type(request).__name__, self.caller, keys)


def fields_of(message: object) -> tuple[dataclasses.Field[Any], ...]:
    """Give the fields of a call, a reply or a struct, or of its class."""
    return dataclasses.fields(typing.cast(Any, message))


def parameters_of(message: object) -> dict[str, Any]:
    """Give the values of a call or reply by name, unconverted."""
    return {one.name: getattr(message, one.name) for one in fields_of(message)}


def refused(error: VnicError) -> Refused:
    """Give the error of the interface for what a service raised on purpose."""
    if not isinstance(error, RequestError):
        error = RequestError(str(error))
    status = getattr(error, "status", None)
    return Refused(
        message=error.message,
        field=error.field,
        value=error.value,
        allowed=error.allowed,
        status=None if status is None else int(status),
        status_name=None if status is None else status.label,
    )


def _method(request: type[Call[Any]]) -> Callable[..., Any]:
    """Declare the Varlink method of a call, for all who read the interface."""
    reply = request.reply_type()
    typed_dict: Any = typing.TypedDict
    returned = typed_dict(reply.__name__, {one.name: one.type for one in fields_of(reply)})

    async def declared(self: AdapterInterface, **parameters: Any) -> Any:
        raise NotImplementedError("the server makes the call and asks the service itself")

    async def streamed(self: AdapterInterface, **parameters: Any) -> Any:
        yield await declared(self, **parameters)

    method: Any = streamed if request.streams else declared
    method.__name__ = method.__qualname__ = request.__name__
    method.__doc__ = request.__doc__
    method.__signature__ = inspect.Signature(
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(
                inspect.Parameter(
                    one.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if one.default is dataclasses.MISSING else one.default,
                    annotation=one.type,
                )
                for one in fields_of(request)
            ),
        ],
        return_annotation=typing.cast(Any, AsyncIterator)[returned] if request.streams else returned,
    )
    return varlinkmethod(method)


for _call in CALLS:
    setattr(AdapterInterface, _call.__name__, _method(_call))


if __name__ == "__main__":
    from vnic.control.description import render

    sys.stdout.write(render())
