"""SAs: the words of `ip xfrm state` and of `vnic sa` to one message, and what both objects do with it.

Law: the two vocabularies share names here; only their spelling differs. A request that needs a look at
the daemon first (which way an SA works) changes nothing when the look fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Literal, cast

from vnic.cli import values
from vnic.cli.association_text import brief_text, flag_names, state_text
from vnic.cli.grammar import (
    ADAPTERS,
    Choice,
    Flags,
    Found,
    Group,
    Refusal,
    Series,
    Value,
    Vocabulary,
    Word,
)
from vnic.cli.protection import protection_of, protocol_said
from vnic.cli.render import plural
from vnic.cli.selector import SELECTOR_WORDS, inside, selector_of
from vnic.cli.session import Session
from vnic.cli.words import UsageError, Words
from vnic.control.interface import (
    AddSa,
    DeleteSa,
    Encapsulation,
    FlushSas,
    Lifetime,
    ListAdapters,
    ListSas,
    RekeySas,
    Renewal,
    ReplaceSa,
    RequestSaDeletion,
    Sa,
    SaReply,
    SaState,
    UpdateSa,
)
from vnic.errors import RequestError
from vnic.ipsec.headers import (
    COPY_HOP_LIMIT,
    DEFAULT_HOP_LIMIT,
    MAX_DSCP,
    MAX_DUMMY_INTERVAL_MS,
    MAX_FLOW_LABEL,
    MAX_HOP_LIMIT,
    MAX_TFC_PADDING,
)
from vnic.ipsec.lifetime import MAX_LIMIT, word_of
from vnic.ipsec.udp_encapsulation import MAX_KEEPALIVE_S

SMALLEST_WINDOW = 64
"""Packets; `ip xfrm` lines often say 32, the size of the kernel's oldest window."""

PROTOCOLS_ELSEWHERE = {
    "comp": "the card does not compress (IPComp); it has esp and ah",
    "route2": "Mobile IPv6 is no work of an IPsec card; it has esp and ah",
    "hao": "Mobile IPv6 is no work of an IPsec card; it has esp and ah",
}
MODES_ELSEWHERE = {
    "beet": "the card has transport and tunnel mode; tunnel protects the same, with an outer header more",
    "ro": "route optimization is Mobile IPv6; the card has transport and tunnel mode",
    "in_trigger": "inbound trigger is Mobile IPv6; the card has transport and tunnel mode",
    "iptfs": "aggregation (RFC 9347) is not of this card; it has transport and tunnel mode",
}
PROTOCOL = Choice(("esp", "ah"), PROTOCOLS_ELSEWHERE)
MODE = Choice(("transport", "tunnel"), MODES_ELSEWHERE)
DIRECTION = Choice(
    ("in", "out"), {"fwd": "an adapter does not forward; what a host forwards passes it in or out"}
)
ADAPTER = Value("ADAPTER", values.text, (ADAPTERS,))

FLAG_BITS = {
    "noecn": 0x01,
    "decap-dscp": 0x02,
    "nopmtudisc": 0x04,
    "wildrecv": 0x08,
    "icmp": 0x10,
    "af-unspec": 0x20,
    "align4": 0x40,
    "esn": 0x80,
}
"""XFRM_STATE_* of linux/xfrm.h."""

# af-unspec lets the packets inside be of the other family; an SA without `sel` takes both here anyway.
FLAGS = Flags(
    FLAG_BITS,
    {
        "wildrecv": "the source of a packet never chooses its SA here (RFC 4301 §4.1); leave the flag out",
        "icmp": "ICMP errors are judged by their own addresses; leave the flag out",
    },
)


def _must_be_packet(found: Found, field: str) -> None:
    if "packet" not in found:
        raise UsageError(
            "only packet offload is there (without a word `ip` means crypto offload)",
            field=field,
            allowed="offload packet dev ADAPTER dir { in | out }",
        )


CRYPTO_REFUSED = Refusal(
    "in crypto offload the kernel frames the packets; here the card has the whole SA",
    "offload packet dev ADAPTER dir { in | out }",
)

