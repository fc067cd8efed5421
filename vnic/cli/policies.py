"""Policies: the words of `ip xfrm policy` and of `vnic policy` to one message, and what both do with it.

Law: as in `associations`: two spellings, one meaning. `action allow` without a template is bypass, with
templates protect, `action block` is discard.
"""

from __future__ import annotations

from typing import Literal, cast

from vnic.cli import associations, values
from vnic.cli.associations import ADAPTER, MODE, PROTOCOL, adapter_of, direction_of
from vnic.cli.grammar import Choice, Found, Refusal, Series, Value, Vocabulary, Word
from vnic.cli.policy_text import brief_text, defaults_text, policy_text, test_text
from vnic.cli.selector import NAMES, ports_of, same, selector_of, selects
from vnic.cli.session import Session
from vnic.cli.words import UsageError
from vnic.control.interface import (
    AddPolicy,
    DeletePolicy,
    FlushPolicies,
    GetPolicyDefault,
    ListPolicies,
    Policy,
    PolicyReply,
    PolicyState,
    SetPolicyDefault,
    Template,
    TestPolicy,
)
from vnic.errors import RequestError

LEVEL = Choice(
    ("required",),
    {"use": "a policy never lets a packet go unprotected when an SA is missing; `required` it is"},
)

TEMPLATE = Vocabulary(
    Word("src", Value("ADDR", values.address), "near end of the tunnel"),
    Word("dst", Value("ADDR", values.address), "far end of the tunnel"),
    Word("proto", PROTOCOL, "ESP or AH", required=True),
    Word("spi", Value("SPI", values.u32), "of this SA only; 0 is any"),
    Word("mode", MODE, "transport when it is not said"),
    Word("reqid", Value("REQID", values.u32), "of SAs with this reqid only; 0 is any"),
    Word("level", LEVEL, "required, always"),
    together=frozenset({"src", "dst", "proto", "spi"}),
)

TUNNEL_ENDS = Series((Value("SRC", values.address), Value("DST", values.address)))

PROTECTION = Vocabulary(
    Word("esp", summary="with ESP"),
    Word("ah", summary="with AH"),
    Word("tunnel", TUNNEL_ENDS, "in a tunnel between these two"),
    Word("transport", summary="end to end (when no tunnel is said)"),
    Word("reqid", Value("REQID", values.u32), "by SAs with this reqid only"),
    Word("spi", Value("SPI", values.u32), "by this SA only"),
)
"""One `tmpl`, in our own words."""


OFFLOAD = Word("offload", associations.OFFLOAD.operand, "the adapter that has the policy")
INDEX = Word("index", Value("INDEX", values.u32), "the number the daemon gave it")
PRIORITY = Word("priority", Value("PRIORITY", values.u32), "lower is looked at first")
DEV = Word("dev", ADAPTER, "the adapter; not needed when there is only one")

NOT_SUPPORTED = (
    Word("mark", Refusal("a card sees no packet marks", "src, dst, proto; or another adapter")),
    Word(
        "if_id",
        Refusal("there are no xfrm interfaces here", "an adapter for each; offload packet dev ADAPTER"),
    ),
    Word("ctx", Refusal("there are no security contexts", "a policy without it")),
    Word("limit", Refusal("policies have no lifetimes; the key manager counts", "delete it when it is time")),
    Word(
        "flag", Refusal("localok and icmp are for sockets and hosts, not for a card", "a policy without it")
    ),
    Word("uid", Refusal("a card does not see whose packet it is", "src, dst, proto")),
    Word("nosock", Refusal("there are no socket policies to leave out", "the same without it")),
)


# ------------------------------------------------------------------------------------- words to values


def _template(found: Found) -> Template:
    proto = found.need("proto", str)
    mode = found.get("mode", str)
    src, dst = (_named(found.get(word, str)) for word in ("src", "dst"))
    if src and dst and (":" in src) != (":" in dst):
        raise UsageError(
            "the ends are of different families", field="tmpl src", value=src, allowed="that of dst"
        )
    # As in the kernel: in transport mode the packet's own addresses are the ends, whatever is said here.
    tunnel = mode == "tunnel"
    return Template(
        proto=cast("Literal['esp', 'ah']", proto),
        mode=cast("Literal['transport', 'tunnel'] | None", mode),
        src=src if tunnel else None,
        dst=dst if tunnel else None,
        reqid=found.get("reqid", int),
        spi=found.get("spi", int) or None,
    )


