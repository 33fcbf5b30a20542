//! Tracks which clients leave messages unread, and limits what one client can keep from all others.
//!
//! The reference bus holds a message until its receiver has taken it, and charges it to the
//! *sender*. It stops reading from a sender while it holds 127 MiB of that sender's messages. So a
//! client that asks for lists and never reads them would silence the daemon for all clients.
//! dbus-broker has one account for all messages between connections of one user. When that account
//! is full, it disconnects the receiver of the next message: root's clients share the account with
//! each other, with the daemon and with systemd.
//!
//! A sender does not learn what was delivered, but the bus reports on request how much it holds
//! ([`statistics`]). So the quotas add up what was sent to each caller and to all, and when a sum
//! gets large, the daemon asks the bus how much of it is undelivered. If a bus cannot report this,
//! there is no limit.
//!
//! Pure state: sends nothing and does not know the content of messages.
//!
//! [`statistics`]: super::statistics

use std::collections::{HashMap, VecDeque};

use crate::bus::statistics::{Dialect, Holding, Question, QuotaSubject};

/// Bytes that one caller may leave unread before its calls are refused.
pub const UNREAD_MAX: u64 = 16 << 20;
/// Bytes that all clients may leave unread, signals included. Beyond this limit, lists are refused,
/// and so are the calls of a caller with more than [`SMALL`] unread bytes. The rest, up to the
/// bus's limit of 127 MiB, is for the answers to all other callers.
pub const TOTAL_MAX: u64 = 96 << 20;
/// A caller with no more unread bytes than this is always answered.
const SMALL: u64 = 64 << 10;
/// Refusals are answers, too. A caller that has got this many refusals gets no more answers until
/// it has read its messages.
const REFUSALS_MAX: u32 = 4096;
/// Lists of one caller that may wait for their turn.
const LISTS_MAX: usize = 16;
/// The bus is asked again after this many more bytes.
const CALLER_ASKED_EVERY: u64 = 1 << 20;
const TOTAL_ASKED_EVERY: u64 = 8 << 20;
/// Above this many callers, each new one makes the daemon check old ones: a caller with few unread
/// bytes is forgotten, or the bus is asked about it.
const CALLERS_MAX: usize = 1024;
/// Old callers checked for each new one. More than one, so that their number falls.
const CHECKS: usize = 2;
/// With no room for a question, callers checked for each new one. Only those with few unread bytes
/// are forgotten then.
const CHECKS_WITHOUT_QUESTION: usize = 8;

/// With this many questions under way, the bus is not asked about old callers.
///
/// A question waits behind the lists that are being sent, some five hundred if each has 100 kB (see
/// [`super::send_queue`]). With fewer questions under way than that, clients that leave without
/// reading come faster than the bus can be asked about them. dbus-broker answers each question with
/// the figures of all connections, so it is asked fewer.
fn questions_max(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Connection => 1024,
        Dialect::Peers => 16,
    }
}

/// The decision on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallAdmission {
    /// The call is handled.
    Admitted,
    /// The call is refused: its caller must read first.
    Refused,
    /// The call gets no answer at all.
    Ignored,
}

/// Bytes that were sent and that the bus may still hold.
#[derive(Debug, Default)]
struct QuotaUsage {
    unread: u64,
    /// The part of `unread` that was sent since the bus was last asked.
    since_asked: u64,
    /// A question about these bytes is under way.
    is_asked: bool,
    /// The largest message that may be part of `unread`.
    largest: u64,
    /// Refusals since the caller last had few enough unread bytes.
    refusals: u32,
    /// Lists that wait for their turn.
    lists: usize,
    /// The caller's name is missing from the order of callers until the bus has answered.
    is_out_of_order: bool,
}

impl QuotaUsage {
    fn sent(&mut self, bytes: u64) {
        self.largest = self.largest.max(bytes);
        self.unread += bytes;
        self.since_asked += bytes;
    }

    /// Notes that the bus is asked now. Returns `false` if an earlier question has no answer yet.
    fn ask(&mut self) -> bool {
        if self.is_asked {
            return false;
        }
        self.is_asked = true;
        self.since_asked = 0;
        true
    }

    fn note_answer(&mut self, held: Option<u64>) {
        self.is_asked = false;
        if let Some(held) = held {
            self.unread = held + self.since_asked;
            if self.unread <= UNREAD_MAX {
                self.refusals = 0;
            }
            if self.unread <= SMALL {
                self.largest = self.unread;
            }
        }
    }
}

