//! `vnic_native`: the burst engine for Python.

use pyo3::prelude::*;

/// The burst engine of vnic.
#[pymodule]
mod vnic_native {}