OFFLOAD = Word(
    "offload",
    Group(
        Vocabulary(
            Word("packet", required=False),
            Word("crypto", CRYPTO_REFUSED),
            Word("dev", ADAPTER, required=True),
            Word("dir", DIRECTION),
        ),
        _must_be_packet,
        "packet dev ADAPTER [ dir { in | out } ]",
    ),
    "the adapter that has the SA, and its direction",
)
DEV = Word("dev", ADAPTER, "the adapter; not needed when there is only one")
DIR = Word("dir", DIRECTION, "which way; not needed when src or dst is an address of the TAP")

SRC = Word("src", Value("ADDR", values.address), "address of the near end of an outbound SA")
DST = Word("dst", Value("ADDR", values.address), "address of the far end of an outbound SA")
SPI = Word("spi", Value("SPI", values.spi), "Security Parameters Index")
REQID = Word("reqid", Value("REQID", values.u32), "ties the SA to the templates of policies")
SEL = Word(
    "sel",
    Group(
        Vocabulary(
            *SELECTOR_WORDS,
            Word("dev", Refusal("an SA belongs to one adapter already", "offload packet dev ADAPTER")),
        ),
        symbol="SELECTOR",
    ),
    "traffic the SA may carry; without it all",
)

LIMITS = tuple(word_of(one.name) for one in fields(Lifetime))
"""time-soft … packet-hard."""

_WHICH = Choice(LIMITS)
_LIMIT = Value("NUMBER", values.integer(0, MAX_LIMIT))


class _Limit:
    """A limit and its number, as a tuple."""

    usage = "{ time | time-use | byte | packet }-{ soft | hard } NUMBER"

    def take(self, words: Words, field: str) -> object:
        which = _WHICH.take(words, field)
        return which, _LIMIT.take(words, f"{field} {which}")


LIMIT = Word(
    "limit",
    _Limit(),
    "soft: told once; hard: the SA ends. Seconds since add (time) or first use (time-use), bytes, packets",
    repeated=True,
)


def _or_word(words: dict[str, int], low: int, high: int) -> Value:
    """A number, or a word that stands for one."""
    number = values.integer(low, high)

    def convert(text: str, field: str) -> int:
        return words[text] if text in words else number(text, field)

    return Value(f"{{ {' | '.join(words)} | NUMBER }}", convert, tuple(words))


_COPY = -1

TFCPAD = Word(
    "tfcpad",
    Value("LENGTH", values.integer(0, MAX_TFC_PADDING)),
    "pad packets inside an ESP tunnel to so many bytes, as far as the path takes them (outbound)",
)
OUTER_HEADER = (
    Word(
        "dummy",
        Value("MILLISECONDS", values.integer(0, MAX_DUMMY_INTERVAL_MS)),
        "send a dummy packet when an ESP tunnel has sent nothing for so long (outbound); 0 is never",
    ),
    Word("df", Choice(("copy", "set", "clear")), "DF of the outer IPv4 header; copy when it is not said"),
    Word(
        "ttl",
        _or_word({"copy": COPY_HOP_LIMIT}, 1, MAX_HOP_LIMIT),
        f"TTL or hop limit of the outer header; {DEFAULT_HOP_LIMIT} when it is not said",
    ),
    Word(
        "dscp",
        _or_word({"copy": _COPY, "clear": 0}, 0, MAX_DSCP),
        "DSCP of the outer header; copy when it is not said",
    ),
    Word(
        "flow-label",
        _or_word({"copy": _COPY, "clear": 0}, 0, MAX_FLOW_LABEL),
        "flow label of the outer IPv6 header; copy when it is not said",
    ),
)
"""Of tunnels; `ip xfrm` has no words for them, but takes what is shown of an SA without them."""

_PORT = Value("PORT", values.port)
_ENCAP_TYPE = Choice(
    ("espinudp",),
    {
        "espinudp-nonike": "the drafts before RFC 3948 are not built",
        "espintcp": "ESP in TCP (RFC 9329) is not built",
    },
)
ENCAP = Word(
    "encap",
    Series((_ENCAP_TYPE, _PORT, _PORT, Value("OADDR", values.address))),
    "ESP in UDP: source and destination port, and the address a peer behind a NAT calls itself, or 0.0.0.0",
)
NAT_FOLLOW = Word("nat-follow", summary="inbound: answer to where authenticated packets come from")
NAT_KEEPALIVE = Word(
    "nat-keepalive",
    Value("SECONDS", values.integer(0, MAX_KEEPALIVE_S)),
    "outbound: keepalive after so long without a packet; 20 when it is not said, 0 never",
)
ENCAP_WORDS = (ENCAP, NAT_FOLLOW, NAT_KEEPALIVE)

