//! The promises about the bus (P1 to P6 and P9 of docs/architecture.md) on a whole daemon: one `stratisd --sim` on a bus of its own for each
//! test, driven as clients would.
//!
//! Order of events is asserted, never time; figures that are printed are for people (`cargo test --test bus --
//! --nocapture`).

// What a rig of clients offers is more than each test uses; the compiler sees the tests one by one.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::missing_docs_in_private_items, missing_docs, reason = "a test")]

mod broker;
mod client;
mod conformance;
mod history;
mod hostile;
mod load;
mod rig;
mod slow;
mod waiting;
mod writes;
