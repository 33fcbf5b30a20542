//! The tree writer: the one thread that makes versions of the tree.
//!
//! For each update, in the order in which they arrive (that is commit order): apply the changes, publish the new version, send
//! the signals, then the reply. Whoever gets a reply therefore finds the change in whatever is read next, and has its
//! signals before it.
//!
//! Knows nothing of the engine but the changes that it reports.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use crossbeam_channel::Receiver;

use crate::{
    bus::{
        changes,
        connection::Connection,
        job::{Recipient, Reply},
        message,
        outcome::{Answer, error_name},
        tree::{Published, Tree},
    },
    view::{Change, Update},
};

/// How long the bus may take at the end for what has not been sent yet.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// The tree writer. [`Writer::run`] is its thread.
pub struct Writer {
    connection: Arc<Connection>,
    published: Arc<Published>,
}

impl Writer {
    pub(super) fn new(connection: Arc<Connection>, published: Arc<Published>) -> Writer {
        Writer { connection, published }
    }

    /// Works until every sender of updates is gone and all has been sent. The reader has ended before, so that nobody
    /// else uses the connection then.
    pub fn run(self, updates: &Receiver<Update<Reply>>) {
        for Update { changes, reply } in updates {
            let tree = self.publish(changes);
            if let Some(reply) = reply {
                self.reply(reply, &tree);
            }
        }
        self.connection.flush(LAST_WORDS_LIMIT);
    }

    fn publish(&self, changes: Vec<Change>) -> Arc<Tree> {
        let old = self.published.load();
        if changes.is_empty() {
            return old;
        }
        let (tree, signals) = changes::apply(&old, changes);
        let tree = Arc::new(tree);
        let order = self.published.order();
        self.published.store(Arc::clone(&tree));
        signals.iter().flat_map(|signal| signal.messages()).for_each(|message| self.connection.send(message));
        drop(order);
        tree
    }

    fn reply(&self, reply: Reply, tree: &Tree) {
        match reply.to {
            Recipient::Caller(caller, build) => {
                let answer = std::panic::catch_unwind(AssertUnwindSafe(|| build(tree))).unwrap_or_else(|_| {
                    let text = "it was done, but the daemon could not make its reply; please report it".to_owned();
                    Answer::Error(error_name::FAILED, text)
                });
                self.connection.send(message::answer(&caller, &answer));
            }
            Recipient::Inside(tell) => {
                if std::panic::catch_unwind(AssertUnwindSafe(|| tell(tree))).is_err() {
                    log::error!("what waited for a version of the tree panicked when it was told");
                }
            }
        }
    }
}
