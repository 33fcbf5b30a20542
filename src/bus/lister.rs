//! The lister: builds and sends the answers that take long, on its own thread so that no other
//! answer waits for them: lists of all objects, which can be tens of megabytes, reports, and the
//! introspection of the top object.
//!
//! Each answer is made of one version of the tree, the newest when the answer is sent; see
//! [`Published::order`] for its place among the signals. The lister waits for the bus to take
//! earlier answers before it makes another, so that a client that keeps asking costs a bounded
//! amount of memory. It sends no list to a client that does not read (see [`super::quota`]).

use std::{panic::AssertUnwindSafe, sync::Arc};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use threads::pulse::Pulse;

use crate::{
    bus::{
        answer::{Answer, error_name},
        call_error::CallError,
        called_member::CalledMember,
        caller::Caller,
        connection::Connection,
        introspect,
        job::Reply,
        message::{self, ARRAY_BYTES_MAX, NotAMessage, Outgoing},
        names::MESSAGE_MAX_VARIABLE,
        outcome::Outcome,
        planted::{self, HistoryFault},
        published::Published,
        rendering,
        tree::Tree,
        wire::Value,
    },
    service::{
        Submit,
        report::{Composer, Report},
    },
};

/// Requests that may wait for the lister at the same time. Further ones are refused with an error.
/// Until its turn, each costs its caller's name and what the quotas keep of that caller. A longer
/// queue would only take memory: clients give up after some seconds, and the daemon cannot make more
/// lists in that time.
const WAITING_MAX: usize = 512;

/// How often an answer is made again because of a change in between, before changes are made to
/// wait for it.
const TRIES: usize = 2;

/// An answer that the lister builds, since that takes long.
pub(super) enum Deferred {
    /// GetManagedObjects.
    List,
    /// A report, which also shows the requests under way.
    Report(CalledMember, Report),
    /// Introspection of the top object, which names all other objects.
    Introspection,
}

/// The lister. [`Lister::run`] is its thread.
pub struct Lister {
    connection: Arc<Connection>,
    published: Arc<Published>,
    /// `None` makes the lister run its loop once.
    asked: Receiver<Option<(Caller, Deferred)>>,
    /// For [`Lister::nudge`]. `None` once the lister runs: its own sender would keep it from
    /// ending.
    sender: Option<Sender<Option<(Caller, Deferred)>>>,
}

/// The reader's end of the lister's queue.
#[derive(Clone)]
pub(super) struct Lists {
    asked: Sender<Option<(Caller, Deferred)>>,
    connection: Arc<Connection>,
}

impl Lists {
    /// Asks the lister to answer the caller.
    ///
    /// # Errors
    /// An answer that gives the reason.
    pub fn ask(&self, caller: Caller, what: Deferred) -> Result<(), Answer> {
        let error = |name, text: &str| Err(Answer::Error(name, text.to_owned()));
        if !self.connection.list_wanted(&caller) {
            let text = "this connection has asked for too many lists and reports; wait until they arrive";
            return error(error_name::LIMITS_EXCEEDED, text);
        }
        match self.asked.try_send(Some((caller, what))) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(refused)) => {
                refused.iter().for_each(|(caller, _)| self.connection.list_done(caller));
                let text = "clients have asked for too many lists and reports at once; try again later";
                error(error_name::LIMITS_EXCEEDED, text)
            }
            Err(TrySendError::Disconnected(_)) => Err(stopping()),
        }
    }
}

/// The answer to a request that comes while the daemon is stopping.
fn stopping() -> Answer {
    Answer::Error(error_name::FAILED, "the daemon is stopping; ask again when it is up".to_owned())
}

impl Lister {
    pub(super) fn new(connection: Arc<Connection>, published: Arc<Published>) -> (Lister, Lists) {
        let (sender, asked) = bounded(WAITING_MAX);
        let lists = Lists { asked: sender.clone(), connection: Arc::clone(&connection) };
        (Lister { connection, published, asked, sender: Some(sender) }, lists)
    }