/// The quotas of all callers.
#[derive(Debug, Default)]
pub struct Quotas {
    total: QuotaUsage,
    callers: HashMap<String, QuotaUsage>,
    /// The names of callers in the order in which they are checked. Some may be forgotten already.
    order: VecDeque<String>,
    /// Checks of old callers that are still due for new ones.
    checks: usize,
    /// Questions without an answer, by serial number.
    asked: HashMap<u32, Question>,
    /// The dialect in which the bus is asked.
    dialect: Dialect,
    /// The bus does not report what it holds.
    silent: bool,
    /// According to its last answer, the bus held more than [`TOTAL_MAX`].
    is_much: bool,
    /// No thread takes the bus's answers any more.
    ended: bool,
}

impl Quotas {
    /// Notes a message that is sent now. Returns the questions to ask the bus.
    pub fn sent(&mut self, to: Option<&str>, bytes: usize) -> Vec<QuotaSubject> {
        let mut due = Vec::new();
        if self.silent {
            return due;
        }
        self.total.sent(bytes as u64);
        if self.total.since_asked >= TOTAL_ASKED_EVERY && self.total.ask() {
            due.push(QuotaSubject::Ours);
        }
        if let Some(name) = to {
            let usage = self.usage(name);
            usage.sent(bytes as u64);
            if usage.since_asked >= CALLER_ASKED_EVERY && usage.ask() {
                due.push(QuotaSubject::Caller(name.to_owned()));
            }
        }
        due.extend(self.forget_some(due.len()));
        due
    }

    fn usage(&mut self, name: &str) -> &mut QuotaUsage {
        if !self.callers.contains_key(name) && !self.silent {
            self.order.push_back(name.to_owned());
            self.checks += CHECKS;
        }
        self.callers.entry(name.to_owned()).or_default()
    }

    /// Forgets old callers with few unread bytes. Other callers may have disconnected unnoticed:
    /// returns those that the bus must be asked about, in addition to `others` other questions.
    fn forget_some(&mut self, others: usize) -> Vec<QuotaSubject> {
        let mut due = Vec::new();
        let mut without_question = CHECKS_WITHOUT_QUESTION;
        while self.checks > 0 {
            if self.order.len() <= CALLERS_MAX {
                self.checks = 0;
                break;
            }
            let may_ask = self.asked.len() + others + due.len() < questions_max(self.dialect);
            if !may_ask {
                // A check that needs a question is made once the bus has answered one.
                if without_question == 0 {
                    break;
                }
                without_question -= 1;
            }
            let Some(name) = self.order.pop_front() else { break };
            let Some(usage) = self.callers.get_mut(&name) else { continue };
            if usage.unread <= SMALL && !usage.is_asked && usage.lists == 0 {
                self.callers.remove(&name);
                self.checks -= 1;
                continue;
            }
            self.checks -= usize::from(may_ask);
            if may_ask && usage.lists == 0 && usage.ask() {
                // The answer brings the name back into the order, unless the caller has
                // disconnected.
                usage.is_out_of_order = true;
                due.push(QuotaSubject::Caller(name));
            } else {
                self.order.push_back(name);
            }
        }
        due
    }

    /// Makes the checks that had to wait for an answer. Returns the callers that the bus must be
    /// asked about.
    pub fn after_answer(&mut self) -> Vec<QuotaSubject> {
        self.forget_some(0)
    }

    /// The dialect in which to ask the bus.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Notes that a question has been sent.
    pub fn asking(&mut self, serial: u32, question: Question) {
        self.asked.insert(serial, question);
    }

    /// The unanswered question with this serial number, if any.
    pub fn question(&self, serial: u32) -> Option<Question> {
        self.asked.get(&serial).cloned()
    }

