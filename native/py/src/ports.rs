//! Ports as Python sees them: the same descriptors as its own ports, and what moves bursts between them.
//!
//! Law: whole bursts without the interpreter; only frames that are left to the Python engine become objects.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use vnic_core::frames::{Frame, Frames};
use vnic_core::io::{self, Counts, End, Moved, Scratch, Wire};
use vnic_core::punt::Punt;
use vnic_core::udp;

use crate::card::{Card, address};

/// Frames and bytes received, frames and bytes sent, frames lost in reading and in writing.
type Counted = (u64, u64, u64, u64, u64, u64);
/// A virtio-net header as the named tuple of Python has it.
type Header = (u8, u8, u16, u16, u16, u16);
/// A frame that is left to Python.
type Left<'py> = (Bound<'py, PyByteArray>, Option<Header>);
/// A card, its TAP and its end of a link.
type LinkEnd<'py> = (Bound<'py, Card>, Bound<'py, Tap>, Bound<'py, Link>);
/// Frames left by the card, frames left by the card at the other end of a link, errno of reading and of writing.
type Rest<'py> = (Vec<Left<'py>>, Vec<Left<'py>>, i32, i32);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A defect in a burst ends that burst.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counted(counts: Counts) -> Counted {
    (counts.rx_frames, counts.rx_bytes, counts.tx_frames, counts.tx_bytes, counts.rx_lost, counts.tx_lost)
}

/// A TAP; see `vnic_core::io::Tap`. The descriptors stay the caller's.
#[pyclass(frozen, module = "vnic_native")]
pub struct Tap(Mutex<io::Tap>);

#[pymethods]
impl Tap {
    #[new]
    fn new(descriptors: Vec<i32>) -> Self {
        Self(Mutex::new(io::Tap::new(descriptors)))
    }

    /// What passed since the last call; see `vnic.ports.base.NativePort`.
    fn take_counts(&self) -> Counted {
        counted(locked(&self.0).take_counts())
    }

    /// Touch the descriptors no more.
    fn close(&self) {
        locked(&self.0).close();
    }
}

/// A packet socket; see `vnic_core::io::PacketSocket`. The descriptor stays the caller's.
#[pyclass(frozen, module = "vnic_native")]
pub struct PacketSocket(Mutex<io::PacketSocket>);

#[pymethods]
impl PacketSocket {
    #[new]
    fn new(descriptor: i32) -> Self {
        Self(Mutex::new(io::PacketSocket::new(descriptor)))
    }

    /// What passed since the last call; see `vnic.ports.base.NativePort`.
    fn take_counts(&self) -> Counted {
        counted(locked(&self.0).take_counts())
    }

    /// Touch the descriptor no more.
    fn close(&self) {
        locked(&self.0).close();
    }
}

/// A UDP socket; see `vnic_core::udp::UdpSocket`. The descriptor stays the caller's.
#[pyclass(frozen, module = "vnic_native")]
pub struct UdpSocket(Mutex<udp::UdpSocket>);

/// Datagrams put aside: payload, bytes of each but the last, traffic class, sender.
type Aside<'py> = (Bound<'py, PyByteArray>, usize, u8, (String, u16));

fn mac(bytes: &[u8]) -> PyResult<[u8; 6]> {
    bytes.try_into().map_err(|_| PyValueError::new_err("an Ethernet address has six bytes"))
}

fn socket_address(address: &str, port: u16) -> PyResult<SocketAddr> {
    let address: IpAddr = address.parse().map_err(|_| PyValueError::new_err("no IP address"))?;
    Ok(SocketAddr::new(address, port))
}

#[pymethods]
impl UdpSocket {
    #[new]
    fn new(
        descriptor: i32,
        ends: (Vec<u8>, Vec<u8>),
        peer: (String, u16),
        addresses: (Vec<u8>, Vec<u8>),
        follow: bool,
    ) -> PyResult<Self> {
        let peer = socket_address(&peer.0, peer.1)?;
        let (local, remote) = (address(&ends.0)?, address(&ends.1)?);
        let (host, gateway) = (mac(&addresses.0)?, mac(&addresses.1)?);
        Ok(Self(Mutex::new(udp::UdpSocket::new(descriptor, local, remote, peer, host, gateway, follow))))
    }

