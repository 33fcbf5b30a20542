//! The system bus: the only user of the `dbus` crate.
//!
//! [`table`] describes every member once; everything else is computed from it. Three threads share
//! one connection: [`reader`] takes calls, answers reads from the published [`tree`] and makes a
//! [`job`] of every other call; [`writer`] makes new versions of the tree from what jobs report and
//! sends signals and replies; [`lister`] sends the lists of all objects, which can be large.
//!
//! The bus knows the published state and the signatures of the engine's operations. It knows
//! nothing of device-mapper, disks, locks or worker threads.
//!
//! ```text
//!            calls                     jobs (Submit)
//!   bus ──────────────▶ bus-reader ───────────────────▶ the daemon's lock and workers
//!    ▲ ▲ ▲  replies to reads │  │ requests for lists               │
//!    │ │ └───────────────────┘  ▼                                  │ Update<Reply>
//!    │ └────────────────── bus-lister                              ▼
//!    └──────── signals, then replies ◀─── tree-writer ◀────────────┘
//! ```

mod answer;
mod arguments;
mod backlog;
mod call_error;
mod called_member;
mod caller;
mod changes;
mod connection;
mod error;
mod introspect;
pub mod job;
mod lister;
mod manager;
mod message;
mod methods;
mod names;
mod object_entry;
pub mod outcome;
mod pending_calls;
mod planted;
pub mod policy;
mod properties;
mod published;
mod quota;
mod reader;
mod rendering;
mod schema;
mod send_queue;
mod statistics;
mod table;
#[cfg(test)]
mod tests;
pub mod tree;
mod wire;
mod writer;

use std::sync::Arc;

pub use error::Error;
pub use job::{Job, Reply};
pub use lister::Lister;
pub use names::{MESSAGE_MAX_VARIABLE, NAME};
pub use reader::Reader;
pub use writer::Writer;

use connection::Connection;
use published::Published;

/// The daemon's side of the bus, before its threads run. Each part runs on its own thread. The
/// parts end in the order reader, lister, writer: the reader by its stop switch or an error, the
/// lister when the reader has ended, the writer when every sender of updates is gone.
pub struct Bus {
    /// Takes calls. Thread `bus-reader`.
    pub reader: Reader,
    /// Sends lists. Thread `bus-lister`.
    pub lister: Lister,
    /// Publishes. Thread `tree-writer`. It must run before the reader: the first view is published
    /// before the name is taken.
    pub writer: Writer,
}

impl Bus {
    /// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS` is honoured). The tree is empty and
    /// the name is not taken yet.
    ///
    /// # Errors
    /// When there is no bus.
    pub fn connect() -> Result<Bus, Error> {
        Bus::over(Connection::system()?)
    }

    /// Connects to the bus at a D-Bus address.
    ///
    /// # Errors
    /// When there is no bus at the address.
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
