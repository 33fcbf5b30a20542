//! Names that clients and administrators see.

/// The daemon's name on the bus.
pub const NAME: &str = "org.storage.stratis3";

/// The value of `Manager.Version`: the level of the interfaces, which clients compare with the
/// level that they need. It is not the version of this program.
pub const INTERFACE_LEVEL: &str = "3.9.2";

/// Environment variable for the largest message in bytes, if the bus has another limit.
pub const MESSAGE_MAX_VARIABLE: &str = "STRATISD_DBUS_MAX_MESSAGE_SIZE";
