//! Which threads exist, what connects them, how the daemon comes up and how it stops.
//!
//! Must never know: any policy about pools. It builds, joins and stops.

pub mod dispatch;
mod first_look;
pub mod links;
pub mod logging;
pub mod machine;
pub mod readiness;
mod run;
mod stop;
mod table;
pub mod thread_table;

pub use run::{Error, run};
pub use stop::Stuck;

use crate::bus::INTERFACE_LEVEL;

/// Our version, and the level of the interfaces that clients compare with what they need.
pub fn version() -> String {
    format!("{} (interface level {INTERFACE_LEVEL})", env!("CARGO_PKG_VERSION"))
}
