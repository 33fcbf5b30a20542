//! The tree writer: the only thread that makes versions of the tree.
//!
//! For each update, in order of arrival (which is commit order), it applies the changes, publishes
//! the new version, sends the signals, then the reply. So a client that gets a reply finds the
//! change in its next read, and has got its signals before.
//!
//! A large change is also published as a whole, but only the first of its signals are sent with it.
//! The others follow in portions, each when the bus has taken the portion before. Updates about
//! other pools are sent between portions; updates about the same pool wait (see
//! [`super::backlog`]).
//!
//! Of the engine, the writer knows only the changes that it reports.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, select};
use threads::pulse::Pulse;

use crate::{
    bus::{
        answer::{Answer, error_name},
        backlog::{Backlog, Tail, Topics},
        changes::{self, Signal, Signals},
        connection::Connection,
        job::{Recipient, Reply},
        message::{self, NotAMessage, Outgoing},
        planted::{self, HistoryFault},
        published::Published,
        tree::Tree,
    },
    view::{Change, Update},
};

/// Limits at the end, while replies and signals are left: how long the bus may take nothing, and
/// how long it may take in total.
const LAST_WORDS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(20));
/// Bytes of signals that are sent together with the publication of their version. A change of a few
/// objects has less.
const FIRST_PORTION_BYTES: usize = 64 << 10;
/// Bytes of signals that are sent before other updates have a turn. The reference bus needs 10 µs
/// for a message of 250 bytes, and all messages to other clients wait for that.
const PORTION_BYTES: usize = 1 << 10;

/// The tree writer. [`Writer::run`] is its thread.
pub struct Writer {
    connection: Arc<Connection>,
    published: Arc<Published>,
    backlog: Backlog,
}

/// A version that has not been published yet.
struct NextVersion {
    tree: Arc<Tree>,
    /// The signals that are sent with the publication.
    first: Vec<Result<Outgoing, NotAMessage>>,
    /// The signals that are sent later.
    rest: Signals,
}

impl NextVersion {
    fn new(before: &Tree, changes: Vec<Change>) -> NextVersion {
        let (tree, mut signals) = changes::apply(before, changes);
        // The signal of the top object has its own order, so it is never sent later.
        let manager = signals.pop_if(|signal| matches!(signal, Signal::Manager { .. }));
        let mut rest = Signals::new(signals);
        let mut first = rest.portion(planted::first_portion(FIRST_PORTION_BYTES));
        first.extend(manager.iter().flat_map(Signal::messages));
        NextVersion { tree: Arc::new(tree), first, rest }
    }
}

impl Writer {
    pub(super) fn new(connection: Arc<Connection>, published: Arc<Published>) -> Writer {
        Writer { connection, published, backlog: Backlog::default() }
    }

    /// Works until every sender of updates is gone and all messages are sent. The reader has ended
    /// before, so no other thread uses the connection at that time.
    pub fn run(mut self, updates: &Receiver<Update<Reply>>, pulse: &Pulse) {
        let connection = Arc::clone(&self.connection);
        loop {
            pulse.beat();
            if self.backlog.is_empty() {
                match updates.recv() {
                    Ok(update) => self.take(update),
                    Err(_) => break,
                }
                continue;
            }
            select! {
                recv(updates) -> update => match update {
                    Ok(update) => self.take(update),
                    Err(_) => break,
                },
                recv(connection.passed()) -> _ => self.send_portion(),
            }
        }
        while !self.backlog.is_empty() {
            self.send_portion();
        }
        self.connection.flush(LAST_WORDS.0, LAST_WORDS.1);
    }

    fn take(&mut self, update: Update<Reply>) {
        let may_go_on = match planted::is_planted(HistoryFault::TailOvertaken) {
            true => Some((Topics::of(&update), update)),
            false => self.backlog.hold(update),
        };
        let Some((topics, Update { changes, mut reply })) = may_go_on else { return };
        if changes.is_empty() {
            return self.reply(reply, &self.published.load());
        }
        if planted::strikes(HistoryFault::ReplyFirst) {
            let (tree, _) = changes::apply(&self.published.load(), changes.clone());
            self.reply(reply.take(), &tree);
        }
        let mut next = NextVersion::new(&self.published.load(), changes.clone());
        if !next.rest.is_empty() && self.published.list_waits() {
            // Large changes of one pool after another would keep the list waiting for ever.
            if !self.backlog.is_empty() {
                return self.backlog.put_back(topics, Update { changes, reply });
            }
            self.published.give_way();
        }
        self.publish(&mut next);
        if next.rest.is_empty() {
            return self.reply(reply, &self.published.load());
        }
        // A mark is under way as long as there are tails.
        if self.backlog.is_empty() {
            self.connection.mark();
        }
        self.backlog.add(Tail { topics, signals: next.rest, reply });
    }

    fn publish(&self, next: &mut NextVersion) {
        let mut order = self.published.order();
        let mut first = std::mem::take(&mut next.first);
        if planted::is_planted(HistoryFault::SignalsFirst) {
            self.connection.send_all(std::mem::take(&mut first));
            planted::delay();
        }
        self.published.store(Arc::clone(&next.tree));
        planted::delay();
        self.connection.send_all(first);
        order.is_open |= !next.rest.is_empty();
    }

    /// Sends the next signals of the tail whose turn it is.
    fn send_portion(&mut self) {
        let Some(mut tail) = self.backlog.next() else { return };
        self.connection.send_all(tail.signals.portion(PORTION_BYTES));
        if !tail.signals.is_empty() {
            self.backlog.add(tail);
            return self.connection.mark();
        }
        self.reply(tail.reply, &self.published.load());
        match self.backlog.is_empty() {
            true => self.published.close(),
            false => self.connection.mark(),
        }
        for (_, update) in self.backlog.ended() {
            self.take(update);
        }
    }

    fn reply(&self, reply: Option<Reply>, tree: &Tree) {
        let Some(reply) = reply else { return };
        match reply.to {
            Recipient::Caller(caller, build) => {
                let answer = std::panic::catch_unwind(AssertUnwindSafe(|| build(tree))).unwrap_or_else(|_| {
                    let text =
                        "the call succeeded, but the daemon could not make its reply; please report it".to_owned();
                    Answer::Error(error_name::FAILED, text)
                });
                self.connection.send(message::answer(&caller, &answer));
            }
            Recipient::Inside(tell) => {
                if std::panic::catch_unwind(AssertUnwindSafe(|| tell(tree))).is_err() {
                    log::error!("a waiter for a version of the tree panicked when it was notified; please report it");
                }
            }
        }
    }
}
