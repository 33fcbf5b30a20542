//! The caller of a method.

/// The caller of a method, as a reply names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Its unique name on the bus.
    pub name: String,
    /// The serial number of its call.
    pub serial: u32,
}
