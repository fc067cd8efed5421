//! Why a frame is left to the Python engine.
//!
//! Law: one table; `vnic stats` prints the names.

/// A frame that goes to the Python engine, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Punt {
    /// Its place in the burst that went in.
    pub index: u32,
    /// Why.
    pub reason: PuntReason,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame is left to the Python engine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum PuntReason { $($(#[$doc])* $variant,)* }

        impl PuntReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [PuntReason] = &[$(PuntReason::$variant,)*];

            /// The name a person reads.
            pub fn name(self) -> &'static str {
                match self { $(PuntReason::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// No IPv4 or IPv6 packet right behind an untagged Ethernet header.
    NonIp = "non_ip",
    /// A header that is cut short or contradicts itself.
    Malformed = "malformed",
    /// A fragment.
    Fragment = "fragment",
    /// IPv4 options or IPv6 extension headers.
    Options = "options",
    /// A flow whose verdict has not been told here, or that is not for this engine.
    UnknownFlow = "unknown_flow",
    /// An ESP or AH packet whose SA has not been told here, or that is not for this engine.
    UnknownSa = "unknown_sa",
    /// Not an ESP or AH packet.
    Clear = "clear",
    /// It does not fit the path.
    TooBig = "too_big",
    /// A limit of the SA, or the end of its numbers, is near.
    Limit = "limit",
    /// The NIC has to see a packet, lest it lose the upper half of the numbers.
    ExtendedNumbers = "extended_numbers",
    /// What was told here of the path has grown old.
    Stale = "stale",
    /// A superframe of a kind that is not cut here.
    Superframe = "superframe",
    /// The sequence number is not new.
    Replay = "replay",
    /// The ICV does not hold.
    Icv = "icv",
    /// Padding, trailer or header inside is not as it has to be.
    Syntax = "syntax",
    /// A dummy packet (RFC 4303 §2.6).
    Dummy = "dummy",
    /// Congestion marks change the packet inside.
    Congestion = "congestion",
    /// One before it, of the same flow or SA, is left too.
    Order = "order",
}
