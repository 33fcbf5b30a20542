//! What the bus asks of whoever runs requests, and what it gets back: jobs out, replies in.
//!
//! The reader makes a [`Job`] of every call that it cannot answer from the published tree and gives it to a
//! [`Submit`]. Whoever runs the job's chain hands each step's changes to the tree writer as
//! [`view::Update<Reply>`](crate::view::Update); the update of the last step carries the reply.
//! Knows nothing of locks, workers or which thread a chain runs on.

use std::{fmt, time::Duration};

use crate::{
    base::ids::PoolUuid,
    bus::{answer::Answer, caller::Caller, outcome::Failure, tree::Late},
    engine::request::Next,
};

/// Takes jobs off the reader's hands.
pub trait Submit: Send + Sync {
    /// Queues the job and returns at once: the reader waits for nothing. A job that is not taken because the daemon
    /// stops is answered through its `on_failure`.
    fn submit(&self, job: Job);
    /// Who holds which pools and who waits for them, which programs run, and how udev does, for people. Asked by the lister.
    fn locks(&self) -> Locks;
}

/// Who holds and who waits, at one moment, and what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks {
    /// Programs, the oldest first.
    pub programs: Vec<RunningProgram>,
    /// Those that hold, in the order of their requests.
    pub holders: Vec<Holder>,
    /// Those that wait, in the order of arrival.
    pub waiters: Vec<Holder>,
    /// Events that udev has not answered in time since the start.
    pub unanswered_udev_events: u64,
}

/// A program that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProgram {
    /// What it does.
    pub label: String,
    /// Its process.
    pub process: u32,
    /// How long it has been running.
    pub age: Duration,
    /// It was killed because its time was up, and has not ended.
    pub is_stuck: bool,
}

/// A request that holds or waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its label.
    pub request: String,
    /// What it holds or asks for.
    pub access: String,
    /// How long it has.
    pub age: Duration,
}

/// A call that changes something.
pub struct Job {
    /// Interface and method for the log, as `pool.r9.SetName`.
    pub label: String,
    /// What is to be done. Its result is the reply; `None` if the caller wants none.
    pub chain: Next<Option<Reply>>,
    /// Makes the reply if the chain does not come to its end.
    pub on_failure: Box<dyn FnOnce(Failure) -> Option<Reply> + Send>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("label", &self.label).finish_non_exhaustive()
    }
}

/// What a reply tells of: it follows the signals of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Of no pool, or of one that its own update brings.
    Nothing,
    /// Of this one.
    Pool(PoolUuid),
    /// That is not known.
    Any,
}

/// A reply that waits for its changes to be published and signalled.
pub struct Reply {
    pub(super) to: Recipient,
    pub(super) about: About,
}

/// Who is told.
pub(super) enum Recipient {
    /// A caller on the bus.
    Caller(Caller, Late<Answer>),
    /// Somebody in this program.
    Inside(Late<()>),
}

impl Reply {
    /// A reply to a caller on the bus.
    pub(super) fn to(caller: Caller, about: About, answer: Late<Answer>) -> Reply {
        Reply { to: Recipient::Caller(caller, answer), about }
    }

    /// Not a message: calls `tell` on the tree writer's thread when the changes of the update, and all changes before
    /// it, have been published. It must be quick. For the start of the daemon, which takes the bus name only after
    /// the first view is up.
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
