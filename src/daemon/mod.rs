//! The threads of the daemon, what connects them, and how the daemon starts and stops.
//!
//! Must never know: any policy about pools. It builds, joins and stops.

pub mod dispatch;
mod error;
mod first_look;
pub mod front_end;
pub mod links;
pub mod logging;
pub mod machine;
pub mod readiness;
mod run;
mod stop;
mod table;
pub mod thread_table;
mod watchdog;

pub use error::Error;
pub use run::run;
pub use stop::Stuck;

use crate::service::INTERFACE_LEVEL;

/// The daemon's version, and the interface level that clients compare with the level that they
/// need.
pub fn version() -> String {
    format!("{} (interface level {INTERFACE_LEVEL})", env!("CARGO_PKG_VERSION"))
}
