//! The promises about the bus (P1 to P6 and P9 of docs/architecture.md), tested on a whole daemon:
//! each test has a private bus and one `stratisd --sim`, and makes calls as clients do.
//!
//! The tests assert the order of events, never times. They print figures for information (`cargo
//! test --test bus -- --nocapture`).

#![allow(clippy::unwrap_used, clippy::missing_docs_in_private_items, missing_docs, reason = "a test")]

mod conformance;
mod history;
mod hostile;
mod load;
mod slow;
mod waiting;
mod writes;
