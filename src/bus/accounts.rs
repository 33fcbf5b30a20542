//! Who has not read what was sent to them: the bound on what one client can keep from all others.
//!
//! The reference bus holds a message until its receiver has taken it, on the account of the *sender*, and stops reading
//! from a sender of which it holds 127 MiB. So a client that asks for lists and never reads them would silence the daemon
//! for everybody. dbus-broker has one account for all that connections of one user send each other, and when that is full it
//! disconnects whoever is to get the next message: root's clients share it with each other, with us and with systemd.
//!
//! A sender is not told what was delivered; but the bus says, when it is asked, how much it holds ([`statistics`]). So what
//! was sent is added up here for each caller and for all, and when a sum gets large the bus is asked how much of it is still
//! there. Where a bus does not say that, no limit is set.
//!
//! A pure state: sends nothing, knows nothing of what the messages say.
//!
//! [`statistics`]: super::statistics

use std::collections::{HashMap, VecDeque};

use crate::bus::statistics::Dialect;

/// What one caller may leave unread before its calls are refused.
pub const UNREAD_MAX: u64 = 16 << 20;
/// What all may leave unread, signals included, before lists are refused, and the calls of whoever has more than
/// [`SMALL`] of it. The rest up to the limit of the bus, 127 MiB, is for everybody else's answers.
pub const TOTAL_MAX: u64 = 96 << 20;
/// A caller that has left no more than this unread is answered whatever others do.
const SMALL: u64 = 64 << 10;
/// Refusals are answers, too. A caller that has got so many of them is not answered any more until it has read.
const REFUSALS_MAX: u32 = 4096;
/// Lists that one caller may have waiting for their turn.
const LISTS_MAX: usize = 16;
/// After so much more has been sent the bus is asked again.
const CALLER_ASKED_EVERY: u64 = 1 << 20;
const TOTAL_ASKED_EVERY: u64 = 8 << 20;
/// Callers that are remembered before each new one has an old one forgotten that owes next to nothing, or asked about.
const CALLERS_MAX: usize = 1024;
/// Old callers that are looked at for each new one. More than one, so that they become fewer.
const LOOKED_AT: usize = 2;
/// Questions under way before old callers are not asked about.
const QUESTIONS_MAX: usize = 16;

/// Of whom the bus is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// What it holds of ours, whoever is to get it.
    Ourselves,
    /// What it holds for that connection.
    Caller(String),
}

/// A question to the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Of whom.
    pub whom: Whom,
    /// In which words.
    pub dialect: Dialect,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is dealt with.
    Admitted,
    /// It is refused: the caller is to read first.
    Refused,
    /// It is not even answered.
    Ignored,
}

/// What the bus answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// So many bytes of the connection's messages, and so many for it.
    Holds {
        /// Sent by the connection, and not taken by whoever is to get them.
        of_theirs: u64,
        /// Not taken by the connection.
        for_them: u64,
    },
    /// The connection has ended.
    Gone,
    /// Not this time.
    Failed,
    /// It does not say such things.
    Silence,
}

/// What was sent, and not known to have been taken.
#[derive(Debug, Default)]
struct Meter {
    unread: u64,
    /// Part of it that was sent since the bus was last asked.
    since_asked: u64,
    /// An answer of the bus is under way.
    is_asked: bool,
    /// The largest message that may be part of it.
    largest: u64,
    /// Refusals since it last had read enough.
    refusals: u32,
    /// Lists that wait for their turn.
    lists: usize,
}

impl Meter {
    fn sent(&mut self, bytes: u64) {
        self.largest = self.largest.max(bytes);
        self.unread += bytes;
        self.since_asked += bytes;
    }

    /// Notes that the bus is asked now; `false` if it has been and has not answered.
    fn ask(&mut self) -> bool {
        if self.is_asked {
            return false;
        }
        self.is_asked = true;
        self.since_asked = 0;
        true
    }

