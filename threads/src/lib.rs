//! Concurrency for daemons that consist of a few dedicated threads and a pool of workers.
//!
//! Must never know: what the entries of the lock are, what a job does, what a daemon serves.
//! Nothing here names a disk, a bus or a protocol; the crate could be published on its own.
//!
//! - [`lock`]: a table of entries behind one lock with per-entry grants; it queues requests, not
//!   threads
//! - [`parking`]: where requests wait, as entries, for a claim of another request
//! - [`workers`]: threads that run jobs, started as needed; a job that hangs blocks its own share
//!   only
//! - [`wake`]: an eventfd that ends a wait in `poll`, and that `poll`
//! - [`pulse`]: asks threads whether they still run their loops, and names those that do not
//! - [`stop`]: the switch that tells all threads to end, with the reason
//! - [`side_by_side`]: runs one function on several items in parallel and waits for the results
//! - [`group`]: the one place that starts threads which outlive a call; it reports how each one
//!   ended and joins them in order, within a time limit

mod fault;
pub mod group;
pub mod lock;
mod outbox;
pub mod parking;
mod primitives;
pub mod pulse;
pub mod side_by_side;
pub mod stop;
pub mod wake;
pub mod workers;
