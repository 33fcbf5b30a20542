//! Replies to calls on the bus, as they pass through the daemon: they come back to the tree writer
//! with the changes of their requests.
//!
//! The reader makes a [`Job`] of every call that it cannot answer from the published tree and gives
//! the job to a [`Submit`](crate::service::Submit). The code that runs the job's chain hands each
//! step's changes to the tree writer as [`view::Update<Reply>`](crate::view::Update); the update of
//! the last step carries the reply. This module knows nothing of locks, workers or the thread on
//! which a chain runs.

use std::fmt;

use crate::{
    base::ids::PoolUuid,
    bus::{answer::Answer, caller::Caller, tree::Late},
    service,
};

/// A call that changes something.
pub type Job = service::ClientJob<Reply>;

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
