//! Publishes the changes of requests for the server, and hands their answers to it: thread
//! `view-writer`. An answer follows its changes, so a client that has the answer sees the changes
//! in its next request.
//!
//! Must never know: sockets, and what the changes are.

use std::{panic::AssertUnwindSafe, sync::Arc};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use threads::{pulse::Pulse, wake::Waker};

use super::{
    protocol::RpcResult,
    server::{RpcRecipient, RpcReply},
};
use crate::view::{Change, Update, View};

/// The current version of the view. All clones share it.
#[derive(Clone, Default)]
pub struct PublishedView(Arc<Mutex<View>>);

impl PublishedView {
    /// The current version.
    pub fn load(&self) -> View {
        self.0.lock().clone()
    }

    fn apply(&self, changes: Vec<Change>) {
        let mut view = self.0.lock();
        for change in changes {
            match change {
                Change::Pool(pool) => drop(view.pools.insert(pool.uuid, pool)),
                Change::PoolGone(uuid) => drop(view.pools.remove(&uuid)),
                Change::Stopped(stopped) if stopped.version < view.stopped.version => {}
                Change::Stopped(stopped) => view.stopped = stopped,
            }
        }
    }
}

/// An answer to the client of this connection.
pub type NumberedReply = (u64, RpcResult);

/// The writer. [`ViewWriter::run`] is its thread.
pub struct ViewWriter {
    pub(super) published: PublishedView,
    /// Unbounded, but holds at most one answer for each request that the server has admitted.
    pub(super) replies: Sender<NumberedReply>,
    /// The waker of the server.
    pub(super) waker: Waker,
}

impl ViewWriter {
    /// Runs until every sender of updates is gone.
    pub fn run(self, updates: &Receiver<Update<RpcReply>>, pulse: &Pulse) {
        let ViewWriter { published, replies, waker } = self;
        for Update { changes, reply } in updates {
            pulse.beat();
            published.apply(changes);
            match reply.map(|RpcReply(to)| to) {
                // The server ends after this thread.
                Some(RpcRecipient::Client(number, reply)) => {
                    let _ = replies.send((number, reply));
                    waker.wake();
                }
                Some(RpcRecipient::Inside(tell)) => notify(tell),
                None => {}
            }
        }
        // The server ends when it finds the channel closed.
        drop(replies);
        waker.wake();
    }
}

fn notify(tell: Box<dyn FnOnce() + Send>) {
    if std::panic::catch_unwind(AssertUnwindSafe(tell)).is_err() {
        log::error!("a waiter for a version of the view panicked when it was notified; please report it");
    }
}
