//! The burst engine of vnic: ESP and AH over whole bursts of frames, without Python and without I/O of its own
//! but for what stands in [`io`].
//!
//! Law: a burst in, frames and punts out. A frame is either done whole, with every counter, number and window it
//! touches, or it is a *punt*: handed back exactly as it came, with nothing about it taken note of, for the Python
//! engine, which is the specification, to do from the beginning. Everything that is rare, wrong or hostile is a punt;
//! so no drop is counted and no audit record is made here.
//!
//! ```text
//! send     host frames ─> flow ─> segment + frame ─> IV ─> ESP seal ─> AH icv ─> wire frames
//!                           └> punt
//! receive  wire frames ─> SA ─> replay? ─> open beside the frame ─> checks ─> commit ─> coalesce ─> host frames
//!                           └────────────────────────────> punt
//! ```
//!
//! One burst is worked on by one thread; state that Python reads too is atomic ([`state`]).

#![deny(unsafe_op_in_unsafe_fn)]

pub mod association;
pub mod card;
pub mod checksum;
pub mod cipher;
pub mod coalesce;
mod frame;
pub mod frames;
pub mod io;
pub mod keys;
pub mod mb;
pub mod packet;
pub mod punt;
mod receive;
mod segment;
mod send;
pub mod state;
pub mod udp;
