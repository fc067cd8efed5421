"""SAs, policies and events: messages of the control socket to values of IPsec, and back.

Law: pure translation. Every refusal names the word, the value and what is allowed; a key is never repeated.
"""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_address, ip_network
from math import inf
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, TypeVar

from vnic.control.interface import (
    DropEvent,
    DropReasonText,
    Encapsulation,
    Peer,
    Policy,
    Sa,
    SaName,
    SaState,
    Template,
    TestedTemplate,
    TestPolicy,
    TestPolicyReply,
    VerdictWord,
)
from vnic.control.interface import Lifetime as LifetimeMessage
from vnic.control.interface import Renewal as RenewalMessage
from vnic.control.interface import Selector as SelectorMessage
from vnic.daemon.hardware import hardware_of as hardware_of
from vnic.daemon.hardware import keywords_of as keywords_of
from vnic.engine.contract import Engine, EngineEvent, SaReport
from vnic.errors import OidError, RequestError
from vnic.ipsec import policy as spd
from vnic.ipsec.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, Encryption, Integrity
from vnic.ipsec.association import (
    NO_KEY,
    Direction,
    IpsecProtocol,
    KeyMaterial,
    Mode,
    SaId,
    SecurityAssociation,
)
from vnic.ipsec.headers import DEFAULT_HOP_LIMIT, DfRule, HeaderSettings
from vnic.ipsec.judgement import Judgement
from vnic.ipsec.lifetime import Lifetime
from vnic.ipsec.policy import PolicyAction, PolicyEntry, Prefix
from vnic.ipsec.renewal import Renewal
from vnic.ipsec.replay import DEFAULT_WINDOW_BITS
from vnic.ipsec.udp_encapsulation import DEFAULT_KEEPALIVE_S, UdpEncapsulation
from vnic.ndis.status import NdisStatus

Row = TypeVar("Row", Encryption, Integrity)

_PROTOCOLS = {"esp": IpsecProtocol.ESP, "ah": IpsecProtocol.AH}
_MAX_INDEX = 0xFFFFFFFF
_SHOWN_LENGTH = 64


def address_of(text: str, field: str) -> bytes:
    """Read an address.

    Raises:
        RequestError: it is none.
    """
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        raise RequestError(
            "not an IP address", field=field, value=text[:_SHOWN_LENGTH], allowed="IPv4 or IPv6 address"
        ) from None


def protocol_of(word: str) -> IpsecProtocol:
    """Read "esp" or "ah"."""
    return _PROTOCOLS[word]


def sa_id_of(dst: str, proto: str, spi: int) -> SaId:
    """Read the name of an SA.

    Raises:
        RequestError: the destination is no address.
    """
    return SaId(address_of(dst, "dst"), protocol_of(proto), spi)


def name_of(sa: SaId) -> SaName:
    """Write the name of an SA, as far as it is known from the data path."""
    return SaName(dst=str(ip_address(sa.destination)), proto=_protocol_word(sa.protocol), spi=sa.spi)


def full_name_of(sa: SecurityAssociation) -> SaName:
    """Write the name of an SA."""
    return SaName(
        dst=str(ip_address(sa.destination)),
        proto=_protocol_word(sa.protocol),
        spi=sa.spi,
        direction=sa.direction.value,
        src=str(ip_address(sa.source)),
    )


def sa_of(message: Sa, direction: Direction) -> SecurityAssociation:
    """Read an SA; `checked` is still to come.

    Raises:
        RequestError: a word cannot be read.
        OidError: NOT_SUPPORTED for an algorithm that is not in the table.
    """
    return SecurityAssociation(
        direction=direction,
        source=address_of(message.src, "src"),
        destination=address_of(message.dst, "dst"),
        protocol=protocol_of(message.proto),
        spi=message.spi,
        mode=Mode(message.mode or "transport"),
        encryption=_algorithm(message.encryption, ENCRYPTION_BY_NAME, "enc"),
        encryption_key=_key(message.encryption_key, "enc"),
        integrity=_algorithm(message.integrity, INTEGRITY_BY_NAME, "auth"),
        integrity_key=_key(message.integrity_key, "auth"),
        icv_length=_icv_bytes(message.icv_length),
        esn=bool(message.esn),
        replay_window=DEFAULT_WINDOW_BITS if message.replay_window is None else message.replay_window,
        reqid=message.reqid or 0,
        selector=None if message.selector is None else selector_of(message.selector, "sel"),
        sequence_number=message.sequence_number or 0,
        ah_alignment=8 if message.ah_alignment is None else message.ah_alignment,
        decap_dscp=bool(message.decap_dscp),
        no_ecn=bool(message.no_ecn),
        header_settings=_header_settings(message),
        lifetime=None if message.lifetime is None else _lifetime(message.lifetime),
        udp=None if message.encap is None else _udp(message.encap),
    )


