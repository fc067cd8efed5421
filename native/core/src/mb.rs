//! intel-ipsec-mb: the multi-buffer manager.
//!
//! Law: all calls into the C library, and all `unsafe` that they need, are here and in [`crate::keys`].

/// A multi-buffer manager for the CPU this runs on. One per card; never shared between threads.
pub struct Manager {}
