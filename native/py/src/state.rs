//! The live state of SAs as Python sees it: the same attributes and methods as its own classes.
//!
//! Law: `vnic.ipsec.sequence.OutboundSequence`, `vnic.ipsec.replay.ReplayWindow`, `vnic.ipsec.counters.SaCounters` and
//! `vnic.miniport.ciphers.CounterIvs` say what each member means; here is only where it is kept. A number that does
//! not fit 64 bits counts as the largest that does: Python's "never" is 2^64.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyInt, PyType};
use vnic_core::state;

/// Percent of the numbers at which it is told that they run low (`vnic.ipsec.sequence.WARNINGS`).
const WARNINGS: [u64; 2] = [75, 90];

/// What a number of Python is here.
fn clamped(number: &Bound<'_, PyInt>) -> PyResult<u64> {
    match number.extract::<u64>() {
        Ok(number) => Ok(number),
        Err(_) if number.gt(u64::MAX)? => Ok(u64::MAX),
        Err(error) => Err(error),
    }
}

/// An object of a module of `vnic`, looked up once.
fn member(
    py: Python<'_>,
    kept: &'static PyOnceLock<Py<PyAny>>,
    module: &str,
    name: &str,
) -> PyResult<&'static Py<PyAny>> {
    kept.get_or_try_init(py, || Ok(py.import(module)?.getattr(name)?.unbind()))
}

/// The one owner of an outbound SA's sequence numbers; see `vnic.ipsec.sequence.OutboundSequence`.
#[pyclass(frozen, module = "vnic_native")]
pub struct OutboundSequence(pub Arc<state::Sequence>);

impl OutboundSequence {
    fn reached(&self, last: u64) -> u64 {
        let limit = u128::from(self.0.limit());
        WARNINGS.into_iter().filter(|one| u128::from(last) * 100 >= limit * u128::from(*one)).max().unwrap_or(0)
    }

    fn warning_after(&self, last: u128) -> u64 {
        let limit = self.0.limit();
        for one in WARNINGS {
            let first = (u128::from(limit) * u128::from(one)).div_ceil(100);
            if last < first {
                return u64::try_from(first - 1).expect("no more than the limit");
            }
        }
        limit
    }
}

#[pymethods]
impl OutboundSequence {
    #[new]
    #[pyo3(signature = (*, extended, last = 0))]
    fn new(extended: bool, last: u64) -> Self {
        let limit = if extended { u64::MAX } else { u64::from(u32::MAX) };
        let made = Self(Arc::new(state::Sequence::new(last, limit, 0)));
        made.0.set_stop(made.warning_after(u128::from(last)));
        made
    }

    #[getter]
    fn last(&self) -> u64 {
        self.0.last()
    }

    #[setter]
    fn set_last(&self, last: u64) {
        self.0.set_last(last);
    }

    #[getter]
    fn limit(&self) -> u64 {
        self.0.limit()
    }

    #[setter]
    fn set_limit(&self, limit: u64) {
        self.0.set_limit(limit);
    }

    #[getter]
    fn stop(&self) -> u64 {
        self.0.stop()
    }

    #[setter]
    fn set_stop(&self, stop: &Bound<'_, PyInt>) -> PyResult<()> {
        self.0.set_stop(clamped(stop)?);
        Ok(())
    }

    #[pyo3(signature = (count = 1))]
    fn take(&self, count: u64) -> u64 {
        self.0.take(count).unwrap_or(0)
    }

    fn percent(&self, last: &Bound<'_, PyInt>) -> PyResult<u64> {
        Ok(self.reached(clamped(last)?))
    }

    #[pyo3(signature = (taken = 0))]
    fn next_warning(&self, taken: u64) -> u64 {
        self.warning_after(u128::from(self.0.last()) + u128::from(taken))
    }

    fn end(&self) {
        let last = self.0.last();
        self.0.set_limit(last);
        self.0.set_stop(last);
    }

    #[getter]
    fn exhausted(&self) -> bool {
        self.0.last() >= self.0.limit()
    }
}

