//! What the Python engine has told of one card: how flows are protected, which SAs receive, what may pass.
//!
//! Law: holds what was told and forgets it when told; decides nothing. What is told is bounded by what Python's own
//! tables hold, or starts afresh here; so a table is never searched for what to give up.
//!
//! ```text
//! flows    FlowKey                       -> Encapsulation      install_flow, clear_flows
//! SAs      (destination, SPI, protocol)  -> InboundSa          install_sa, clear_inbound
//! allowed  (FlowKey, id of the outermost SA)                   allow, clear_inbound
//! ```

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::association::{Encapsulation, FlowKey, InboundSa, Protocol};
use crate::coalesce::Joins;
use crate::mb::Manager;
use crate::punt::{Punt, PuntReason};

/// Flows, and inner flows that may pass, that are remembered; each table starts afresh beyond.
pub const MAX_FLOWS: usize = 8192;

/// What a card has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets sealed here; a superframe counts as its segments.
    pub sent: u64,
    /// Packets opened here and passed on.
    pub received: u64,
    /// Frames left to the Python engine, by the number of their [`PuntReason`].
    pub punts: [u64; PuntReason::ALL.len()],
}

impl Counts {
    /// Note what was left to the Python engine.
    pub fn note(&mut self, punts: &[Punt]) {
        for punt in punts {
            self.punts[punt.reason as usize] += 1;
        }
    }
}

/// One card of the native engine. One thread works on it at a time.
pub struct Card {
    pub(crate) manager: Manager,
    pub(crate) flows: Flows,
    pub(crate) sas: InboundSas,
    pub(crate) allowed: Allowed,
    pub(crate) counts: Counts,
    pub(crate) send: crate::send::Scratch,
    pub(crate) joins: Joins,
    pub(crate) receive: crate::receive::Scratch,
}

impl Card {
    /// A card that knows nothing, so that every frame is a punt.
    pub fn new(manager: Manager) -> Self {
        let seed = Seed::default();
        Self {
            manager,
            flows: Flows(HashMap::with_hasher(seed)),
            sas: InboundSas(HashMap::with_hasher(seed)),
            allowed: Allowed(HashSet::with_hasher(seed)),
            counts: Counts::default(),
            send: crate::send::Scratch::default(),
            joins: Joins { tcp: true, udp: false },
            receive: crate::receive::Scratch::default(),
        }
    }

    /// The manager that the SAs of this card must be made with.
    pub fn manager(&mut self) -> &mut Manager {
        &mut self.manager
    }

    /// What was done since the card was made.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Say which superframes the host takes; of TCP alone at first.
    pub fn set_joins(&mut self, joins: Joins) {
        self.joins = joins;
    }

    /// Protect the packets of a flow so from now on.
    pub fn install_flow(&mut self, flow: FlowKey, encapsulation: Arc<Encapsulation>) {
        let flows = &mut self.flows.0;
        let key = Packed::from(&flow);
        if flows.len() >= MAX_FLOWS && !flows.contains_key(&key) {
            flows.clear();
        }
        flows.insert(key, encapsulation);
    }

    /// Take the packets of an SA from now on; it takes the place of one with the same destination, SPI and protocol.
    pub fn install_sa(&mut self, sa: Arc<InboundSa>) {
        self.sas.0.insert(SaKey::new(sa.destination, sa.spi, sa.protocol), sa);
    }

    /// Let an inner flow pass that came with the SA `outermost` ([`InboundSa::id`]).
    pub fn allow(&mut self, flow: FlowKey, outermost: u64) {
        let allowed = &mut self.allowed.0;
        let key = (Packed::from(&flow), outermost);
        if allowed.len() >= MAX_FLOWS && !allowed.contains(&key) {
            allowed.clear();
        }
        allowed.insert(key);
    }

    /// Forget the outbound flows: their packets are punts.
    pub fn clear_flows(&mut self) {
        self.flows.0.clear();
    }

    /// Forget the inbound SAs, and what may pass.
    pub fn clear_inbound(&mut self) {
        self.sas.0.clear();
        self.allowed.0.clear();
    }

    /// Forget everything but what was counted.
    pub fn clear(&mut self) {
        self.clear_flows();
        self.clear_inbound();
    }

    /// How many outbound flows, inbound SAs and inner flows that may pass are known.
    pub fn known(&self) -> (usize, usize, usize) {
        (self.flows.0.len(), self.sas.0.len(), self.allowed.0.len())
    }
}

/// Outbound flows.
pub struct Flows(HashMap<Packed, Arc<Encapsulation>, Seed>);

impl Flows {
    /// How packets of a flow are protected, if that was told.
    pub fn get(&self, flow: &FlowKey) -> Option<&Arc<Encapsulation>> {
        self.0.get(&Packed::from(flow))
    }
}

/// Inbound SAs.
pub struct InboundSas(HashMap<SaKey, Arc<InboundSa>, Seed>);

impl InboundSas {
    /// The SA of a packet, if it was told.
    pub fn get(&self, destination: IpAddr, spi: u32, protocol: Protocol) -> Option<&Arc<InboundSa>> {
        self.0.get(&SaKey::new(destination, spi, protocol))
    }
}

