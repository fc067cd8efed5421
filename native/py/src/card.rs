//! One card of the engine, and the SAs it works with.
//!
//! Law: keys are read where the caller has them and kept by the core alone, in locked memory; what was copied on the
//! way is wiped. A burst is copied in, worked on without the interpreter's lock, and copied out.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict, PyList};
use vnic_core::association::{self, Encapsulation, FlowKey, Mode, Outer, Protocol, UdpEncapsulation};
use vnic_core::card;
use vnic_core::cipher::{Keys, Opener, Sealer};
use vnic_core::coalesce::Joins;
use vnic_core::frames::{Frames, HostFrames, Vnet};
use vnic_core::keys::wipe;
use vnic_core::mb::Manager;
use vnic_core::punt::{Punt, PuntReason};

use crate::state::{CounterIvs, OutboundSequence, ReplayWindow, SaCounters};

/// One outbound SA as a card works with it. Its keys are wiped when the last who has it lets go.
#[pyclass(frozen, module = "vnic_native")]
pub struct OutboundSa(pub Arc<association::OutboundSa>);

/// One inbound SA as a card works with it. Its keys are wiped when the last who has it lets go.
#[pyclass(frozen, module = "vnic_native")]
pub struct InboundSa(pub Arc<association::InboundSa>);

/// Names inbound SAs, so that what may pass with one never passes with another.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

/// The card, and the memory its bursts go through.
struct Inner {
    card: card::Card,
    input: Frames,
    wire: Frames,
    host: HostFrames,
    punts: Vec<Punt>,
}

/// One card; see `vnic_core::card::Card`.
#[pyclass(frozen, module = "vnic_native")]
pub struct Card {
    inner: Mutex<Inner>,
    arch: &'static str,
}

/// A virtio-net header as the named tuple of Python has it.
type Header = (u8, u8, u16, u16, u16, u16);
/// Source, destination, protocol and ports, as `vnic.ipsec.policy.FlowKey`.
type Flow<'a> = (&'a [u8], &'a [u8], i32, i32, i32);
/// Source, destination, leave ECN out, never set DF.
type Ends<'a> = (&'a [u8], &'a [u8], bool, bool);

/// What is left to Python: places in the burst, and reasons.
type Left = Vec<(u32, &'static str)>;

/// Key bytes of the caller, wiped behind their use.
struct Key(Vec<u8>);

impl Key {
    fn of(py: Python<'_>, buffer: &PyBuffer<u8>) -> PyResult<Self> {
        let mut key = Self(vec![0; buffer.item_count()]);
        buffer.copy_to_slice(py, &mut key.0)?;
        Ok(key)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

pub(crate) fn address(bytes: &[u8]) -> PyResult<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(bytes))
    } else if let Ok(bytes) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(bytes))
    } else {
        Err(PyValueError::new_err("an address has 4 or 16 bytes"))
    }
}

fn flow_key((source, destination, protocol, source_port, destination_port): Flow<'_>) -> PyResult<FlowKey> {
    let protocol = u8::try_from(protocol).map_err(|_| PyValueError::new_err("a flow without a protocol"))?;
    let (source, destination) = (address(source)?, address(destination)?);
    Ok(FlowKey { source, destination, protocol, source_port, destination_port })
}

fn protocol_of(number: u8) -> PyResult<Protocol> {
    match number {
        50 => Ok(Protocol::Esp),
        51 => Ok(Protocol::Ah),
        _ => Err(PyValueError::new_err("protocol is 50 or 51")),
    }
}

fn encapsulation((source_port, destination_port, checksum): (u16, u16, bool)) -> UdpEncapsulation {
    UdpEncapsulation { source_port, destination_port, checksum }
}

fn left(punts: &[Punt]) -> Left {
    punts.iter().map(|punt| (punt.index, punt.reason.name())).collect()
}

impl Inner {
    /// Take a burst in: buffers and virtio-net headers.
    fn load(&mut self, burst: &Bound<'_, PyList>) -> PyResult<()> {
        self.input.clear();
        for item in burst {
            let (frame, vnet): (Bound<'_, PyByteArray>, Option<Header>) = item.extract()?;
            let vnet =
                vnet.map_or_else(Vnet::default, |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| Vnet {
                    flags,
                    gso_type,
                    hdr_len,
                    gso_size,
                    csum_start,
                    csum_offset,
                });
            let index = u32::try_from(self.input.frames.len()).map_err(PyValueError::new_err)?;
            // The interpreter is not left while the bytes are looked at, so nobody changes them.
            self.input.push(&frame.to_vec(), vnet, index);
        }
        Ok(())
    }
}

impl Card {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A defect in a burst ends that burst; what was told to the card is still whole.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Work on the card itself.
    pub fn with<T>(&self, work: impl FnOnce(&mut card::Card) -> T) -> T {
        work(&mut self.inner().card)
    }
}

fn keys_error(error: vnic_core::cipher::KeysError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pymethods]
impl Card {
    #[new]
    fn new() -> PyResult<Self> {
        let manager = Manager::new().map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        let arch = manager.arch_name();
        let inner = Inner {
            card: card::Card::new(manager),
            input: Frames::default(),
            wire: Frames::default(),
            host: HostFrames::default(),
            punts: Vec::new(),
        };
        Ok(Self { inner: Mutex::new(inner), arch })
    }

