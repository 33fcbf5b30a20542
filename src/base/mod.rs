//! Values that every room may use: identifiers, names, units, and an error with its causes as one
//! sentence.
//!
//! This room depends on no other.

pub mod error_chain;
pub mod ids;
pub mod name;
pub mod pool_ref;
pub mod units;
