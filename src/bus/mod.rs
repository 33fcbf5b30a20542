//! The system bus: the only user of the `dbus` crate.
//!
//! [`table`] describes every member once; the rest is computed from it. Three threads share one connection:
//! [`reader`] takes calls in, answers reads from the published [`tree`] and makes a [`job`] of everything else;
//! [`writer`] makes new versions of the tree from what jobs report and sends signals and replies; [`lister`] sends the
//! lists of all objects, which can be large.
//!
//! Knows the published state and the engine's operations by their signatures; nothing of device-mapper, disks, locks or
//! worker threads.
//!
//! ```text
//!            calls                     jobs (Submit)
//!   bus ──────────────▶ bus-reader ───────────────────▶ the daemon's lock and workers
//!    ▲ ▲ ▲  replies to reads │  │ lists asked for                  │
//!    │ │ └───────────────────┘  ▼                                  │ Update<Reply>
//!    │ └────────────────── bus-lister                              ▼
//!    └──────── signals, then replies ◀─── tree-writer ◀────────────┘
//! ```

mod answer;
mod arguments;
mod asked;
mod awaited;
mod backlog;
mod call_error;
mod caller;
mod changes;
mod connection;
mod entry;
mod error;
mod introspect;
pub mod job;
mod lister;
mod message;
mod methods;
mod names;
pub mod outcome;
mod outlet;
mod passphrase;
mod pending;
mod planted;
pub mod policy;
mod properties;
mod published;
mod quota;
mod reader;
mod rendering;
mod report;
mod schema;
mod statistics;
mod table;
#[cfg(test)]
mod tests;
pub mod tree;
mod wire;
mod writer;

use std::sync::Arc;

pub use error::Error;
pub use job::{Holder, Job, Locks, Reply, RunningProgram, Submit};
pub use lister::Lister;
pub use names::{INTERFACE_LEVEL, MESSAGE_MAX_VARIABLE, NAME};
pub use outcome::Failure;
pub use reader::Reader;
pub use writer::Writer;

use connection::Connection;
use published::Published;

/// Our side of the bus, not yet at work. Each part is for a thread of its own; they end in the
/// order reader, lister, writer: the first by its stop switch (or an error), the second when the
/// first has gone, the last when every sender of updates is gone.
pub struct Bus {
    /// Takes calls in. `bus-reader`.
    pub reader: Reader,
    /// Sends lists. `bus-lister`.
    pub lister: Lister,
    /// Publishes. `tree-writer`; may run before the reader does, and must, for the first view to be
    /// published before the name is taken.
    pub writer: Writer,
}

impl Bus {
    /// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS` is honoured). The tree is empty; the
    /// name is not taken yet.
    ///
    /// # Errors
    /// When there is no bus.
    pub fn connect() -> Result<Bus, Error> {
        Bus::over(Connection::system()?)
    }

    /// The same for the bus at a D-Bus address.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect_to(address: &str) -> Result<Bus, Error> {
        Bus::over(Connection::at(address)?)
    }

    fn over(connection: Connection) -> Result<Bus, Error> {
        let connection = Arc::new(connection);
        let published = Arc::new(Published::default());
        let (lister, lists) = Lister::new(Arc::clone(&connection), Arc::clone(&published));
        let reader = Reader::new(Arc::clone(&connection), Arc::clone(&published), lists)?;
        Ok(Bus { reader, lister, writer: Writer::new(connection, published) })
    }
}
