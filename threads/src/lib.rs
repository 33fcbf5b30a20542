//! Concurrency for daemons that are built from a few dedicated threads and a fixed pool of workers.
//!
//! Must never know: what the entries of the lock are, what a job does, what a daemon serves. Nothing here names a disk,
//! a bus or a protocol; the crate could be published alone.
//!
//! - [`lock`]: a table of entries behind one lock with per-entry grants; it queues requests, not threads
//! - [`parking`]: where requests wait, as entries, for what others have claimed
//! - [`workers`]: threads that run jobs, as many as are needed; what hangs holds up its own share only
//! - [`wake`]: an eventfd that ends a wait in `poll`, and that `poll`
//! - [`stop`]: the switch that tells everybody to come to an end, and why
//! - [`side_by_side`]: the same work on several items at once, for a caller that waits for it
//! - [`group`]: the one place that starts threads which outlive a call, reports how each ended and joins them in order and in bounded time

mod fault;
pub mod group;
pub mod lock;
mod outbox;
pub mod parking;
mod primitives;
pub mod side_by_side;
pub mod stop;
pub mod wake;
pub mod workers;
