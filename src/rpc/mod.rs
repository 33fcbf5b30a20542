//! The socket of the early-boot daemon: JSON over a Unix socket, with file descriptors
//! (`docs/spec/tools/min.md` §4 and §5). This room has both ends, so that they cannot differ.
//!
//! Each connection carries one request and one answer. The server reads until the JSON value is
//! complete and not to the end of the stream, because clients keep their end open.
//!
//! ```text
//!              requests            jobs (Submit)
//!   clients ────────────▶ rpc ───────────────────────▶ the daemon's lock and workers
//!      ▲                  │ ▲                               │
//!      └──────────────────┘ │ answers, after their changes  │ Update<RpcReply>
//!          answers          └────────── view-writer ◀───────┘
//! ```
//!
//! Must never know: device-mapper, metadata layout, locks, worker threads.

pub mod client;
mod connection;
mod frame;
mod lookup;
mod packet;
pub mod protocol;
mod requests;
mod server;
mod socket;
mod writer;

pub use server::{RpcReply, Server};
pub use socket::SocketError;
pub use writer::ViewWriter;

/// The socket, below the runtime directory.
pub const SOCKET: &str = "stratisd/stratisd-min-jsonrpc";
/// Where the runtime directory is.
pub const RUNTIME_DIRECTORY: &str = "/run";
/// The variable that replaces it for a simulated machine. The daemon reads the variable with
/// `--sim` only.
pub const RUN_DIRECTORY_VARIABLE: &str = "STRATISD_SIM_RUN_DIR";
/// Largest request in bytes. The existing daemon reads no more at once.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest answer in bytes that the client accepts: ten times the report of the largest pools.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;
