//! Programs beside the daemon. Each module is one program, with its arguments as values.
//!
//! They read devices, files and the bus, and return what is to be printed. Only [`legacy_pool`]
//! changes anything. This room must never depend on the daemon's threads or its side of the bus.

pub mod check_metadata;
pub mod client;
pub mod decode_dm;
pub mod doctor;
pub mod dump_metadata;
pub mod extents;
pub mod image;
pub mod legacy_pool;
pub mod predict_usage;
pub mod print_metadata;
