//! Concurrency for daemons.
mod primitives;
pub mod stop;
pub mod wake;