    fn told(&mut self, held: Option<u64>) {
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

/// The accounts of all callers.
#[derive(Debug, Default)]
pub struct Accounts {
    total: Meter,
    callers: HashMap<String, Meter>,
    /// The names of callers in the order in which they are looked at, whether they are still remembered or not.
    order: VecDeque<String>,
    /// Questions that the bus has not answered, by serial number.
    asked: HashMap<u32, Question>,
    /// How the bus is asked.
    dialect: Dialect,
    /// The bus does not say what it holds.
    silent: bool,
    /// It was more than [`TOTAL_MAX`] when it last said so.
    is_much: bool,
    /// Nobody hears answers of the bus any more.
    ended: bool,
}

impl Accounts {
    /// Notes a message that is sent now. Gives whom to ask about.
    pub fn sent(&mut self, to: Option<&str>, bytes: usize) -> Vec<Whom> {
        let mut due = Vec::new();
        if self.silent {
            return due;
        }
        self.total.sent(bytes as u64);
        if self.total.since_asked >= TOTAL_ASKED_EVERY && self.total.ask() {
            due.push(Whom::Ourselves);
        }
        if let Some(name) = to {
            if self.order.len() > CALLERS_MAX && !self.callers.contains_key(name) {
                due.extend(self.forget_some());
            }
            let meter = self.meter(name);
            meter.sent(bytes as u64);
            if meter.since_asked >= CALLER_ASKED_EVERY && meter.ask() {
                due.push(Whom::Caller(name.to_owned()));
            }
        }
        due
    }

    fn meter(&mut self, name: &str) -> &mut Meter {
        if !self.callers.contains_key(name) {
            self.order.push_back(name.to_owned());
        }
        self.callers.entry(name.to_owned()).or_default()
    }

    /// Forgets old callers that owe next to nothing. Others may have ended without a word: gives those of whom the bus is
    /// to be asked.
    fn forget_some(&mut self) -> Vec<Whom> {
        let mut due = Vec::new();
        for _ in 0..LOOKED_AT {
            let Some(name) = self.order.pop_front() else { break };
            let Some(meter) = self.callers.get_mut(&name) else { continue };
            if meter.unread <= SMALL && !meter.is_asked && meter.lists == 0 {
                self.callers.remove(&name);
                continue;
            }
            if meter.lists == 0 && self.asked.len() + due.len() < QUESTIONS_MAX && meter.ask() {
                due.push(Whom::Caller(name.clone()));
            }
            self.order.push_back(name);
        }
        due
    }

    /// How the bus is to be asked.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Notes that a question has been sent.
    pub fn asking(&mut self, serial: u32, question: Question) {
        self.asked.insert(serial, question);
    }

    /// The question of that serial number, if there is one that has not been answered.
    pub fn question(&self, serial: u32) -> Option<Question> {
        self.asked.get(&serial).cloned()
    }

    /// Notes what the bus answers to the question of that serial number, if there is one.
    pub fn told(&mut self, serial: u32, answer: Answer) {
        let Some(Question { whom, dialect }) = self.asked.remove(&serial) else { return };
        let held = match (answer, &whom) {
            (Answer::Silence, _) => {
                // Questions of before may still be under way in other words than those of now.
                if dialect == self.dialect {
                    match dialect.next() {
                        Some(next) => self.dialect = next,
                        None => self.silent = true,
                    }
                }
                None
            }
            (Answer::Gone, Whom::Caller(name)) => {
                self.callers.remove(name);
                return;
            }
            (Answer::Holds { of_theirs, .. }, Whom::Ourselves) => Some(of_theirs),
            (Answer::Holds { for_them, .. }, Whom::Caller(_)) => Some(for_them),
            (Answer::Gone, Whom::Ourselves) | (Answer::Failed, _) => None,
        };
        match &whom {
            Whom::Ourselves => {
                if let Some(held) = held {
                    let is_much = held > TOTAL_MAX;
                    if is_much && !self.is_much {
                        log::warn!(
                            "the bus holds {} MiB of answers and signals that clients do not read, and may soon take no \
                             more; see which connection has most OutgoingBytes in org.freedesktop.DBus.Debug.Stats and \
                             end it",
                            held >> 20
                        );
                    }
                    self.is_much = is_much;
                }
                self.total.told(held);
            }
            Whom::Caller(name) => {
                if let Some(meter) = self.callers.get_mut(name) {
                    meter.told(held);
                }
            }
        }
    }

    /// No answers come any more.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// What is to become of a call, and whom to ask about before the next.
    pub fn verdict(&mut self, caller: &str) -> (Verdict, Option<Whom>) {
        let is_much = self.total.unread > TOTAL_MAX;
        // A list may be longer than the limit, and when its caller has read it and calls again the bus may have been asked
        // before that.
        let limit = |meter: &Meter| if is_much { SMALL } else { UNREAD_MAX + meter.largest };
        match self.callers.get_mut(caller) {
            Some(meter) if meter.unread > limit(meter) && !self.silent => {
                meter.refusals = meter.refusals.saturating_add(1);
                let verdict = if meter.refusals > REFUSALS_MAX { Verdict::Ignored } else { Verdict::Refused };
                (verdict, meter.ask().then(|| Whom::Caller(caller.to_owned())))
            }
            _ => (Verdict::Admitted, None),
        }
    }

    /// Whether a list of so many bytes can be sent to a caller, by what is known. A caller that owes nothing may have one
    /// of any length.
    pub fn list_fits(&self, caller: &str, bytes: usize) -> bool {
        let unread = self.callers.get(caller).map_or(0, |meter| meter.unread);
        let bytes = bytes as u64;
        let is_fine_for_caller = unread <= SMALL || unread + bytes <= UNREAD_MAX;
        self.silent || (is_fine_for_caller && self.total.unread + bytes <= TOTAL_MAX)
    }

    /// Whom to ask to know better what fits.
    pub fn questions(&mut self, caller: &str) -> Vec<Whom> {
        let mut due = Vec::new();
        if self.total.ask() {
            due.push(Whom::Ourselves);
        }
        if self.meter(caller).ask() {
            due.push(Whom::Caller(caller.to_owned()));
        }
        due
    }

    /// Whether answers are under way that say more of what fits a caller.
    pub fn is_asking(&self, caller: &str) -> bool {
        let asks = self.total.is_asked || self.callers.get(caller).is_some_and(|meter| meter.is_asked);
        asks && !self.silent && !self.ended
    }

    /// Notes that a caller wants a list; `false` if enough of its lists wait.
    pub fn list_wanted(&mut self, caller: &str) -> bool {
        let meter = self.meter(caller);
        let is_fine = meter.lists < LISTS_MAX;
        meter.lists += usize::from(is_fine);
        is_fine
    }

    /// Notes that it has got one, or been refused it.
    pub fn list_done(&mut self, caller: &str) {
        let Some(meter) = self.callers.get_mut(caller) else { return };
        meter.lists = meter.lists.saturating_sub(1);
        // Where the bus does not tell, nothing else is noted of anybody.
        if meter.lists == 0 && self.silent {
            self.callers.remove(caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Accounts, Answer, LISTS_MAX, Question, REFUSALS_MAX, TOTAL_MAX, UNREAD_MAX, Verdict, Whom};
    use crate::bus::statistics::Dialect;

    const MIB: usize = 1 << 20;

    fn holds(bytes: u64) -> Answer {
        Answer::Holds { of_theirs: bytes, for_them: bytes }
    }

    fn ask(accounts: &mut Accounts, serial: u32, whom: Whom) {
        let dialect = accounts.dialect();
        accounts.asking(serial, Question { whom, dialect });
    }

    fn answer_all(accounts: &mut Accounts, about: &str, held: u64) {
        for (serial, whom) in accounts.questions(about).into_iter().enumerate() {
            ask(accounts, serial as u32, whom);
            accounts.told(serial as u32, holds(held));
        }
    }

    #[test]
    fn caller_that_reads_is_never_refused() {
        let mut accounts = Accounts::default();
        for serial in 0..10_000 {
            assert_eq!(accounts.verdict(":1.1"), (Verdict::Admitted, None));
            for whom in accounts.sent(Some(":1.1"), MIB / 7) {
                ask(&mut accounts, serial, whom);
                accounts.told(serial, holds(0));
            }
        }
    }

    #[test]
    fn caller_that_does_not_read_is_refused_then_ignored_and_admitted_when_it_has_read() {
        let mut accounts = Accounts::default();
        let asked: Vec<_> = (0..18).flat_map(|_| accounts.sent(Some(":1.1"), MIB)).collect();
        assert_eq!(asked, [Whom::Caller(":1.1".to_owned()), Whom::Ourselves]);
        ask(&mut accounts, 7, asked[0].clone());
        // Not asked twice.
        assert_eq!(accounts.verdict(":1.1"), (Verdict::Refused, None));
        accounts.told(7, holds(UNREAD_MAX + 1));
        let (verdict, whom) = accounts.verdict(":1.1");
        assert_eq!((verdict, &whom), (Verdict::Refused, &Some(Whom::Caller(":1.1".to_owned()))));
        assert_eq!(accounts.verdict(":1.2"), (Verdict::Admitted, None), "others");
        for _ in 2..REFUSALS_MAX {
            assert_eq!(accounts.verdict(":1.1").0, Verdict::Refused);
        }
        assert_eq!(accounts.verdict(":1.1").0, Verdict::Ignored);
        ask(&mut accounts, 8, whom.unwrap());
        // Sent after the question, so the answer does not tell of it.
        accounts.sent(Some(":1.1"), 100);
        accounts.told(8, holds(0));
        assert_eq!(accounts.verdict(":1.1").0, Verdict::Admitted);
        assert_eq!(accounts.callers[":1.1"].unread, 100);
    }

    /// With ten thousand filesystems every call after a list was refused: the bus had been asked before it was read.
    #[test]
    fn caller_that_has_read_a_list_longer_than_the_limit_is_not_refused_what_comes_next() {
        let mut accounts = Accounts::default();
        for _ in 0..10 {
            assert!(accounts.list_fits(":1.1", 40 * MIB));
            for (serial, whom) in accounts.sent(Some(":1.1"), 40 * MIB).into_iter().enumerate() {
                ask(&mut accounts, serial as u32, whom);
                accounts.told(serial as u32, holds(40 * MIB as u64));
            }
            assert_eq!(accounts.verdict(":1.1").0, Verdict::Admitted);
            answer_all(&mut accounts, ":1.1", 0);
        }
        // Which is no leave for more than the limit of small messages.
        (0..18).for_each(|_| drop(accounts.sent(Some(":1.1"), MIB)));
        assert_eq!(accounts.verdict(":1.1").0, Verdict::Refused);
    }

    #[test]
    fn when_all_together_leave_too_much_only_those_who_owe_are_refused() {
        let mut accounts = Accounts::default();
        for number in 0..10 {
            for (serial, whom) in accounts.sent(Some(&format!(":1.{number}")), 10 * MIB).into_iter().enumerate() {
                ask(&mut accounts, serial as u32, whom);
                accounts.told(serial as u32, Answer::Failed);
            }
        }
        accounts.sent(Some(":2.1"), 100);
        assert!(accounts.total.unread > TOTAL_MAX);
        assert_eq!(accounts.verdict(":1.3").0, Verdict::Refused);
        assert_eq!(accounts.verdict(":2.1").0, Verdict::Admitted);
        assert!(!accounts.list_fits(":2.1", MIB));
        answer_all(&mut accounts, ":2.1", 0);
        assert!(accounts.list_fits(":2.1", 30 * MIB));
    }

    #[test]
    fn one_list_of_any_length_and_then_as_much_as_fits() {
        let mut accounts = Accounts::default();
        assert!(accounts.list_fits(":1.1", 60 * MIB));
        accounts.sent(Some(":1.1"), 60 * MIB);
        assert!(!accounts.list_fits(":1.1", 1));
        accounts.sent(Some(":1.2"), MIB);
        assert!(accounts.list_fits(":1.2", 15 * MIB) && !accounts.list_fits(":1.2", 16 * MIB));
        for _ in 0..LISTS_MAX {
            assert!(accounts.list_wanted(":1.1"));
        }
        assert!(!accounts.list_wanted(":1.1"));
        accounts.list_done(":1.1");
        assert!(accounts.list_wanted(":1.1"));
    }

    /// It is asked in all the ways that there are.
    #[test]
    fn bus_that_does_not_tell_sets_no_limit() {
        let mut accounts = Accounts::default();
        accounts.sent(Some(":1.1"), 200 * MIB);
        let mut dialects = Vec::new();
        for serial in 0..2 {
            assert_eq!(accounts.verdict(":1.1").0, Verdict::Refused);
            dialects.push(accounts.dialect());
            accounts.questions(":1.1");
            ask(&mut accounts, serial, Whom::Ourselves);
            ask(&mut accounts, 10 + serial, Whom::Caller(":1.1".to_owned()));
            accounts.told(serial, Answer::Silence);
            assert!(accounts.is_asking(":1.1") || serial == 1);
            // Asked in the same words as the first: it says nothing of other words.
            accounts.told(10 + serial, Answer::Silence);
        }
        assert_eq!(dialects, [Dialect::Connection, Dialect::Peers]);
        assert_eq!(accounts.verdict(":1.1"), (Verdict::Admitted, None));
        assert!(accounts.list_fits(":1.1", MIB) && !accounts.is_asking(":1.1"));
    }

    #[test]
    fn callers_are_forgotten() {
        let mut accounts = Accounts::default();
        for number in 0..100_000 {
            accounts.sent(Some(&format!(":1.{number}")), 1000);
        }
        assert!(accounts.callers.len() <= super::CALLERS_MAX + 1);
        ask(&mut accounts, 1, Whom::Caller(":1.99999".to_owned()));
        accounts.told(1, Answer::Gone);
        assert!(!accounts.callers.contains_key(":1.99999"));
    }

    /// Each had got one list of 100 kB and gone. They were taken for clients that do not read: all were kept, and all were
    /// looked at for each new one.
    #[test]
    fn callers_that_took_a_list_and_went_are_forgotten() {
        let mut accounts = Accounts::default();
        let (mut serial, mut questions) = (0, 0);
        for number in 0..10_000 {
            for whom in accounts.sent(Some(&format!(":1.{number}")), 100_000) {
                serial += 1;
                let answer = match &whom {
                    Whom::Ourselves => holds(0),
                    Whom::Caller(_) => {
                        questions += 1;
                        Answer::Gone
                    }
                };
                ask(&mut accounts, serial, whom);
                accounts.told(serial, answer);
            }
            let (callers, names) = (accounts.callers.len(), accounts.order.len());
            assert!(callers <= 2 * super::CALLERS_MAX && names <= 3 * super::CALLERS_MAX, "{callers}, {names}");
        }
        assert!(questions <= 2 * 10_000, "{questions}: at most two old ones are looked at for each new one");
    }
}