    /// Send to another address from now on, and take datagrams from there.
    fn set_peer(&self, address: &str, port: u16) -> PyResult<()> {
        locked(&self.0).set_peer(socket_address(address, port)?);
        Ok(())
    }

    /// Send frames for the card to another host.
    fn set_host(&self, host: &[u8]) -> PyResult<()> {
        locked(&self.0).set_host(mac(host)?);
        Ok(())
    }

    /// What passed since the last call; see `vnic.ports.base.NativePort`.
    fn take_counts(&self) -> Counted {
        counted(locked(&self.0).take_counts())
    }

    /// Frames that were not ESP packets between the two ends, since the last call.
    fn take_not_esp(&self) -> u64 {
        locked(&self.0).take_not_esp()
    }

    /// Datagrams of others than the peer that ended here, since the last call.
    fn take_strangers(&self) -> u64 {
        locked(&self.0).take_strangers()
    }

    /// Datagrams that Python has to judge, since the last call, in order.
    fn take_aside<'py>(&self, py: Python<'py>) -> Vec<Aside<'py>> {
        let made = |one: udp::Aside| {
            let sender = (one.sender.ip().to_string(), one.sender.port());
            (PyByteArray::new(py, &one.data), one.size, one.traffic_class, sender)
        };
        locked(&self.0).take_aside().into_iter().map(made).collect()
    }

    /// Touch the descriptor no more.
    fn close(&self) {
        locked(&self.0).close();
    }
}

/// What a card may be plugged into, as Python hands it over.
#[derive(FromPyObject)]
enum AnyWire<'py> {
    Packet(Bound<'py, PacketSocket>),
    Udp(Bound<'py, UdpSocket>),
    Tap(Bound<'py, Tap>),
}

/// The same, without Python.
enum Plugged<'a> {
    Packet(&'a Mutex<io::PacketSocket>),
    Udp(&'a Mutex<udp::UdpSocket>),
    Tap(&'a Mutex<io::Tap>),
}

impl AnyWire<'_> {
    fn plugged(&self) -> Plugged<'_> {
        match self {
            Self::Packet(wire) => Plugged::Packet(&wire.get().0),
            Self::Udp(wire) => Plugged::Udp(&wire.get().0),
            Self::Tap(wire) => Plugged::Tap(&wire.get().0),
        }
    }
}

impl Plugged<'_> {
    fn with<T>(&self, work: impl FnOnce(&mut dyn Wire) -> T) -> T {
        match self {
            Self::Packet(wire) => work(&mut *locked(wire)),
            Self::Udp(wire) => work(&mut *locked(wire)),
            Self::Tap(wire) => work(&mut *locked(wire)),
        }
    }
}

/// One end of a link: nothing but what passed it.
#[pyclass(frozen, module = "vnic_native")]
#[derive(Default)]
pub struct Link(Mutex<Counts>);

#[pymethods]
impl Link {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// What passed since the last call; see `vnic.ports.base.NativePort`.
    fn take_counts(&self) -> Counted {
        counted(std::mem::take(&mut *locked(&self.0)))
    }

    /// There is nothing to close.
    fn close(&self) {}
}

/// Moves bursts, and keeps the memory they go through. One serves all adapters.
#[pyclass(frozen, module = "vnic_native")]
#[derive(Default)]
pub struct Pump(Mutex<Scratch>);

#[pymethods]
impl Pump {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Read a TAP, protect, and send to a wire, until nothing waits, something has to be done by Python, or a slice of
    /// time is over.
    ///
    /// Gives None if there is nothing to be done by Python.
    fn tap_to_wire<'py>(
        &self,
        py: Python<'py>,
        card: &Card,
        tap: &Tap,
        wire: AnyWire<'py>,
        now: f64,
    ) -> PyResult<Option<Rest<'py>>> {
        let mut scratch = locked(&self.0);
        let scratch = &mut *scratch;
        let wire = wire.plugged();
        let moved = py.detach(|| {
            card.with(|card| {
                let tap = &mut *locked(&tap.0);
                wire.with(|wire| io::in_rounds(scratch, |scratch| io::tap_to_wire(card, tap, wire, now, scratch)))
            })
        });
        Ok(rest(py, moved, scratch))
    }

    /// Read a wire, open, and write to a TAP; otherwise as `tap_to_wire`.
    fn wire_to_tap<'py>(
        &self,
        py: Python<'py>,
        card: &Card,
        wire: AnyWire<'py>,
        tap: &Tap,
        now: f64,
    ) -> PyResult<Option<Rest<'py>>> {
        let mut scratch = locked(&self.0);
        let scratch = &mut *scratch;
        let wire = wire.plugged();
        let moved = py.detach(|| {
            card.with(|card| {
                let tap = &mut *locked(&tap.0);
                wire.with(|wire| io::in_rounds(scratch, |scratch| io::wire_to_tap(card, wire, tap, now, scratch)))
            })
        });
        Ok(rest(py, moved, scratch))
    }

    /// Read a TAP, protect, and have the card at the other end of a link open and write to its TAP, and with
    /// `both_ways` the same from there by turns; otherwise as `tap_to_wire`. `near` and `far` are (card, TAP, end of
    /// the link), all of them different.
    ///
    /// Gives None if there is nothing to be done by Python, else that and whether it came from the far end.
    fn over_link<'py>(
        &self,
        py: Python<'py>,
        near: LinkEnd<'py>,
        far: LinkEnd<'py>,
        both_ways: bool,
        now: f64,
    ) -> PyResult<Option<(Rest<'py>, bool)>> {
        if near.0.is(&far.0) || near.1.is(&far.1) || near.2.is(&far.2) {
            return Err(PyTypeError::new_err("a link has two ends"));
        }
        let ((near_card, near_tap, near_link), (far_card, far_tap, far_link)) =
            ((near.0.get(), near.1.get(), near.2.get()), (far.0.get(), far.1.get(), far.2.get()));
        let mut scratch = locked(&self.0);
        let scratch = &mut *scratch;
        let (mut out, mut back) = (Counts::default(), Counts::default());
        let (moved, backwards) = py.detach(|| {
            near_card.with(|near_card| {
                far_card.with(|far_card| {
                    let mut near = End { card: near_card, tap: &mut locked(&near_tap.0) };
                    let mut far = End { card: far_card, tap: &mut locked(&far_tap.0) };
                    if !both_ways {
                        let moved = io::in_rounds(scratch, |scratch| {
                            io::tap_to_tap(&mut near, &mut far, &mut out, now, scratch)
                        });
                        return (moved, false);
                    }
                    io::in_turns(scratch, |backwards, scratch| match backwards {
                        false => io::tap_to_tap(&mut near, &mut far, &mut out, now, scratch),
                        true => io::tap_to_tap(&mut far, &mut near, &mut back, now, scratch),
                    })
                })
            })
        });
        pass(&out, &near_link.0, &far_link.0);
        pass(&back, &far_link.0, &near_link.0);
        Ok(rest(py, moved, scratch).map(|rest| (rest, backwards)))
    }
}