NOT_SUPPORTED = (
    Word("mark", Refusal("a card sees no packet marks", "src, dst, sel; or another adapter")),
    Word("output-mark", Refusal("a card sets no packet marks", "an SA without it")),
    Word("set-mark", Refusal("a card sets no packet marks", "an SA without it")),
    Word(
        "if_id",
        Refusal("there are no xfrm interfaces here", "an adapter for each; offload packet dev ADAPTER"),
    ),
    Word("ctx", Refusal("there are no security contexts", "an SA without it")),
    Word("coa", Refusal("Mobile IPv6 is no work of an IPsec card", "an SA without it")),
    Word(
        "extra-flag",
        Refusal("none of the extra flags is there", "noecn, decap-dscp, nopmtudisc, align4, esn"),
    ),
    Word("seq", Refusal("there are no acquires that a number could answer", "replay-seq, replay-oseq")),
    Word("pcpu-num", Refusal("SAs are not per processor", "an SA without it")),
)
"""Words of `ip xfrm state` without a meaning here; NDIS has none for them either."""


# ------------------------------------------------------------------------------------- words to values


def adapter_of(found: Found) -> str | None:
    """The adapter that the words name, or None.

    Raises:
        UsageError: `dev` and `offload` name two.
    """
    offload = found.get("offload", Found)
    named = [one for one in (found.get("dev", str), offload.get("dev", str) if offload else None) if one]
    if len(set(named)) > 1:
        raise UsageError("two adapters are named", field="offload dev", value=named[1], allowed=named[0])
    return named[0] if named else None


def direction_of(found: Found) -> Literal["in", "out"] | None:
    """The direction that the words say, or None.

    Raises:
        UsageError: they say both.
    """
    offload = found.get("offload", Found)
    said = [found.get("dir", str), offload.get("dir", str) if offload else None]
    said += [word for word in ("in", "out") if word in found]
    directions = {one for one in said if one}
    if len(directions) > 1:
        raise UsageError("both directions are named", field="dir", value="in, out", allowed="one of them")
    return cast("Literal['in', 'out'] | None", directions.pop() if directions else None)


def _one_of(found: Found, word: str, bare: tuple[str, ...]) -> str | None:
    """The value of `word`, or the bare word of our own vocabulary that says the same."""
    said = [one for one in (found.get(word, str), *(name for name in bare if name in found)) if one]
    if len(set(said)) > 1:
        raise UsageError(f"is said twice: {', '.join(said)}", field=word, allowed=" | ".join(bare))
    return said[0] if said else None


def protocol_of(found: Found) -> Literal["esp", "ah"] | None:
    """esp, ah or None."""
    return cast("Literal['esp', 'ah'] | None", _one_of(found, "proto", ("esp", "ah")))


def mode_of(found: Found) -> Literal["transport", "tunnel"] | None:
    """transport, tunnel or None."""
    return cast("Literal['transport', 'tunnel'] | None", _one_of(found, "mode", ("transport", "tunnel")))


def flags_of(found: Found) -> frozenset[str]:
    """The flags that the words say."""
    flags = found.get("flag", frozenset) or frozenset()
    return frozenset(flags) | {name for name in FLAG_BITS if name in found}


def _window(found: Found, session: Session) -> int | None:
    window = found.get("replay-window", int)
    if window is not None and 0 < window < SMALLEST_WINDOW:
        session.warn(
            f"replay-window {window}: the smallest window of the card is {SMALLEST_WINDOW} packets; "
            "that is what the SA gets"
        )
        return SMALLEST_WINDOW
    return window


def _sequence_numbers(found: Found) -> dict[str, int]:
    """The sequence numbers that the words say, by direction; 0 is where every SA begins."""
    numbers = {}
    for direction, low, high in (
        ("in", "replay-seq", "replay-seq-hi"),
        ("out", "replay-oseq", "replay-oseq-hi"),
    ):
        number = ((found.get(high, int) or 0) << 32) + (found.get(low, int) or 0)
        if number:
            numbers[direction] = number
    return numbers


