//! Names that are seen outside.

/// The name on the bus.
pub const NAME: &str = "org.storage.stratis3";

/// The version that `Manager.Version` tells: the level of the interfaces, which clients compare
/// with what they need. It is not the version of this program.
pub const INTERFACE_LEVEL: &str = "3.9.2";

/// Environment variable with the largest message in bytes, if the bus has another limit.
pub const MESSAGE_MAX_VARIABLE: &str = "STRATISD_DBUS_MAX_MESSAGE_SIZE";
