//! The boundary between the bus and the code that runs requests: jobs go out, replies come in.
//!
//! The reader makes a [`Job`] of every call that it cannot answer from the published tree and gives
//! the job to a [`Submit`]. The code that runs the job's chain hands each step's changes to the
//! tree writer as [`view::Update<Reply>`](crate::view::Update); the update of the last step carries
//! the reply. This module knows nothing of locks, workers or the thread on which a chain runs.

use std::{fmt, time::Duration};

use crate::{
    base::ids::PoolUuid,
    bus::{answer::Answer, caller::Caller, outcome::Failure, tree::Late},
    engine::request::Step,
};

/// Takes jobs from the reader.
pub trait Submit: Send + Sync {
    /// Queues the job and returns at once: the reader must not wait. If the job is not taken
    /// because the daemon stops, its `on_failure` makes the answer.
    fn submit(&self, job: Job);
    /// Which requests hold pools and which wait for them, which programs run, and how udev
    /// responds. The lister calls this for the reports.
    fn locks(&self) -> Locks;
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

/// A call that changes something.
pub struct Job {
    /// Interface and method for the log, such as `pool.r9.SetName`.
    pub label: String,
    /// The operation. Its result is the reply; `None` if the caller wants none.
    pub chain: Step<Option<Reply>>,
    /// Makes the reply if the chain does not finish.
    pub on_failure: Box<dyn FnOnce(Failure) -> Option<Reply> + Send>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("label", &self.label).finish_non_exhaustive()
    }
}

/// The pools that a reply is about. The reply follows their signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// No pool, or only a pool that the reply's own update contains.
    Nothing,
    /// This pool.
    Pool(PoolUuid),
    /// Pools that are not known beforehand.
    Any,
}

/// A reply that waits for its changes to be published and signalled.
pub struct Reply {
    pub(super) to: Recipient,
    pub(super) about: About,
}

/// The recipient of a reply.
pub(super) enum Recipient {
    /// A caller on the bus.
    Caller(Caller, Late<Answer>),
    /// A function of the daemon itself.
    Inside(Late<()>),
}

impl Reply {
    /// A reply to a caller on the bus.
    pub(super) fn to(caller: Caller, about: About, answer: Late<Answer>) -> Reply {
        Reply { to: Recipient::Caller(caller, answer), about }
    }

    /// Sends no message: calls `tell` on the tree writer's thread when the changes of the update,
    /// and all changes before it, have been published. `tell` must be quick. The daemon's start
    /// uses this reply to take the bus name only after the first view is published.
    pub fn tell(tell: impl FnOnce() + Send + 'static) -> Reply {
        Reply { to: Recipient::Inside(Box::new(|_| tell())), about: About::Any }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Recipient::Caller(caller, _) => f.debug_tuple("Reply").field(caller).finish(),
            Recipient::Inside(_) => f.write_str("Reply(inside)"),
        }
    }
}