def _sequence_number(found: Found, session: Session, src: str, dst: str) -> int | None:
    """The sequence number an SA starts from. `ip` has one for each direction and the SA works in one only."""
    plain = found.get("seq", int)
    numbers = _sequence_numbers(found)
    if plain is not None or not numbers:
        return plain
    direction = direction_of(found) or _direction_by_address(session, adapter_of(found), src, dst)
    return numbers.get(direction)


def _direction_by_address(session: Session, adapter: str | None, src: str, dst: str) -> str:
    """The direction that follows from the addresses of the adapter's TAP, as the daemon finds it."""
    for state in session.ask(ListAdapters(name=adapter)).adapters:
        own = {one.partition("/")[0] for one in (state.tap.addresses if state.tap else ())}
        if (src in own) != (dst in own):
            return "out" if src in own else "in"
    raise UsageError(
        "which of the sequence numbers counts depends on the direction, and no address says it",
        field="dir",
        allowed="offload packet dev ADAPTER dir { in | out }",
    )


def _number(found: Found, word: str) -> int | None:
    """The number that a word of the outer header says; None where it is to be copied, or nothing is said."""
    number = found.get(word, int)
    return None if number == _COPY else number


def lifetime_of(found: Found) -> Lifetime | None:
    """The limits that the words say, or None.

    Raises:
        UsageError: one is said twice.
    """
    limits: dict[str, int] = {}
    for word, number in found.many("limit", tuple):
        if word in limits:
            raise UsageError("is given twice", field=f"limit {word}", allowed="NUMBER")
        limits[word] = number
    # XFRM_INF, the kernel's word for none, is what `ip` itself shows as (INF).
    members = {word.replace("-", "_"): number for word, number in limits.items() if 0 < number < MAX_LIMIT}
    return Lifetime(**members) if members else None


def encapsulation_of(found: Found) -> Encapsulation | None:
    """The UDP encapsulation that the words say, or None.

    Raises:
        UsageError: a word about it without it.
    """
    said = found.get("encap", tuple)
    follow, keepalive = "nat-follow" in found, found.get("nat-keepalive", int)
    if said is None:
        if follow or keepalive is not None:
            word = "nat-follow" if follow else "nat-keepalive"
            raise UsageError("says nothing without `encap`", field=word, allowed=f"{ENCAP.usage} {word} …")
        return None
    _, sport, dport, oaddr = said
    named = oaddr not in ("0.0.0.0", "::")  # noqa: S104 (means not known)
    return Encapsulation(
        sport=sport,
        dport=dport,
        oaddr=oaddr if named else None,
        follow=follow or None,
        keepalive=keepalive,
    )


def sa_of(found: Found, session: Session) -> Sa:
    """Make the SA that the words say.

    Raises:
        UsageError: something is missing or does not fit.
    """
    dst = found.need("dst", str)
    src = found.get("src", str) or ("::" if ":" in dst else "0.0.0.0")  # noqa: S104 (means any, R99)
    if (":" in src) != (":" in dst):
        raise UsageError(
            "the two ends are of different families", field="src", value=src, allowed="the family of dst"
        )
    proto = protocol_of(found)
    if proto is None:
        raise UsageError("is missing", field="proto", allowed="esp, ah")
    words = found.get("sel", Found)
    selector = None if words is None else selector_of(words, "sel", ipv6=":" in dst)
    flags, mode, direction = flags_of(found), mode_of(found), direction_of(found)
    adapter_of(found)
    # Keys are read when nothing else is wrong, and the daemon is asked when the keys are right.
    protection = protection_of(found, proto, session.keys)
    return Sa(
        src=src,
        dst=dst,
        proto=proto,
        spi=found.need("spi", int),
        mode=mode,
        direction=direction,
        encryption=protection.encryption,
        encryption_key=protection.encryption_key,
        integrity=protection.integrity,
        integrity_key=protection.integrity_key,
        icv_length=protection.icv_length,
        esn="esn" in flags or None,
        replay_window=_window(found, session),
        reqid=found.get("reqid", int),
        selector=selector,
        sequence_number=_sequence_number(found, session, src, dst),
        # As in the kernel the flag says something for AH over IPv4 only.
        ah_alignment=4 if "align4" in flags and proto == "ah" and ":" not in dst else None,
        decap_dscp="decap-dscp" in flags or None,
        no_ecn="noecn" in flags or None,
        no_pmtu_discovery="nopmtudisc" in flags or None,
        df=cast("Literal['copy', 'set', 'clear'] | None", found.get("df", str)),
        hop_limit=found.get("ttl", int),
        dscp=_number(found, "dscp"),
        flow_label=_number(found, "flow-label"),
        tfc_padding=found.get("tfcpad", int),
        dummy_interval=found.get("dummy", int),
        lifetime=lifetime_of(found),
        encap=encapsulation_of(found),
        fresh="fresh" in found or None,
    )