/// The anti-replay window of one inbound SA; see `vnic.ipsec.replay.ReplayWindow`.
#[pyclass(frozen, module = "vnic_native")]
pub struct ReplayWindow(pub Arc<state::Window>);

#[pymethods]
impl ReplayWindow {
    #[new]
    #[pyo3(signature = (window_bits = 1024, top = 0))]
    fn new(window_bits: u64, top: u64) -> Self {
        Self(Arc::new(state::Window::new(window_bits, top)))
    }

    #[getter]
    fn top(&self) -> u64 {
        self.0.top()
    }

    #[getter]
    fn window_bits(&self) -> u64 {
        self.0.bits()
    }

    #[getter]
    fn needed_bits(&self) -> u64 {
        self.0.needed()
    }

    fn check(&self, py: Python<'_>, sequence_number: u64) -> PyResult<Py<PyAny>> {
        static NEW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        static DUPLICATE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        static TOO_OLD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let (kept, name) = match self.0.check(sequence_number) {
            state::ReplayVerdict::New => (&NEW, "NEW"),
            state::ReplayVerdict::Duplicate => (&DUPLICATE, "DUPLICATE"),
            state::ReplayVerdict::TooOld => (&TOO_OLD, "TOO_OLD"),
        };
        let verdict = kept.get_or_try_init(py, || -> PyResult<Py<PyAny>> {
            Ok(py.import("vnic.ipsec.replay")?.getattr("ReplayVerdict")?.getattr(name)?.unbind())
        })?;
        Ok(verdict.clone_ref(py))
    }

    fn advance(&self, sequence_number: u64) {
        self.0.advance(sequence_number);
    }

    fn note_late(&self, sequence_number: u64) {
        self.0.note_late(sequence_number);
    }

    fn bitmap<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let top = self.0.top();
        let count = self.0.bits().min(top);
        let mut bytes = vec![0u8; usize::try_from(count.div_ceil(8)).expect("a window has at most 65,536 bits")];
        for (byte, first) in bytes.iter_mut().zip((0..).step_by(8)) {
            for bit in 0..8.min(count - first) {
                *byte |= u8::from(self.0.is_marked(top - first - bit)) << bit;
            }
        }
        py.get_type::<PyInt>().call_method1("from_bytes", (PyBytes::new(py, &bytes), "little"))
    }
}

/// Counters of one SA, and what else its packets change; see `vnic.ipsec.counters.SaCounters`.
#[pyclass(frozen, module = "vnic_native")]
pub struct SaCounters {
    pub tally: Arc<state::Tally>,
    drops: std::sync::Mutex<Py<PyAny>>,
}

impl SaCounters {
    fn dropped(&self, py: Python<'_>) -> Py<PyAny> {
        self.drops.lock().expect("nothing panics that holds it").clone_ref(py)
    }

    fn set_dropped(&self, drops: Py<PyAny>) -> Py<PyAny> {
        std::mem::replace(&mut *self.drops.lock().expect("nothing panics that holds it"), drops)
    }
}