/// Inner flows that may pass.
pub struct Allowed(HashSet<(Packed, u64), Seed>);

impl Allowed {
    /// Whether a flow may pass that came with the SA `outermost`.
    pub fn contains(&self, flow: &FlowKey, outermost: u64) -> bool {
        self.0.contains(&(Packed::from(flow), outermost))
    }
}

/// An address as a number, and 1 for IPv6, so that no IPv4 address is an IPv6 one.
fn number(address: IpAddr) -> (u128, u64) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 0),
        IpAddr::V6(address) => (u128::from(address), 1),
    }
}

/// A flow as three numbers, which hash and compare at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Packed {
    source: u128,
    destination: u128,
    /// Family, protocol, ports (17 bits each, and -1).
    rest: u64,
}

impl From<&FlowKey> for Packed {
    fn from(flow: &FlowKey) -> Self {
        let (source, source_family) = number(flow.source);
        let (destination, destination_family) = number(flow.destination);
        // A port and its -1 are 18 bits of two's complement.
        let bits = |port: i32| u64::from(port as u32 & 0x3_ffff);
        let rest = source_family
            | destination_family << 1
            | u64::from(flow.protocol) << 8
            | bits(flow.source_port) << 16
            | bits(flow.destination_port) << 34;
        Self { source, destination, rest }
    }
}

/// What names an inbound SA in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SaKey {
    destination: u128,
    /// Family, protocol, SPI.
    rest: u64,
}

impl SaKey {
    fn new(destination: IpAddr, spi: u32, protocol: Protocol) -> Self {
        let (destination, family) = number(destination);
        Self { destination, rest: u64::from(spi) << 32 | (protocol as u64) << 8 | family }
    }
}

/// Two secret numbers of one card: who sends flows cannot tell which of them meet in a table.
#[derive(Clone, Copy)]
pub(crate) struct Seed(u64, u64);

impl Default for Seed {
    fn default() -> Self {
        let random = RandomState::new();
        Self(random.hash_one(0), random.hash_one(1) | 1)
    }
}

impl BuildHasher for Seed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { state: self.0, multiplier: self.1 }
    }
}

/// Multiplies to 128 bits and folds, a word at a time.
pub(crate) struct Folding {
    state: u64,
    multiplier: u64,
}

impl Folding {
    fn mix(&mut self, word: u64) {
        // The word is not a factor on its own, so that no word makes the product 0 whatever the seed.
        let product = u128::from(self.state ^ word) * u128::from(self.multiplier ^ word.rotate_left(32));
        self.state = product as u64 ^ (product >> 64) as u64 ^ self.state.rotate_left(23);
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_u128(&mut self, words: u128) {
        self.mix(words as u64);
        self.mix((words >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.state) * u128::from(self.multiplier);
        product as u64 ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: i32) -> FlowKey {
        FlowKey {
            source: "192.0.2.1".parse().unwrap(),
            destination: "2001:db8::1".parse().unwrap(),
            protocol: 17,
            source_port: port,
            destination_port: -1,
        }
    }

    fn card() -> Card {
        Card::new(crate::mb::Manager::new().expect("a manager"))
    }

    fn plan() -> Arc<Encapsulation> {
        Arc::new(Encapsulation {
            esp: None,
            ah: None,
            outer: None,
            udp: None,
            path_mtu: 1500,
            valid_until: f64::INFINITY,
        })
    }

    #[test]
    fn a_flow_is_found_by_all_that_names_it_and_by_nothing_less() {
        let mut card = card();
        let first = flow(5000);
        card.install_flow(first, plan());
        assert!(card.flows.get(&first).is_some());
        let mapped = FlowKey { source: "::c000:201".parse().unwrap(), ..first };
        for other in [
            flow(5001),
            flow(-1),
            flow(65536),
            mapped,
            FlowKey { destination: first.source, ..first },
            FlowKey { protocol: 6, ..first },
            FlowKey { destination_port: 65535, ..first },
            FlowKey { destination_port: 65536, ..first },
        ] {
            assert!(card.flows.get(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn tables_start_afresh_beyond_their_bound_and_replacing_does_not_count() {
        let mut card = card();
        for port in 0..8192 {
            card.install_flow(flow(port), plan());
            card.allow(flow(port), 7);
        }
        card.install_flow(flow(0), plan());
        card.allow(flow(0), 7);
        assert_eq!(card.known(), (8192, 0, 8192));
        card.install_flow(flow(8192), plan());
        card.allow(flow(0), 8);
        assert_eq!(card.known(), (1, 0, 1));
        assert!(!card.allowed.contains(&flow(0), 7));
        assert!(card.allowed.contains(&flow(0), 8));
        card.clear();
        assert_eq!(card.known(), (0, 0, 0));
    }

    #[test]
    fn hashes_of_neighbouring_flows_spread_over_a_table() {
        let seed = Seed::default();
        let mut buckets = [0_u32; 1024];
        for port in 0..8192 {
            buckets[(seed.hash_one(Packed::from(&flow(port))) & 1023) as usize] += 1;
        }
        assert!(buckets.iter().all(|&count| count < 40), "{buckets:?}");
    }
}