# ------------------------------------------------------------------------------------------- actions


def _answered(session: Session, reply: SaReply, verb: str) -> None:
    _warn_of(session, reply)
    session.answer(reply, lambda: _result_text(session, reply, verb))


def _warn_of(session: Session, reply: SaReply) -> None:
    for weak in reply.weak:
        session.warn(f"weak: {weak}")
    if reply.status:
        by = "software IPsec has taken it" if reply.offload == "software" else "nobody works on it"
        session.warn(f"the NIC refused the SA, {by}: {reply.message} [{reply.status_name}]")


def _result_text(session: Session, reply: SaReply, verb: str) -> str:
    if not session.options.details:
        return ""
    by = "" if reply.offload == "nic" else f" by {reply.offload}"
    named = f"{verb} {reply.adapter} {reply.direction} handle {reply.handle:#x}"
    return f"{named}{by} {reply.status_name}\n"


def add(session: Session, found: Found) -> None:
    """Offload an SA."""
    sa = sa_of(found, session)
    _answered(session, session.ask(AddSa(sa=sa, adapter=adapter_of(found))), "added")


def update(session: Session, found: Found) -> None:
    """Put an SA in the place of the one with the same name."""
    sa = sa_of(found, session)
    _answered(session, session.ask(ReplaceSa(sa=sa, adapter=adapter_of(found))), "updated")


def _named(found: Found) -> None:
    """Make sure that the words name one SA."""
    if "handle" in found:
        return
    for word, value in (
        ("dst", found.get("dst", str)),
        ("proto", protocol_of(found)),
        ("spi", found.get("spi", int)),
    ):
        if value is None:
            raise UsageError("is missing", field=word, allowed="dst, proto and spi name an SA")


def delete(session: Session, found: Found) -> None:
    """Take an SA off the card."""
    _named(found)
    request = DeleteSa(
        adapter=adapter_of(found),
        handle=found.get("handle", int),
        dst=found.get("dst", str),
        proto=protocol_of(found),
        spi=found.get("spi", int),
    )
    _answered(session, session.ask(request), "deleted")


def _renewal(found: Found, session: Session) -> Renewal:
    """Make one SA's part of a rekeying."""
    old, handle = found.get("old", int), found.get("handle", int)
    proto = protocol_of(found)
    if (old is None) == (handle is None):
        raise UsageError("the old SA is named once", field="old", allowed="old SPI, or handle HANDLE")
    protection = protection_of(found, proto or protocol_said(found), session.keys)
    return Renewal(
        new_spi=found.need("spi", int),
        handle=handle,
        spi=old,
        dst=found.get("dst", str),
        proto=proto,
        encryption=protection.encryption,
        encryption_key=protection.encryption_key,
        integrity=protection.integrity,
        integrity_key=protection.integrity_key,
        icv_length=protection.icv_length,
        lifetime=lifetime_of(found),
    )


def rekey(session: Session, found: Found) -> None:
    """Put successors in the place of SAs."""
    parts = [part for way in ("in", "out") for part in found.many(way, Found)]
    if not parts:
        raise UsageError("no SA is named", field="in, out", allowed="in …, out …, or both")
    request = RekeySas(
        sas=[_renewal(part, session) for part in parts],
        adapter=adapter_of(found),
        grace=found.get("grace", int),
    )
    reply = session.ask(request)
    for one in reply.sas:
        _warn_of(session, one)

    def text() -> str:
        return "".join(_result_text(session, one, "added") for one in reply.sas)

    session.answer(reply, text)


