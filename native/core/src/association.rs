//! SAs as the engine works with them, and how flows are protected by them.
//!
//! Law: made by Python from what its SAD and SPD decided, never changed afterwards; what changes is in [`crate::state`].
//! An SA or flow that asks for anything that has no place here is not for this engine: Python does not tell it, and its
//! packets are punts.

use std::net::IpAddr;
use std::sync::Arc;

use crate::state::{Sequence, Tally, Window};

/// Numbers the NIC of the Python engine may miss and still know the upper half for certain: after so many a packet is
/// a punt ([`crate::punt::PuntReason::ExtendedNumbers`]).
pub const STALE: u64 = 1 << 30;

/// Transport or tunnel mode (RFC 4301 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The packet's own IP header stays in front.
    Transport,
    /// The packet is inside another.
    Tunnel,
}

/// ESP or AH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 4303.
    Esp = 50,
    /// RFC 4302.
    Ah = 51,
}

/// What policy looks at in a packet; equal to `vnic.ipsec.policy.FlowKey` for packets with ports and without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number behind the IP header.
    pub protocol: u8,
    /// Source port, or ICMP type; -1 and 65,536 as in Python.
    pub source_port: i32,
    /// Destination port, or ICMP code.
    pub destination_port: i32,
}

/// ESP inside UDP (RFC 3948 §2.1); the UDP checksum is 0 over IPv4, and over IPv6 too (RFC 6935, 6936 as RFC 3948
/// leaves it to the family) unless `checksum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpEncapsulation {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// Whether the UDP checksum is computed.
    pub checksum: bool,
}

/// The outer header of a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Tunnel source.
    pub source: IpAddr,
    /// Tunnel destination, of the same family.
    pub destination: IpAddr,
    /// Clear the outer ECN field instead of copying it (RFC 6040 §4.1, compatibility mode).
    pub no_ecn: bool,
    /// Never set DF.
    pub no_pmtu_discovery: bool,
}

/// One outbound SA.
pub struct OutboundSa {
    /// Host order.
    pub spi: u32,
    /// Cipher, keys and IVs.
    pub transform: crate::cipher::Sealer,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Bytes of the whole AH header, with IV, ICV and padding (`vnic.transport.sizes.ah_sizes`); 0 for ESP.
    pub ah_length: usize,
    /// Shared with Python.
    pub sequence: Arc<Sequence>,
    /// Shared with Python.
    pub tally: Arc<Tally>,
    /// Number up to which the NIC of the Python engine knows the upper half; see [`STALE`].
    pub mark: u64,
}

/// How packets of one flow are framed: one portion, ESP or AH or AH over ESP.
pub struct Encapsulation {
    /// Innermost; at least one of `esp` and `ah` is there.
    pub esp: Option<Arc<OutboundSa>>,
    /// AH covers what ESP made (R98).
    pub ah: Option<Arc<OutboundSa>>,
    /// Tunnel mode where it is there, else transport mode.
    pub outer: Option<Outer>,
    /// ESP in UDP; never with AH.
    pub udp: Option<UdpEncapsulation>,
    /// Largest IP packet that gets to the far end, in bytes.
    pub path_mtu: usize,
    /// `now` after which `path_mtu` must be asked for again, seconds.
    pub valid_until: f64,
}

/// One inbound SA.
pub struct InboundSa {
    /// Host order.
    pub spi: u32,
    /// ESP or AH.
    pub protocol: Protocol,
    /// Address packets must come from, or None for any (R99).
    pub source: Option<IpAddr>,
    /// Address packets must go to; never a wildcard here.
    pub destination: IpAddr,
    /// Cipher and keys.
    pub transform: crate::cipher::Opener,
    /// Extended sequence numbers.
    pub esn: bool,
    /// As the SA says; an SA that leaves it open is not for this engine.
    pub mode: Mode,
    /// Leave the inner ECN field alone (RFC 6040 does not apply).
    pub no_ecn: bool,
    /// The ESP SA that must come inside this AH SA (R98), on the AH SA of a bundle.
    pub inside: Option<Arc<InboundSa>>,
    /// On an ESP SA in a bundle: it is only good inside its AH SA.
    pub only_inside: bool,
    /// Ports ESP must come in, or None for plain ESP.
    pub udp: Option<UdpEncapsulation>,
    /// Shared with Python.
    pub window: Arc<Window>,
    /// Shared with Python.
    pub tally: Arc<Tally>,
    /// Number up to which the NIC of the Python engine knows the upper half; see [`STALE`].
    pub mark: u64,
    /// Names the SA in [`crate::card`]'s set of flows that may pass.
    pub id: u64,
}