    /// Notes the bus's answer to the question with this serial number, if there is one.
    pub fn note_answer(&mut self, serial: u32, answer: Holding) {
        let Some(Question { side, dialect }) = self.asked.remove(&serial) else { return };
        let held = match (answer, &side) {
            (Holding::Silence, _) => {
                // Earlier questions in another dialect may still be under way.
                if dialect == self.dialect {
                    match dialect.next() {
                        Some(next) => self.dialect = next,
                        None => {
                            self.silent = true;
                            // From now on a caller is known only while one of its lists waits.
                            self.order.clear();
                            self.callers.retain(|_, usage| usage.lists > 0);
                        }
                    }
                }
                None
            }
            (Holding::Gone, QuotaSubject::Caller(name)) => {
                self.callers.remove(name);
                return;
            }
            (Holding::Holds { of_theirs, .. }, QuotaSubject::Ours) => Some(of_theirs),
            (Holding::Holds { for_them, .. }, QuotaSubject::Caller(_)) => Some(for_them),
            (Holding::Gone, QuotaSubject::Ours) | (Holding::Failed, _) => None,
        };
        match &side {
            QuotaSubject::Ours => {
                if let Some(held) = held {
                    let is_much = held > TOTAL_MAX;
                    if is_much && !self.is_much {
                        log::warn!(
                            "the bus holds {} MiB of answers and signals that clients do not read, and may soon accept \
                             no more; find the connection with the most OutgoingBytes in \
                             org.freedesktop.DBus.Debug.Stats and end it",
                            held >> 20
                        );
                    }
                    self.is_much = is_much;
                }
                self.total.note_answer(held);
            }
            QuotaSubject::Caller(name) => {
                if let Some(usage) = self.callers.get_mut(name) {
                    usage.note_answer(held);
                    if std::mem::take(&mut usage.is_out_of_order) && !self.silent {
                        self.order.push_back(name.clone());
                    }
                }
            }
        }
    }

    /// Notes that no more answers come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether a call is admitted, and the question to ask the bus before the next call.
    pub fn admission(&mut self, caller: &str) -> (CallAdmission, Option<QuotaSubject>) {
        let is_much = self.total.unread > TOTAL_MAX;
        // A list may be longer than the limit. When its caller has read it and calls again, the
        // bus's last answer may be from before that.
        let limit = |usage: &QuotaUsage| if is_much { SMALL } else { UNREAD_MAX + usage.largest };
        match self.callers.get_mut(caller) {
            Some(usage) if usage.unread > limit(usage) && !self.silent => {
                usage.refusals = usage.refusals.saturating_add(1);
                let admission =
                    if usage.refusals > REFUSALS_MAX { CallAdmission::Ignored } else { CallAdmission::Refused };
                (admission, usage.ask().then(|| QuotaSubject::Caller(caller.to_owned())))
            }
            _ => (CallAdmission::Admitted, None),
        }
    }

    /// Whether a list of `bytes` bytes may be sent to a caller, as far as the quotas know. A caller
    /// with nothing unread may get a list of any length.
    pub fn list_fits(&self, caller: &str, bytes: usize) -> bool {
        let unread = self.callers.get(caller).map_or(0, |usage| usage.unread);
        let bytes = bytes as u64;
        let is_fine_for_caller = unread <= SMALL || unread + bytes <= UNREAD_MAX;
        self.silent || (is_fine_for_caller && self.total.unread + bytes <= TOTAL_MAX)
    }

    /// The questions whose answers give a more exact limit for this caller.
    pub fn questions(&mut self, caller: &str) -> Vec<QuotaSubject> {
        let mut due = Vec::new();
        if self.total.ask() {
            due.push(QuotaSubject::Ours);
        }
        if self.usage(caller).ask() {
            due.push(QuotaSubject::Caller(caller.to_owned()));
        }
        due
    }

    /// Whether answers are under way that give a more exact limit for this caller.
    pub fn is_asking(&self, caller: &str) -> bool {
        let asks = self.total.is_asked || self.callers.get(caller).is_some_and(|usage| usage.is_asked);
        asks && !self.silent && !self.ended
    }

    /// Notes that a caller wants a list. Returns `false` if too many of its lists wait already.
    pub fn list_wanted(&mut self, caller: &str) -> bool {
        let usage = self.usage(caller);
        let is_fine = usage.lists < LISTS_MAX;
        usage.lists += usize::from(is_fine);
        is_fine
    }

    /// Notes that a caller has got a list, or that the list was refused.
    pub fn list_done(&mut self, caller: &str) {
        let Some(usage) = self.callers.get_mut(caller) else { return };
        usage.lists = usage.lists.saturating_sub(1);
        // If the bus reports nothing, only waiting lists are tracked.
        if usage.lists == 0 && self.silent {
            self.callers.remove(caller);
        }
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