def request_deletion(session: Session, found: Found) -> None:
    """Have the NIC ask for the deletion of one SA."""
    _named(found)
    request = RequestSaDeletion(
        adapter=adapter_of(found),
        handle=found.get("handle", int),
        dst=found.get("dst", str),
        proto=protocol_of(found),
        spi=found.get("spi", int),
    )
    _answered(session, session.ask(request), "deletion requested")


def rebase(session: Session, found: Found) -> None:
    """Set the upper half of an extended sequence number."""
    _named(found)
    request = UpdateSa(
        sequence_number_high_order=found.need("seq-hi", int),
        adapter=adapter_of(found),
        handle=found.get("handle", int),
        dst=found.get("dst", str),
        proto=protocol_of(found),
        spi=found.get("spi", int),
    )
    _answered(session, session.ask(request), "rebased")


def _listed(session: Session, found: Found, fits: Callable[[SaState], bool]) -> list[SaState]:
    # The kernel keeps keys from `nokeys`; here they come only when asked for.
    reveal = session.options.show_keys and "nokeys" not in found
    request = ListSas(adapter=adapter_of(found), reveal_keys=reveal or None)
    states = [state for reply in session.listen(request) for state in reply.sas]
    return [state for state in states if fits(state)]


def _filter(session: Session, found: Found) -> Callable[[SaState], bool]:
    """Make the test that the words of `list` and `deleteall` say."""
    src, dst = found.get("src", str), found.get("dst", str)
    proto, mode, direction = protocol_of(found), mode_of(found), direction_of(found)
    spi, reqid, flags = found.get("spi", int), found.get("reqid", int), flags_of(found)
    family = session.options.family

    def fits(state: SaState) -> bool:
        sa = state.sa
        return (
            inside(src, sa.src)
            and inside(dst, sa.dst)
            and proto in (None, sa.proto)
            and mode in (None, sa.mode or "transport")
            and direction in (None, sa.direction)
            and spi in (None, sa.spi)
            and reqid in (None, sa.reqid or 0)
            and (not flags or not flags.isdisjoint(flag_names(sa)))
            and (not family or (family == 6) == (":" in sa.dst))
        )

    return fits


def show(session: Session, found: Found) -> None:
    """Show the SAs that fit."""
    states = _listed(session, found, _filter(session, found))
    session.answer(states, lambda: _text(session, states))


def _text(session: Session, states: list[SaState]) -> str:
    if session.options.brief:
        return brief_text(states, session)
    return "".join(state_text(state, session) for state in states)


def get(session: Session, found: Found) -> None:
    """Show the one SA that is named."""
    _named(found)
    handle = found.get("handle", int)
    dst, proto, spi = found.get("dst", str), protocol_of(found), found.get("spi", int)

    def fits(state: SaState) -> bool:
        if handle is not None:
            return state.handle == handle
        return (state.sa.dst, state.sa.proto, state.sa.spi) == (dst, proto, spi)

    states = _listed(session, found, fits)
    if not states:
        raise RequestError(
            "there is no such SA",
            field="handle" if handle is not None else "spi",
            value=f"{handle or spi or 0:#x}",
            allowed="one of `vnic -br sa show`",
        )
    session.answer(states, lambda: _text(session, states))


def count(session: Session, found: Found) -> None:
    """Count the SAs."""
    states = session.ask(ListAdapters(name=adapter_of(found))).adapters
    number = sum(state.sa_count for state in states)
    session.answer({"count": number}, lambda: f"\t SAD count {number}\n")


def delete_all(session: Session, found: Found) -> None:
    """Delete every SA that fits, one after the other."""
    states = _listed(session, found, _filter(session, found))
    replies = [
        session.ask(DeleteSa(adapter=state.adapter, dst=state.sa.dst, proto=state.sa.proto, spi=state.sa.spi))
        for state in states
    ]
    session.answer({"count": len(replies)}, lambda: _deleted(session, len(replies), "SA"))


def flush(session: Session, found: Found) -> None:
    """Delete all SAs, of one protocol if named."""
    proto = protocol_of(found)
    reply = session.ask(FlushSas(adapter=adapter_of(found), proto=proto))
    session.answer(reply, lambda: _deleted(session, reply.count, "SA"))


def _deleted(session: Session, number: int, what: str) -> str:
    if not (session.options.statistics or session.options.details):
        return ""
    return f"deleted {plural(number, what)}\n"
