//! Names that clients and administrators see.

/// The daemon's name on the bus.
pub const NAME: &str = "org.storage.stratis3";

/// Environment variable for the largest message in bytes, if the limit of the bus is not the
/// default.
pub const MESSAGE_MAX_VARIABLE: &str = "STRATISD_DBUS_MAX_MESSAGE_SIZE";