def _header_settings(message: Sa) -> HeaderSettings:
    if message.no_pmtu_discovery and message.df not in (None, "clear"):
        raise RequestError(
            "nopmtudisc clears DF; two rules for one bit", field="df", value=str(message.df), allowed="clear"
        )
    return HeaderSettings(
        df=DfRule.CLEAR if message.no_pmtu_discovery else DfRule(message.df or "copy"),
        hop_limit=DEFAULT_HOP_LIMIT if message.hop_limit is None else message.hop_limit,
        dscp=message.dscp,
        flow_label=message.flow_label,
        tfc_padding=message.tfc_padding or 0,
        dummy_interval_ms=message.dummy_interval or 0,
    )


def renewal_of(message: RenewalMessage, old: SaId) -> Renewal:
    """Read the successor of an SA; `Renewal.successor` is still to check it.

    Raises:
        RequestError: a word cannot be read.
        OidError: NOT_SUPPORTED for an algorithm that is not in the table.
    """
    return Renewal(
        old=old,
        spi=message.new_spi,
        encryption=_algorithm(message.encryption, ENCRYPTION_BY_NAME, "enc"),
        encryption_key=_key(message.encryption_key, "enc"),
        integrity=_algorithm(message.integrity, INTEGRITY_BY_NAME, "auth"),
        integrity_key=_key(message.integrity_key, "auth"),
        icv_length=_icv_bytes(message.icv_length),
        lifetime=None if message.lifetime is None else _lifetime(message.lifetime),
    )


def _icv_bytes(bits: int | None) -> int:
    if (bits or 0) % 8:
        raise RequestError(
            "an ICV is whole bytes",
            field="icv-length",
            value=str(bits)[:_SHOWN_LENGTH],
            allowed="64, 96, 128",
        )
    return (bits or 0) // 8


def _udp(message: Encapsulation) -> UdpEncapsulation:
    return UdpEncapsulation(
        source_port=message.sport,
        destination_port=message.dport,
        original_address=b"" if message.oaddr is None else address_of(message.oaddr, "encap oaddr"),
        follow=bool(message.follow),
        keepalive=DEFAULT_KEEPALIVE_S if message.keepalive is None else message.keepalive,
    )


def _udp_message(udp: UdpEncapsulation) -> Encapsulation:
    return Encapsulation(
        sport=udp.source_port,
        dport=udp.destination_port,
        oaddr=str(ip_address(udp.original_address)) if udp.original_address else None,
        follow=udp.follow,
        keepalive=udp.keepalive,
    )


def peer_message(peer: tuple[bytes, int] | None) -> Peer | None:
    """Write where the far end of an SA is, if it moved."""
    return None if peer is None else Peer(address=str(ip_address(peer[0])), port=peer[1])


def sa_message(sa: SecurityAssociation, sequence_number: int, *, reveal_keys: bool) -> Sa:
    """Write an SA; without `reveal_keys` its keys are left out.

    Args:
        sequence_number: the live one.
    """
    headers = sa.header_settings
    return Sa(
        src=str(ip_address(sa.source)),
        dst=str(ip_address(sa.destination)),
        proto=_protocol_word(sa.protocol),
        spi=sa.spi,
        mode=None if sa.mode is None else sa.mode.value,
        direction=sa.direction.value,
        encryption=None if sa.encryption is None else sa.encryption.name,
        encryption_key=_reveal(sa.encryption_key) if reveal_keys else None,
        integrity=None if sa.integrity is None else sa.integrity.name,
        integrity_key=_reveal(sa.integrity_key) if reveal_keys else None,
        icv_length=sa.icv_length * 8,
        esn=sa.esn,
        replay_window=sa.replay_window,
        reqid=sa.reqid,
        selector=None if sa.selector is None else selector_message(sa.selector),
        sequence_number=sequence_number,
        ah_alignment=sa.ah_alignment,
        decap_dscp=sa.decap_dscp,
        no_ecn=sa.no_ecn,
        no_pmtu_discovery=headers.df is DfRule.CLEAR,
        df=headers.df.value,
        hop_limit=headers.hop_limit,
        dscp=headers.dscp,
        flow_label=headers.flow_label,
        tfc_padding=headers.tfc_padding,
        dummy_interval=headers.dummy_interval_ms,
        lifetime=None if sa.lifetime is None else _lifetime_message(sa.lifetime),
        encap=None if sa.udp is None else _udp_message(sa.udp),
    )