    /// Instruction set that the ciphers use on this CPU.
    #[getter]
    fn arch(&self) -> &'static str {
        self.arch
    }

    /// Make an outbound SA; its keys are expanded here.
    #[expect(clippy::too_many_arguments, reason = "an SA has so many parts, and Python names each")]
    #[pyo3(signature = (*, spi, encryption, encryption_key, integrity, integrity_key, icv_length, ivs, esn,
        ah_length, sequence, counters, mark))]
    fn outbound_sa(
        &self,
        py: Python<'_>,
        spi: u32,
        encryption: &str,
        encryption_key: PyBuffer<u8>,
        integrity: &str,
        integrity_key: PyBuffer<u8>,
        icv_length: usize,
        ivs: Option<&CounterIvs>,
        esn: bool,
        ah_length: usize,
        sequence: &OutboundSequence,
        counters: &SaCounters,
        mark: u64,
    ) -> PyResult<OutboundSa> {
        let (encryption_key, integrity_key) = (Key::of(py, &encryption_key)?, Key::of(py, &integrity_key)?);
        let keys = Keys {
            encryption,
            encryption_key: &encryption_key.0,
            integrity,
            integrity_key: &integrity_key.0,
            icv_length,
        };
        let transform =
            Sealer::new(self.inner().card.manager(), &keys, ivs.map(|ivs| Arc::clone(&ivs.ivs))).map_err(keys_error)?;
        Ok(OutboundSa(Arc::new(association::OutboundSa {
            spi,
            transform,
            esn,
            ah_length,
            sequence: Arc::clone(&sequence.0),
            tally: Arc::clone(&counters.tally),
            mark,
        })))
    }

    /// Make an inbound SA; its keys are expanded here.
    #[expect(clippy::too_many_arguments, reason = "an SA has so many parts, and Python names each")]
    #[pyo3(signature = (*, spi, protocol, source, destination, tunnel, no_ecn, encryption, encryption_key, integrity,
        integrity_key, icv_length, esn, inside, only_inside, udp, window, counters, mark))]
    fn inbound_sa(
        &self,
        py: Python<'_>,
        spi: u32,
        protocol: u8,
        source: &[u8],
        destination: &[u8],
        tunnel: bool,
        no_ecn: bool,
        encryption: &str,
        encryption_key: PyBuffer<u8>,
        integrity: &str,
        integrity_key: PyBuffer<u8>,
        icv_length: usize,
        esn: bool,
        inside: Option<&InboundSa>,
        only_inside: bool,
        udp: Option<(u16, u16, bool)>,
        window: &ReplayWindow,
        counters: &SaCounters,
        mark: u64,
    ) -> PyResult<InboundSa> {
        let (encryption_key, integrity_key) = (Key::of(py, &encryption_key)?, Key::of(py, &integrity_key)?);
        let keys = Keys {
            encryption,
            encryption_key: &encryption_key.0,
            integrity,
            integrity_key: &integrity_key.0,
            icv_length,
        };
        let transform = Opener::new(self.inner().card.manager(), &keys).map_err(keys_error)?;
        let source = address(source)?;
        Ok(InboundSa(Arc::new(association::InboundSa {
            spi,
            protocol: protocol_of(protocol)?,
            source: (!source.is_unspecified()).then_some(source),
            destination: address(destination)?,
            transform,
            esn,
            mode: if tunnel { Mode::Tunnel } else { Mode::Transport },
            no_ecn,
            inside: inside.map(|sa| Arc::clone(&sa.0)),
            only_inside,
            udp: udp.map(encapsulation),
            window: Arc::clone(&window.0),
            tally: Arc::clone(&counters.tally),
            mark,
            id: LAST_ID.fetch_add(1, Relaxed) + 1,
        })))
    }

    /// Protect the packets of a flow so from now on.
    #[expect(clippy::too_many_arguments, reason = "an encapsulation has so many parts, and Python names each")]
    #[pyo3(signature = (flow, *, esp, ah, outer, udp, path_mtu, valid_until))]
    fn install_flow(
        &self,
        flow: Flow<'_>,
        esp: Option<&OutboundSa>,
        ah: Option<&OutboundSa>,
        outer: Option<Ends<'_>>,
        udp: Option<(u16, u16, bool)>,
        path_mtu: usize,
        valid_until: f64,
    ) -> PyResult<()> {
        if esp.is_none() && ah.is_none() {
            return Err(PyValueError::new_err("a flow is protected by ESP or AH or both"));
        }
        let outer = match outer {
            None => None,
            Some((source, destination, no_ecn, no_pmtu_discovery)) => {
                Some(Outer { source: address(source)?, destination: address(destination)?, no_ecn, no_pmtu_discovery })
            }
        };
        let encapsulation = Encapsulation {
            esp: esp.map(|sa| Arc::clone(&sa.0)),
            ah: ah.map(|sa| Arc::clone(&sa.0)),
            outer,
            udp: udp.map(encapsulation),
            path_mtu,
            valid_until,
        };
        self.inner().card.install_flow(flow_key(flow)?, Arc::new(encapsulation));
        Ok(())
    }

    /// Take the packets of an SA from now on.
    fn install_sa(&self, sa: &InboundSa) {
        self.inner().card.install_sa(Arc::clone(&sa.0));
    }

    /// Let an inner flow pass that came with the SA `outermost`.
    fn allow(&self, flow: Flow<'_>, outermost: &InboundSa) -> PyResult<()> {
        self.inner().card.allow(flow_key(flow)?, outermost.0.id);
        Ok(())
    }

    /// Say whether packets of UDP flows, too, may be joined for the host; those of TCP always are.
    fn join_udp(&self, join: bool) {
        self.inner().card.set_joins(Joins { tcp: true, udp: join });
    }

    /// Forget the outbound flows.
    fn clear_flows(&self) {
        self.inner().card.clear_flows();
    }

    /// Forget everything but what was counted.
    fn clear(&self) {
        self.inner().card.clear();
    }

    /// How many outbound flows, inbound SAs and inner flows that may pass are known.
    #[getter]
    fn known(&self) -> (usize, usize, usize) {
        self.inner().card.known()
    }

    /// Packets sealed here.
    #[getter]
    fn sent(&self) -> u64 {
        self.inner().card.counts().sent
    }

    /// Packets opened here and passed on.
    #[getter]
    fn received(&self) -> u64 {
        self.inner().card.counts().received
    }

    /// Frames left to the Python engine, by reason.
    #[getter]
    fn punts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let punts = self.inner().card.counts().punts;
        let named = PyDict::new(py);
        for reason in PuntReason::ALL {
            named.set_item(reason.name(), punts[*reason as usize])?;
        }
        Ok(named)
    }

    /// Seal a burst of the host: `[(frame, virtio-net header or None), …]`.
    ///
    /// Gives `[(frame, index of the frame it came of), …]` and `[(index, reason), …]` of what is left to Python.
    fn send<'py>(&self, py: Python<'py>, burst: &Bound<'py, PyList>, now: f64) -> PyResult<(Bound<'py, PyList>, Left)> {
        let mut inner = self.inner();
        inner.load(burst)?;
        let Inner { card, input, wire, punts, .. } = &mut *inner;
        wire.clear();
        punts.clear();
        py.detach(|| card.send(input, now, wire, punts));
        let made = PyList::empty(py);
        for frame in &wire.frames {
            made.append((PyByteArray::new(py, wire.bytes_of(frame)), frame.origin))?;
        }
        Ok((made, left(punts)))
    }

    /// Open a burst of the wire: `[(frame, virtio-net header or None), …]`.
    ///
    /// Gives `[(frame, virtio-net header or None, index of the frame it came of), …]` and `[(index, reason), …]` of
    /// what is left to Python.
    fn receive<'py>(
        &self,
        py: Python<'py>,
        burst: &Bound<'py, PyList>,
        now: f64,
    ) -> PyResult<(Bound<'py, PyList>, Left)> {
        let mut inner = self.inner();
        inner.load(burst)?;
        let Inner { card, input, host, punts, .. } = &mut *inner;
        host.clear();
        punts.clear();
        py.detach(|| card.receive(input, now, host, punts));
        let made = PyList::empty(py);
        for frame in &host.frames {
            let vnet = &frame.vnet;
            let header: Header =
                (vnet.flags, vnet.gso_type, vnet.hdr_len, vnet.gso_size, vnet.csum_start, vnet.csum_offset);
            let header = (*vnet != Vnet::default()).then_some(header);
            made.append((PyByteArray::new(py, &host.joined(frame)), header, frame.origin))?;
        }
        Ok((made, left(punts)))
    }
}

/// Version of the cipher library.
#[pyfunction]
pub fn library_version() -> &'static str {
    Manager::version()
}
