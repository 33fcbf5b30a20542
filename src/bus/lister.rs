//! The lister: answers GetManagedObjects on a thread of its own, since a list can be tens of megabytes and nothing else
//! shall wait while it is put together.
//!
//! A list is one version of the tree, the newest when it is sent; see [`Published::order`] for its place among the
//! signals. It waits for the bus to take earlier lists before it makes another, so that a client that asks without end
//! costs a bounded amount of memory, and sends none to somebody who does not read (see [`super::accounts`]).

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::bus::{
    connection::{Connection, MESSAGE_MAX_VARIABLE},
    job::Caller,
    message::{self, ARRAY_BYTES_MAX, NotAMessage, Outgoing},
    outcome::{Answer, error_name},
    tree::{Published, Tree},
};

/// Lists that may be asked for at the same time; more are refused with an error. Each costs only its caller's name
/// until it is its turn.
const WAITING_MAX: usize = 4096;

/// How often a list is built again because a change came in between, before changes are made to wait for it.
const TRIES: usize = 2;

/// The lister. [`Lister::run`] is its thread.
pub struct Lister {
    connection: Arc<Connection>,
    published: Arc<Published>,
    callers: Receiver<Caller>,
}

/// Where lists are asked for.
#[derive(Clone)]
pub(super) struct Lists {
    callers: Sender<Caller>,
    connection: Arc<Connection>,
}

impl Lists {
    /// Has a list sent to the caller.
    ///
    /// # Errors
    /// An answer that says why not.
    pub fn ask(&self, caller: Caller) -> Result<(), Answer> {
        let error = |name, text: &str| Err(Answer::Error(name, text.to_owned()));
        if !self.connection.list_wanted(&caller) {
            let text = "too many lists of all objects are asked for by this connection; wait for those to come";
            return error(error_name::LIMITS_EXCEEDED, text);
        }
        match self.callers.try_send(caller) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(caller)) => {
                self.connection.list_done(&caller);
                let text = "too many lists of all objects are asked for at once; try again later";
                error(error_name::LIMITS_EXCEEDED, text)
            }
            Err(TrySendError::Disconnected(_)) => error(error_name::FAILED, "the daemon is stopping"),
        }
    }
}

impl Lister {
    pub(super) fn new(connection: Arc<Connection>, published: Arc<Published>) -> (Lister, Lists) {
        let (sender, callers) = bounded(WAITING_MAX);
        let lists = Lists { callers: sender, connection: Arc::clone(&connection) };
        (Lister { connection, published, callers }, lists)
    }

    /// Works until the reader has ended.
    pub fn run(self) {
        for caller in &self.callers {
            if !self.connection.wait_for_room() {
                break;
            }
            self.answer(&caller);
            self.connection.list_done(&caller);
        }
    }

    fn answer(&self, caller: &Caller) {
        // A change in between alters the length by little.
        if !self.connection.list_fits(caller, message::list_bytes(self.published.load().objects())) {
            let text =
                "a list of all objects does not fit beside what this connection, or all together, have not read \
                        yet; read what has been answered, or ask for single objects"
                    .to_owned();
            return self.connection.send(message::answer(caller, &Answer::Error(error_name::LIMITS_EXCEEDED, text)));
        }
        for _ in 0..TRIES {
            let tree = self.published.load();
            let list = self.list(&tree, caller);
            let order = self.published.order();
            if self.published.load().version == tree.version {
                self.connection.send(list);
                drop(order);
                return;
            }
        }
        // Changes come faster than lists can be made: let them wait for this one.
        let _order = self.published.order();
        self.connection.send(self.list(&self.published.load(), caller));
    }

    /// The message. Where the list is too long for the bus, that is said instead.
    fn list(&self, tree: &Tree, caller: &Caller) -> Result<Outgoing, NotAMessage> {
        const HEADER_BYTES_MAX: usize = 1024;
        let body_bytes = message::list_bytes(tree.objects());
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
        Ok(message::list(caller, tree.objects().cloned().collect()))
    }
}