def sa_state(adapter: str, report: SaReport, wall: Any, *, reveal_keys: bool) -> SaState:
    """Write an SA with its live state.

    Args:
        wall: turns monotonic seconds into RFC 3339.
    """
    sa = report.sa
    inbound = sa.direction is Direction.INBOUND
    return SaState(
        adapter=adapter,
        sa=sa_message(sa, report.sequence_number, reveal_keys=reveal_keys),
        handle=report.offload_handle,
        weak=[*sa.weak, *_worn(sa, report.cipher_limit)],
        packets=report.counters.packets,
        bytes=report.counters.bytes,
        drops={reason.value: count for reason, count in report.counters.drops.items()},
        replay_bitmap=f"{report.replay_bitmap:x}" if inbound else "",
        added=wall(report.add_time),
        used=wall(report.use_time) if report.use_time else None,
        offload=report.offload.value,
        expiring=report.expiring,
        needed_window=report.needed_window,
        reserved=report.reserved,
        withheld=report.withheld,
        replaced=report.replaced,
        leaves=wall(report.leaves) if report.leaves < inf else None,
        peer=peer_message(report.peer),
    )


def selector_of(message: SelectorMessage, field: str) -> spd.Selector:
    """Read a selector; a side left out matches all of the other's family.

    Raises:
        RequestError: a prefix, protocol or port cannot be read, or both sides are left out.
    """
    if message.src is None and message.dst is None:
        raise RequestError(
            "a selector names src or dst, if only 0.0.0.0/0 or ::/0", field=f"{field}.src", allowed="a prefix"
        )
    source = None if message.src is None else _prefix(message.src, f"{field}.src")
    destination = None if message.dst is None else _prefix(message.dst, f"{field}.dst")
    if source is None or destination is None:
        known = source or destination
        assert known is not None
        everything = Prefix(bytes(len(known.address)), 0)
        source, destination = source or everything, destination or everything
    if len(source.address) != len(destination.address):
        raise RequestError(
            "src and dst of a selector are of different families",
            field=f"{field}.dst",
            value=str(destination),
            allowed="two IPv4 or two IPv6 prefixes",
        )
    protocol = _number(message.proto or 0, f"{field}.proto", 255)
    with_ports = spd.PROTOCOLS_WITH_PORTS | spd.PROTOCOLS_WITH_TYPES
    ports = (message.sport, message.dport, message.sport_last, message.dport_last)
    if ports != (None,) * 4 and protocol not in with_ports:
        raise RequestError(
            "this protocol has no ports",
            field=f"{field}.proto",
            value=str(protocol),
            allowed=", ".join(map(str, sorted(with_ports))),
        )
    limit = spd.MAX_TYPE if protocol in spd.PROTOCOLS_WITH_TYPES else spd.MAX_PORT
    source_port, source_port_last = _ports(message.sport, message.sport_last, limit)
    destination_port, destination_port_last = _ports(message.dport, message.dport_last, limit)
    selector = spd.Selector(
        source=source,
        destination=destination,
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        source_port_last=source_port_last,
        destination_port_last=destination_port_last,
    )
    spd.check_ports(selector, f"{field}.")
    return selector


def _ports(first: int | None, last: int | None, limit: int) -> tuple[int | None, int | None]:
    """Give a range as a selector writes it: one port has no last, and all ports are any."""
    if last is None or first == last:
        return first, None
    return (None, None) if (first, last) == (0, limit) else (first, last)


def selector_message(selector: spd.Selector) -> SelectorMessage:
    """Write a selector."""
    return SelectorMessage(
        src=str(selector.source),
        dst=str(selector.destination),
        proto=selector.protocol,
        sport=selector.source_port,
        dport=selector.destination_port,
        sport_last=selector.source_port_last,
        dport_last=selector.destination_port_last,
    )


def policy_of(message: Policy) -> PolicyEntry:
    """Read a policy.

    Raises:
        RequestError: a word cannot be read, or an index was given.
    """
    if message.index:
        raise RequestError(
            "the daemon numbers policies itself", field="index", value=str(message.index), allowed="no index"
        )
    return PolicyEntry(
        direction=Direction(message.direction),
        selector=selector_of(message.selector, "sel"),
        action=PolicyAction(message.action),
        templates=tuple(_template(one) for one in message.templates or ()),
        priority=_number(message.priority or 0, "priority", spd.MAX_PRIORITY),
    )


