//! What the daemon offers to clients in any protocol: the jobs that a front end (the bus, or the
//! socket of the early-boot daemon) passes to the dispatcher, and the state of requests under way.
//!
//! Must never know: a protocol, locks, workers, or the thread on which a chain runs.

pub mod awaited_passphrases;
pub mod passphrase;
pub mod report;

use std::{fmt, time::Duration};

use crate::engine::request::Step;

/// The level of the interfaces, which clients compare with the level that they need. It is the
/// value of `Manager.Version` on the bus, and not the version of this program.
pub const INTERFACE_LEVEL: &str = "3.9.2";

/// Formats a time in seconds since 1970 for clients: RFC 3339, UTC, whole seconds.
pub fn utc(seconds: u64) -> String {
    let stamp = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    stamp.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Takes the jobs of a front end.
pub trait Submit<R>: Send + Sync {
    /// Queues the job and returns at once: the front end must not wait. If the job is not taken
    /// because the daemon stops, its `on_failure` makes the answer.
    fn submit(&self, job: ClientJob<R>);
    /// Which requests hold pools and which wait for them, which programs run, and how udev
    /// responds. Reports show this.
    fn locks(&self) -> Locks;
}

/// A request of a client that changes something, or that the published state cannot answer. `R` is
/// a reply of the front end.
pub struct ClientJob<R> {
    /// The request, for the log: interface and method, such as `pool.r9.SetName`.
    pub label: String,
    /// The operation. Its result is the reply; `None` if the caller wants none.
    pub chain: Step<Option<R>>,
    /// Makes the reply if the chain does not finish.
    pub on_failure: OnFailure<R>,
}

/// Makes the answer of a request that does not complete.
pub type OnFailure<R> = Box<dyn FnOnce(Failure) -> Option<R> + Send>;

impl<R> fmt::Debug for ClientJob<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientJob").field("label", &self.label).finish_non_exhaustive()
    }
}

/// Why a chain did not finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A step panicked.
    Panicked,
    /// The daemon stops and the job did not begin.
    Stopping,
    /// The daemon ends and could not wait any longer for the job.
    Unfinished,
}

/// The requests that hold and wait, at one moment, and the programs that run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks {
    /// Running programs, the oldest first.
    pub programs: Vec<ReportedProgram>,
    /// Requests that hold, in the order of the requests.
    pub holders: Vec<Holder>,
    /// Requests that wait, in order of arrival.
    pub waiters: Vec<Holder>,
    /// Events that udev has not answered in time since the daemon's start.
    pub unanswered_udev_events: u64,
}

/// A running program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedProgram {
    /// The task of the program.
    pub label: String,
    /// Its process id.
    pub process: u32,
    /// How long it has been running.
    pub age: Duration,
    /// The program ran out of time and was killed, but has not ended.
    pub is_stuck: bool,
}

/// A request that holds or waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its label.
    pub request: String,
    /// What the request holds or asks for.
    pub access: String,
    /// How long the request has held or waited.
    pub age: Duration,
}