/// Count what went from one end of a link to the other.
fn pass(passed: &Counts, from: &Mutex<Counts>, to: &Mutex<Counts>) {
    let mut from = locked(from);
    from.tx_frames += passed.tx_frames;
    from.tx_bytes += passed.tx_bytes;
    let mut to = locked(to);
    to.rx_frames += passed.tx_frames;
    to.rx_bytes += passed.tx_bytes;
}

/// What is left to Python, if anything is.
fn rest<'py>(py: Python<'py>, moved: Moved, scratch: &Scratch) -> Option<Rest<'py>> {
    let nothing = scratch.punts.is_empty() && scratch.peer_punts.is_empty();
    if nothing && moved.read_error == 0 && moved.write_error == 0 {
        return None;
    }
    let left = left(py, &scratch.punts, &scratch.read);
    let peer_left = self::left(py, &scratch.peer_punts, &scratch.wire);
    Some((left, peer_left, moved.read_error, moved.write_error))
}

/// The frames that were left, as objects.
fn left<'py>(py: Python<'py>, punts: &[Punt], burst: &Frames) -> Vec<Left<'py>> {
    let made = |frame: &Frame| {
        let vnet = &frame.vnet;
        let header = (vnet.flags, vnet.gso_type, vnet.hdr_len, vnet.gso_size, vnet.csum_start, vnet.csum_offset);
        // Flags and GSO type both zero: a complete frame, whatever the other fields say.
        let header = (vnet.flags != 0 || vnet.gso_type != 0).then_some(header);
        (PyByteArray::new(py, burst.bytes_of(frame)), header)
    };
    punts.iter().filter_map(|punt| burst.frames.get(punt.index as usize)).map(made).collect()
}