def policy_message(entry: PolicyEntry) -> Policy:
    """Write a policy."""
    return Policy(
        direction=entry.direction.value,
        selector=selector_message(entry.selector),
        action=entry.action.value,
        templates=[template_message(one) for one in entry.templates],
        priority=entry.priority,
        index=entry.index,
    )


def template_message(one: spd.Template) -> Template:
    """Write a template."""
    return Template(
        proto=_protocol_word(one.protocol),
        mode=one.mode.value,
        src=None if one.source is None else str(ip_address(one.source)),
        dst=None if one.destination is None else str(ip_address(one.destination)),
        reqid=one.reqid,
        spi=one.spi,
    )


_CLIENT_PORT = 49152
"""First of the dynamic ports (RFC 6335 §6)."""


def flow_of(request: TestPolicy) -> spd.FlowKey:
    """Read the packet that a test of policy is about.

    Raises:
        RequestError: an address, protocol or port cannot be read, or the addresses are of two families.
    """
    source, destination = address_of(request.src, "src"), address_of(request.dst, "dst")
    if len(source) != len(destination):
        raise RequestError(
            "source and destination are of different families",
            field="dst",
            value=request.dst[:_SHOWN_LENGTH],
            allowed="two IPv4 or two IPv6 addresses",
        )
    protocol = _number(request.proto, "proto", 255)
    with_types = protocol in spd.PROTOCOLS_WITH_TYPES
    given = request.sport, request.dport
    if not with_types and protocol not in spd.PROTOCOLS_WITH_PORTS:
        if given != (None, None):
            raise RequestError(
                "this protocol has no ports",
                field="proto",
                value=str(protocol),
                allowed=", ".join(map(str, sorted(spd.PROTOCOLS_WITH_PORTS | spd.PROTOCOLS_WITH_TYPES))),
            )
        return spd.FlowKey(source, destination, protocol, spd.BEYOND_PORTS, spd.BEYOND_PORTS)
    if given == (None, None):
        return spd.FlowKey(source, destination, protocol, -1, -1)
    if with_types and request.sport is None:
        raise RequestError("a code goes with a type", field="sport", allowed="the type")
    if protocol == spd.MOBILITY and request.dport is not None:
        raise RequestError(
            "a mobility header has a type and no code",
            field="dport",
            value=str(request.dport)[:_SHOWN_LENGTH],
            allowed="sport: its type",
        )
    limit = spd.MAX_TYPE if with_types else spd.MAX_PORT
    sport = _number(_CLIENT_PORT if request.sport is None else request.sport, "sport", limit)
    if protocol == spd.MOBILITY:
        return spd.FlowKey(source, destination, protocol, sport, spd.BEYOND_PORTS)
    other = 0 if with_types else _CLIENT_PORT
    dport = _number(other if request.dport is None else request.dport, "dport", limit)
    return spd.FlowKey(source, destination, protocol, sport, dport)


def judgement_message(
    adapter: str, direction: Direction, flow: spd.FlowKey, judgement: Judgement, engine: Engine
) -> TestPolicyReply:
    """Write what would become of a packet."""
    drop = judgement.drop
    if drop is not None or judgement.action is PolicyAction.DISCARD:
        verdict: VerdictWord = "drop"
    else:
        verdict = "protect" if judgement.action is PolicyAction.PROTECT else "bypass"
    policy = None if judgement.policy is None else policy_message(judgement.policy)
    templates = []
    for choice in judgement.choices:
        report = None if choice.sa is None else engine.find_sa(choice.sa)
        templates.append(
            TestedTemplate(
                template=template_message(choice.template),
                sa=None if report is None else full_name_of(report.sa),
                handle=0 if report is None else int(report.offload_handle),
                offload=None if report is None else report.offload.value,
            )
        )
    return TestPolicyReply(
        adapter=adapter,
        direction=direction.value,
        sport=_shown_port(flow.source_port),
        dport=_shown_port(flow.destination_port),
        verdict=verdict,
        drop=None
        if drop is None
        else DropReasonText(name=drop.value, text=drop.text, xfrm_stat=drop.xfrm_stat),
        policy=policy,
        templates=templates,
    )


def _shown_port(port: int) -> int | None:
    return port if 0 <= port <= spd.MAX_PORT else None