def _named(address: str | None) -> str | None:
    return None if address in ("0.0.0.0", "::") else address  # noqa: S104 (means any)


def _short_template(found: Found) -> Template:
    protocols = [name for name in ("esp", "ah") if name in found]
    if len(protocols) != 1:
        raise UsageError(
            "one protocol for each `protect`", field="protect", value=", ".join(protocols), allowed="esp, ah"
        )
    ends = found.get("tunnel", tuple)
    if ends and "transport" in found:
        raise UsageError("both modes are said", field="protect", allowed="tunnel SRC DST, transport")
    if ends and (":" in ends[0]) != (":" in ends[1]):
        raise UsageError(
            "the ends are of different families",
            field="protect tunnel",
            value=ends[1],
            allowed="those of one",
        )
    return Template(
        proto=cast("Literal['esp', 'ah']", protocols[0]),
        mode="tunnel" if ends else "transport",
        src=ends[0] if ends else None,
        dst=ends[1] if ends else None,
        reqid=found.get("reqid", int),
        spi=found.get("spi", int) or None,
    )


def _direction(found: Found) -> Literal["in", "out"]:
    direction = direction_of(found)
    if direction is None:
        raise UsageError("is missing", field="dir", allowed="in, out")
    return direction


def _action(found: Found, templates: list[Template]) -> Literal["protect", "bypass", "discard"]:
    said = [word for word in ("protect", "bypass", "discard") if word in found]
    if found.get("action", str) == "block":
        said.append("discard")
    elif "action" in found and not templates:
        said.append("bypass")
    if "tmpl" in found and "discard" not in said:
        said.append("protect")
    actions = dict.fromkeys(said)
    if len(actions) > 1:
        raise UsageError(
            f"says both {' and '.join(actions)}", field="action", allowed="protect, bypass or discard"
        )
    return cast("Literal['protect', 'bypass', 'discard']", said[0] if said else "bypass")


def policy_of(found: Found, session: Session) -> Policy:
    """Make the policy that the words say.

    Raises:
        UsageError: something is missing or does not fit.
    """
    templates = [_template(one) for one in found.many("tmpl", Found)]
    templates += [_short_template(one) for one in found.many("protect", Found)]
    action = _action(found, templates)
    if action == "discard" and templates:
        session.warn("what is blocked is not protected: tmpl is left out")
    return Policy(
        direction=_direction(found),
        selector=selector_of(found, "", ipv6=session.options.family == 6),
        action=action,
        templates=templates if action == "protect" else None,
        priority=found.get("priority", int),
    )


# ------------------------------------------------------------------------------------------- actions


def _answered(session: Session, reply: PolicyReply, verb: str) -> None:
    def text() -> str:
        if not session.options.details:
            return ""
        return f"{verb} {reply.adapter} {reply.policy.direction} index {reply.policy.index}\n"

    session.answer(reply, text)


def add(session: Session, found: Found) -> None:
    """Put a policy into the SPD."""
    request = AddPolicy(policy=policy_of(found, session), adapter=adapter_of(found))
    _answered(session, session.ask(request), "added")


def update(session: Session, found: Found) -> None:
    """Put a policy in the place of the one with the same selector, if there is one."""
    request = AddPolicy(policy=policy_of(found, session), adapter=adapter_of(found), update=True)
    _answered(session, session.ask(request), "updated")


def _check_named(found: Found) -> None:
    selector = [name for name in NAMES if name in found]
    if "index" in found and selector:
        raise UsageError(
            "a policy is named by its index or its selector", field="index", allowed="one of the two"
        )
    if "index" not in found and not selector:
        raise UsageError("is missing", field="selector", allowed="SELECTOR or index INDEX")


def delete(session: Session, found: Found) -> None:
    """Take a policy out of the SPD."""
    _check_named(found)
    index = found.get("index", int)
    selector = None if index else selector_of(found, "", ipv6=session.options.family == 6)
    request = DeletePolicy(
        direction=_direction(found), adapter=adapter_of(found), selector=selector, index=index
    )
    _answered(session, session.ask(request), "deleted")


def _listed(session: Session, found: Found) -> list[PolicyState]:
    """The policies that the words of `list` and `deleteall` fit."""
    direction, index, priority = direction_of(found), found.get("index", int), found.get("priority", int)
    actions = {"allow": ("protect", "bypass"), "block": ("discard",)}.get(found.get("action", str) or "")
    family = session.options.family
    states = session.ask(ListPolicies(adapter=adapter_of(found))).policies
    return [
        state
        for state in states
        if selects(found, state.policy.selector)
        and direction in (None, state.policy.direction)
        and index in (None, state.policy.index)
        and priority in (None, state.policy.priority or 0)
        and (actions is None or state.policy.action in actions)
        and (
            not family
            or (family == 6) == (":" in (state.policy.selector.src or state.policy.selector.dst or ""))
        )
    ]