#[pymethods]
impl SaCounters {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        static NO_DROPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let drops = member(py, &NO_DROPS, "vnic.ipsec.counters", "NO_DROPS")?.clone_ref(py);
        Ok(Self { tally: Arc::default(), drops: std::sync::Mutex::new(drops) })
    }

    #[getter]
    fn packets(&self) -> u64 {
        self.tally.packets.load(Relaxed)
    }

    #[setter]
    fn set_packets(&self, packets: u64) {
        self.tally.packets.store(packets, Relaxed);
    }

    #[getter]
    fn bytes(&self) -> u64 {
        self.tally.bytes.load(Relaxed)
    }

    #[setter]
    fn set_bytes(&self, bytes: u64) {
        self.tally.bytes.store(bytes, Relaxed);
    }

    /// Packets that may be counted before `vnic.transport.lifetimes` looks at the SA.
    #[getter]
    fn stop(&self) -> u64 {
        self.tally.stop.load(Relaxed)
    }

    #[setter]
    fn set_stop(&self, stop: &Bound<'_, PyInt>) -> PyResult<()> {
        self.tally.stop.store(clamped(stop)?, Relaxed);
        Ok(())
    }

    /// `now` of the last packet, seconds; 0 before the first.
    #[getter]
    fn use_time(&self) -> f64 {
        self.tally.use_time()
    }

    #[setter]
    fn set_use_time(&self, now: f64) {
        self.tally.set_use_time(now);
    }

    #[getter]
    fn drops(&self, py: Python<'_>) -> Py<PyAny> {
        self.dropped(py)
    }

    #[setter]
    fn set_drops(&self, drops: Py<PyAny>) {
        drop(self.set_dropped(drops));
    }

    fn count_drop(&self, py: Python<'_>, reason: &Bound<'_, PyAny>, count: u64) -> PyResult<()> {
        let drops = PyDict::new(py);
        drops.call_method1("update", (self.dropped(py),))?;
        let before = drops.get_item(reason)?.map_or(Ok(0), |before| before.extract::<u64>())?;
        drops.set_item(reason, before + count)?;
        drop(self.set_dropped(drops.into_any().unbind()));
        Ok(())
    }

    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        if !other.hasattr("packets")? {
            return Ok(false);
        }
        Ok(other.getattr("packets")?.eq(self.packets())?
            && other.getattr("bytes")?.eq(self.bytes())?
            && other.getattr("drops")?.eq(self.dropped(py))?)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (packets, bytes) = (self.packets(), self.bytes());
        Ok(format!("SaCounters(packets={packets}, bytes={bytes}, drops={})", self.dropped(py).bind(py).repr()?))
    }
}

/// The IVs of one counter-mode key; see `vnic.miniport.ciphers.CounterIvs`.
#[pyclass(frozen, module = "vnic_native")]
pub struct CounterIvs {
    pub ivs: Arc<state::CounterIvs>,
    holders: std::sync::atomic::AtomicU64,
}

/// More than the IVs that can have been given, 0 to 2^64; one more than its exponent in bits.
const POSITION_SHIFT: u32 = 65;

impl CounterIvs {
    fn at(start: u64, given: u64, used_up: bool) -> Self {
        Self { ivs: Arc::new(state::CounterIvs::new(start, given, used_up)), holders: 0.into() }
    }
}

#[pymethods]
impl CounterIvs {
    #[new]
    fn new(start: &[u8]) -> PyResult<Self> {
        let start = start.try_into().map_err(|_| PyValueError::new_err("start has 8 bytes"))?;
        Ok(Self::at(u64::from_be_bytes(start), 0, false))
    }

    /// Go on at the `position` of another.
    #[classmethod]
    fn resumed(_class: &Bound<'_, PyType>, position: &Bound<'_, PyInt>) -> PyResult<Self> {
        let start: u64 = position.call_method1("__rshift__", (POSITION_SHIFT,))?.extract()?;
        let mask = (1u128 << POSITION_SHIFT) - 1;
        let given: u128 = position.call_method1("__and__", (mask,))?.extract()?;
        Ok(match u64::try_from(given) {
            Ok(given) => Self::at(start, given, false),
            Err(_) => Self::at(start, u64::MAX, true),
        })
    }

    #[getter]
    fn position<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (start, given) = self.ivs.position();
        start.into_pyobject(py)?.call_method1("__lshift__", (POSITION_SHIFT,))?.call_method1("__or__", (given,))
    }

    #[getter]
    fn holders(&self) -> u64 {
        self.holders.load(Relaxed)
    }

    #[setter]
    fn set_holders(&self, holders: u64) {
        self.holders.store(holders, Relaxed);
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        static PACKET_ERROR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        match self.ivs.take() {
            Some(iv) => Ok(PyBytes::new(py, &iv)),
            None => {
                let error = member(py, &PACKET_ERROR, "vnic.errors", "PacketError")?;
                Err(PyErr::from_value(error.bind(py).call1(("the key has used up its IVs",))?))
            }
        }
    }
}
