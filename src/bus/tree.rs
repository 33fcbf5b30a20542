//! The published tree.

/// One version of all objects on the bus.
pub struct Tree {}