    /// A function that makes the lister run its loop once. The lister does not end before the
    /// function is dropped.
    pub fn nudge(&self) -> impl Fn() + Send + use<> {
        let sender = self.sender.clone();
        move || {
            // If the channel is full, the lister runs its loop anyway.
            let _ = sender.as_ref().map(|sender| sender.try_send(None));
        }
    }

    /// Works until the reader has ended. Reports also show the requests of `submit`.
    pub fn run(mut self, submit: &dyn Submit<Reply>, pulse: &Pulse) {
        self.sender = None;
        for asked in &self.asked {
            pulse.beat();
            let Some((caller, what)) = asked else { continue };
            // The bus may not read for a long time, which is not a fault of this thread.
            if !pulse.away(|| self.connection.wait_for_room()) {
                // The answer could be made, but the bus may not take it in the time that is left.
                self.connection.send(message::answer(&caller, &stopping()));
                self.connection.list_done(&caller);
                continue;
            }
            match what {
                Deferred::List => self.answer(&caller, pulse, |tree| self.list(tree, &caller)),
                Deferred::Introspection => {
                    self.answer(&caller, pulse, |tree| message::answer(&caller, &introspect::top_answer(tree)));
                }
                Deferred::Report(asked, report) => {
                    let mut composer = Composer::new(report);
                    self.answer(&caller, pulse, |tree| {
                        let text = AssertUnwindSafe(|| composer.text(&tree.view, &submit.locks()));
                        let answer = match std::panic::catch_unwind(text) {
                            Ok(text) => asked.answer(Outcome::done(Value::Str(text)), tree),
                            Err(_) => CallError::Panicked.into(),
                        };
                        message::answer(&caller, &answer)
                    });
                }
            }
            self.connection.list_done(&caller);
        }
    }

    fn answer(&self, caller: &Caller, pulse: &Pulse, mut make: impl FnMut(&Tree) -> Result<Outgoing, NotAMessage>) {
        let mut tree = self.published.load();
        let mut made = make(&tree);
        // A change in between alters the length only slightly.
        if !self.connection.list_fits(caller, made.as_ref().map_or(0, Outgoing::bytes)) {
            let text =
                "what was asked for does not fit beside what this connection, or all together, have not read yet; \
                        read what has been answered, or ask for single objects"
                    .to_owned();
            return self.connection.send(message::answer(caller, &Answer::Error(error_name::LIMITS_EXCEEDED, text)));
        }
        for _ in 0..TRIES {
            planted::delay();
            let order = pulse.away(|| self.published.order_of_list());
            if self.published.version() == tree.version || planted::is_planted(HistoryFault::StaleList) {
                self.connection.send(made);
                return;
            }
            drop(order);
            tree = self.published.load();
            made = make(&tree);
        }
        // Changes come faster than the answer can be made, so they wait for this answer.
        let _order = pulse.away(|| self.published.order_of_list());
        let tree = match self.published.version() == tree.version {
            true => tree,
            false => self.published.load(),
        };
        self.connection.send(make(&tree));
    }

    /// The message of a list. If the list is too long for the bus, the answer is an error that says
    /// so.
    fn list(&self, tree: &Tree, caller: &Caller) -> Result<Outgoing, NotAMessage> {
        const HEADER_BYTES_MAX: usize = 1024;
        let body_bytes = message::list_bytes(tree.objects().map(|object| rendering::entry(object)));
        let limit = self.connection.message_bytes_max().min(ARRAY_BYTES_MAX).saturating_sub(HEADER_BYTES_MAX);
        if body_bytes > limit {
            let answer = Answer::Error(
                error_name::LIMITS_EXCEEDED,
                format!(
                    "the list of all objects has {body_bytes} bytes, more than the {limit} that fit into a message of this \
                     bus; raise `max_message_size` of the bus and set {MESSAGE_MAX_VARIABLE}, or ask for single objects"
                ),
            );
            return message::answer(caller, &answer);
        }
        Ok(message::list(caller, tree.objects().map(|object| rendering::entry(object)).cloned().collect()))
    }
}