def index_of(index: int | None) -> int:
    """Read the number of a policy; None is 0.

    Raises:
        RequestError: it is out of range.
    """
    return _number(index or 0, "index", _MAX_INDEX)


def drop_event(event: EngineEvent) -> DropEvent | None:
    """Write what the engine tells of a drop; None if it tells of something else."""
    if event.drop is None:
        return None
    return DropEvent(
        name=event.drop.value,
        text=event.drop.text,
        xfrm_stat=event.drop.xfrm_stat,
        src=_address_text(event.source),
        dst=_address_text(event.destination),
        sequence_number=event.sequence_number,
        suppressed=event.suppressed,
        proto=None if not event.protocol else _protocol_word(IpsecProtocol(event.protocol)),
        spi=event.spi if event.protocol else None,
        flow_label=event.flow_label,
    )


def _worn(sa: SecurityAssociation, limit: str) -> list[str]:
    """Say that a key has done more than its cipher should."""
    if not limit or sa.encryption is None:
        return []
    row = sa.encryption
    bound = row.blocks_hard if limit == "cipher-hard" else row.blocks_soft
    return [f"{row.name}: this key has done 2^{bound.bit_length() - 1} blocks of 64 bits; rekey"]


def _lifetime(message: LifetimeMessage) -> Lifetime:
    return Lifetime(**{member: limit or 0 for member, limit in asdict(message).items()})


def _lifetime_message(lifetime: Lifetime) -> LifetimeMessage:
    return LifetimeMessage(**{member: limit or None for member, limit in asdict(lifetime).items()})


def audit_fields(adapter: str, event: EngineEvent) -> dict[str, object]:
    """Write what the engine tells as the fields of an audit record."""
    drop = event.drop
    return {
        "event": event.kind.value,
        "adapter": adapter,
        "reason": None if drop is None else drop.value,
        "xfrm_stat": None if drop is None else drop.xfrm_stat or None,
        "protocol": _protocol_word(IpsecProtocol(event.protocol)) if event.protocol else None,
        "spi": f"{event.spi:#010x}" if event.protocol else None,
        "source": _address_text(event.source) or None,
        "destination": _address_text(event.destination) or None,
        "sequence_number": event.sequence_number if event.protocol else None,
        "flow_label": event.flow_label if len(event.source) == 16 else None,
        "suppressed": event.suppressed or None,
    }


def _template(message: Template) -> spd.Template:
    return spd.Template(
        protocol=protocol_of(message.proto),
        mode=Mode(message.mode or "transport"),
        source=None if message.src is None else address_of(message.src, "tmpl.src"),
        destination=None if message.dst is None else address_of(message.dst, "tmpl.dst"),
        reqid=_number(message.reqid or 0, "tmpl.reqid", 0xFFFFFFFF),
        spi=_number(message.spi or 0, "tmpl.spi", 0xFFFFFFFF),
    )


def _algorithm(name: str | None, table: dict[str, Row], field: str) -> Row | None:
    if name is None:
        return None
    row = table.get(name)
    if row is None:
        raise OidError(
            NdisStatus.NOT_SUPPORTED,
            "there is no such algorithm",
            field=field,
            value=name[:_SHOWN_LENGTH],
            allowed=", ".join(table),
        )
    return row


def _key(text: str | None, field: str) -> KeyMaterial:
    if not text:
        return NO_KEY
    try:
        return KeyMaterial(bytes.fromhex(text))
    except ValueError:
        raise RequestError("the key is not hexadecimal", field=field, allowed="two digits a byte") from None


def _reveal(key: KeyMaterial) -> str | None:
    return key.reveal().hex() if len(key) else None


def _prefix(text: str, field: str) -> Prefix:
    try:
        network = ip_network(text)
    except ValueError as error:
        reason = "it has bits beyond its length" if "host bits" in str(error) else "not a prefix"
        raise RequestError(
            reason, field=field, value=text[:_SHOWN_LENGTH], allowed="as in 192.0.2.0/24 or 2001:db8::/64"
        ) from None
    return Prefix(network.network_address.packed, network.prefixlen)


def _number(number: int, field: str, limit: int) -> int:
    if not 0 <= number <= limit:
        raise RequestError(
            "out of range", field=field, value=str(number)[:_SHOWN_LENGTH], allowed=f"0 to {limit}"
        )
    return number


def _protocol_word(protocol: IpsecProtocol) -> Any:
    return protocol.name.lower()


def _address_text(address: bytes) -> str:
    return str(ip_address(address)) if len(address) in (4, 16) else ""
