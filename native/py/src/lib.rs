//! `vnic_native`: the burst engine for Python.
//!
//! Law: a thin face of `vnic_core`; what is decided is decided there or in Python.

use pyo3::prelude::*;

mod card;
mod ports;
mod state;

/// The burst engine of vnic.
#[pymodule]
mod vnic_native {
    #[pymodule_export]
    use crate::card::{Card, InboundSa, OutboundSa, library_version};
    #[pymodule_export]
    use crate::ports::{Link, PacketSocket, Pump, Tap, UdpSocket};
    #[pymodule_export]
    use crate::state::{CounterIvs, OutboundSequence, ReplayWindow, SaCounters};
}
