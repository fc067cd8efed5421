"""The one table of reasons for which a frame is not passed on.

Law: counters, audit events, the command's text, JSON names and the documentation read this table; no
other place invents a reason.

Source: the kernel's names are those of /proc/net/xfrm_stat (Documentation/networking/xfrm_proc.rst).
"""

from __future__ import annotations

from enum import Enum


class DropReason(Enum):
    """Why a frame ended here. `value` is the counter's name; `text` says it to a person.

    `xfrm_stat` is the kernel's counter of the same event, or "" where the kernel has none.
    """

    text: str
    xfrm_stat: str

    def __new__(cls, value: str, xfrm_stat: str, text: str) -> DropReason:
        member = object.__new__(cls)
        member._value_ = value
        member.xfrm_stat = xfrm_stat
        member.text = text
        return member

    # outbound
    OUT_POLICY_DISCARD = ("out_policy_discard", "XfrmOutPolBlock", "an outbound policy discards it")
    OUT_NO_SA = ("out_no_sa", "XfrmOutNoStates", "policy wants protection and no SA fits")
    OUT_SEQUENCE_EXHAUSTED = (
        "out_sequence_exhausted",
        "XfrmOutStateSeqError",
        "the SA has used up its sequence numbers; rekey",
    )
    OUT_SA_EXPIRED = (
        "out_sa_expired",
        "XfrmOutStateExpired",
        "the SA has reached a hard limit of its lifetime; rekey",
    )
    OUT_NOT_RESERVED = (
        "out_not_reserved",
        "XfrmOutStateSeqError",
        "the state directory has no sequence numbers for the SA: not yet, or those of before were lost",
    )
    OUT_TOO_BIG = ("out_too_big", "", "too big for the wire after protection")
    OUT_FRAGMENT = (
        "out_fragment",
        "",
        "a later fragment, which a policy with ports cannot judge; of IPv6 also one that hides its headers",
    )
    OUT_FRAGMENT_INCOMPLETE = (
        "out_fragment_incomplete",
        "",
        "a fragment for transport mode whose others did not come, or that overlaps, is tiny, or is too much",
    )
    OUT_MALFORMED = ("out_malformed", "XfrmOutError", "not a well-formed IP packet")
    OUT_NIC = ("out_nic", "XfrmOutStateProtoError", "the NIC did not seal it")
    OUT_NOT_OFFLOADED = (
        "out_not_offloaded",
        "XfrmOutError",
        "the NIC does not protect such packets now, and software IPsec is off",
    )
    OUT_SOFTWARE = ("out_software", "XfrmOutStateProtoError", "software IPsec did not seal it")
    OUT_VLAN = ("out_vlan", "", "it has a VLAN tag, and the adapter drops what has")
    OUT_NON_IP = ("out_non_ip", "", "not IP, and the adapter drops what is not IP")
    # inbound
    IN_NO_SA = ("in_no_sa", "XfrmInNoStates", "no SA for its SPI, destination and protocol")
    IN_ICV = ("in_icv", "XfrmInStateProtoError", "the integrity check failed")
    IN_SYNTAX = ("in_syntax", "XfrmInHdrError", "too short, or lengths contradict each other")
    IN_PROTOCOL = ("in_protocol", "XfrmInStateMismatch", "its headers do not match the SA")
    IN_CRYPTO = ("in_crypto", "XfrmInError", "the NIC failed on it")
    IN_REPLAY_DUPLICATE = ("in_replay_duplicate", "XfrmInStateSeqError", "replayed: seen before")
    IN_REPLAY_TOO_OLD = ("in_replay_too_old", "XfrmInStateSeqError", "older than the replay window")
    IN_SA_EXPIRED = (
        "in_sa_expired",
        "XfrmInStateExpired",
        "the SA has reached a hard limit of its lifetime",
    )
    IN_NOT_OFFLOADED = (
        "in_not_offloaded",
        "XfrmInError",
        "the NIC did not open it as it is configured, and software IPsec is off",
    )
    IN_UDP_ENCAPSULATION = (
        "in_udp_encapsulation",
        "XfrmInStateMismatch",
        "plain ESP where its SA wants it in UDP, or the other way round",
    )
    IN_UDP_PORTS = ("in_udp_ports", "", "ESP in UDP from or to another port than its SA has")
    IN_UDP_CHECKSUM = (
        "in_udp_checksum",
        "",
        "ESP in UDP with a wrong UDP checksum, or over IPv6 with none",
    )
    IN_NAT_KEEPALIVE = ("in_nat_keepalive", "", "a NAT keepalive (RFC 3948), meant to be dropped")
    IN_PADDING = ("in_padding", "XfrmInStateProtoError", "the ESP padding is not 1, 2, 3, …")
    IN_DUMMY = ("in_dummy", "", "a dummy packet (next header 59), meant to be dropped")
    IN_SA_SELECTOR = ("in_sa_selector", "XfrmInStateMismatch", "outside the selector of its SA")
    IN_POLICY_DISCARD = ("in_policy_discard", "XfrmInPolBlock", "an inbound policy discards it")
    IN_NO_POLICY = ("in_no_policy", "XfrmInNoPols", "came through a tunnel and no policy allows it")
    IN_POLICY_MISMATCH = (
        "in_policy_mismatch",
        "XfrmInTmplMismatch",
        "policy wants other protection than it had",
    )
    IN_FRAGMENT = (
        "in_fragment",
        "",
        "a fragment of an ESP or AH packet for no SA here, or one a policy cannot judge",
    )
    IN_FRAGMENT_OVERLAP = (
        "in_fragment_overlap",
        "",
        "fragments that overlap or contradict each other, and all others of that packet (RFC 5722)",
    )
    IN_FRAGMENT_TINY = (
        "in_fragment_tiny",
        "",
        "a fragment smaller than any honest sender makes, and not the last",
    )
    IN_FRAGMENT_INVALID = (
        "in_fragment_invalid",
        "",
        "a fragment of odd length, beyond 65,535 bytes, or with ECN fields that cannot be",
    )
    IN_FRAGMENT_DUPLICATE = ("in_fragment_duplicate", "", "a fragment that came before")
    IN_FRAGMENT_TIMEOUT = (
        "in_fragment_timeout",
        "",
        "a fragment whose others did not come in time: 30 seconds, IPv6 60",
    )
    IN_FRAGMENT_LIMIT = (
        "in_fragment_limit",
        "",
        "a fragment beyond the memory or the number of packets for reassembly",
    )
    IN_PATH_MTU = (
        "in_path_mtu",
        "",
        "an ICMP message that a sealed packet was too big, and that cannot be true",
    )
    IN_MALFORMED = ("in_malformed", "XfrmInHdrError", "not a well-formed IP packet")
    IN_VLAN = ("in_vlan", "", "it has a VLAN tag, and the adapter drops what has")
    IN_NON_IP = ("in_non_ip", "", "not IP, and the adapter drops what is not IP")
    # ports
    TAP_RECEIVE = ("tap_receive", "", "a frame of the host could not be read")
    TAP_WRITE = ("tap_write", "", "the host did not take the frame")
    WIRE_WRITE = ("wire_write", "", "the wire device did not take the frame")
    WIRE_DOWN = ("wire_down", "", "the wire is not connected")
    WIRE_RECEIVE = ("wire_receive", "", "the kernel dropped frames before they were read")
    WIRE_NOT_ESP = (
        "wire_not_esp",
        "",
        "a UDP wire carries ESP packets between its own two addresses and nothing else",
    )
    WIRE_STRANGER = ("wire_stranger", "", "it came over a UDP wire from somebody who is not its other end")
    WIRE_IKE = ("wire_ike", "", "an IKE message on a UDP wire, where no IKE daemon listens")
    LINK_QUEUE_FULL = ("link_queue_full", "", "the peer of the link wire did not keep up")
    NBL_QUEUE_FULL = ("nbl_queue_full", "", "the protocol driver did not keep up")
    FAULT_LOSS = ("fault_loss", "", "lost on purpose: the wire is set to lose frames")
    FAULT_QUEUE_FULL = ("fault_queue_full", "", "more frames wait on the faulty wire than its limit allows")
    NBL_NO_DRIVER = ("nbl_no_driver", "", "no protocol driver is attached")
    # the NIC
    NIC_STOPPED = ("nic_stopped", "", "the NIC is paused, in reset or removed")