def show(session: Session, found: Found) -> None:
    """Show the policies that fit, in the order they are looked at."""
    states = _listed(session, found)
    session.answer(states, lambda: _text(session, states))


def _text(session: Session, states: list[PolicyState]) -> str:
    if session.options.brief:
        return brief_text(states, session)
    return "".join(policy_text(state, session) for state in states)


def get(session: Session, found: Found) -> None:
    """Show the one policy that is named."""
    _check_named(found)
    direction, index = _direction(found), found.get("index", int)
    selector = None if index is not None else selector_of(found, "", ipv6=session.options.family == 6)
    states = [
        state
        for state in session.ask(ListPolicies(adapter=adapter_of(found))).policies
        if state.policy.direction == direction
        and (state.policy.index == index if selector is None else same(state.policy.selector, selector))
    ]
    if not states:
        raise RequestError(
            "there is no such policy",
            field="selector" if index is None else "index",
            value="" if index is None else str(index),
            allowed="one of `vnic -br policy show`",
        )
    session.answer(states, lambda: _text(session, states))


def delete_all(session: Session, found: Found) -> None:
    """Delete every policy that fits, one after the other."""
    states = _listed(session, found)
    for state in states:
        session.ask(
            DeletePolicy(direction=state.policy.direction, adapter=state.adapter, index=state.policy.index)
        )
    session.answer({"count": len(states)}, lambda: _deleted(session, len(states)))


def flush(session: Session, found: Found) -> None:
    """Delete all policies, of one direction if named."""
    reply = session.ask(FlushPolicies(adapter=adapter_of(found), direction=direction_of(found)))
    session.answer(reply, lambda: _deleted(session, reply.count))


def _deleted(session: Session, number: int) -> str:
    if not (session.options.statistics or session.options.details):
        return ""
    return f"deleted {number} {'policy' if number == 1 else 'policies'}\n"


def count(session: Session, found: Found) -> None:
    """Count the policies of each direction."""
    states = session.ask(ListPolicies(adapter=adapter_of(found))).policies
    inbound = sum(state.policy.direction == "in" for state in states)
    outbound = len(states) - inbound
    session.answer(
        {"count": len(states), "in": inbound, "out": outbound},
        lambda: f"\t SPD IN  {inbound} OUT {outbound} FWD 0\n",
    )


def test(session: Session, found: Found) -> None:
    """Say what would become of a packet, and which policy says so."""
    upper = ports_of(found)
    reply = session.ask(
        TestPolicy(
            src=found.need("src", str),
            dst=found.need("dst", str),
            proto=found.need("proto", int),
            sport=upper[0],
            dport=upper[1],
            direction=direction_of(found),
            adapter=adapter_of(found),
        )
    )
    session.answer(reply, lambda: test_text(reply, session))


DEFAULT_ACTION = Choice(("accept", "block"))


def set_default(session: Session, found: Found) -> None:
    """Say what happens to packets that match no policy."""
    if "in" not in found and "out" not in found:
        raise UsageError("is missing", field="dir", allowed="in ACTION, out ACTION")

    def default(word: str) -> Literal["allow", "block"] | None:
        action = found.get(word, str)
        return None if action is None else "block" if action == "block" else "allow"

    # `in` and `out` are directions with an action here, so that only `dev` and `offload` name the adapter.
    request = SetPolicyDefault(adapter=adapter_of(found), inbound=default("in"), outbound=default("out"))
    reply = session.ask(request)
    session.answer(reply.defaults, lambda: "")


def get_default(session: Session, found: Found) -> None:
    """Show what happens to packets that match no policy."""
    reply = session.ask(GetPolicyDefault(adapter=adapter_of(found)))
    session.answer(reply.defaults, lambda: defaults_text(reply.defaults))


DEFAULT_WORDS = (
    Word("in", DEFAULT_ACTION, "what comes in and matches no policy"),
    Word("out", DEFAULT_ACTION, "what goes out and matches no policy"),
    Word("fwd", Refusal("an adapter does not forward; what a host forwards passes it in or out", "in, out")),
    DEV,
    OFFLOAD,
)
