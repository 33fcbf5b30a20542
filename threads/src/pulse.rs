//! Finds stuck threads: each thread is asked from time to time, and answers in the next iteration
//! of its loop.
//!
//! Must never know: what the threads do, and what follows when one does not answer.
//!
//! # The promise
//!
//! - A thread that calls [`Pulse::beat`] after it was asked has answered. Until then it is
//!   *silent*.
//! - A thread inside [`Pulse::away`] waits for another program without a time limit, which is no
//!   fault of the thread. It counts as one that answers.
//! - [`Round::answered`] gets one message per round, with the last answer. No other answer wakes a
//!   thread.
//! - A pulse without a round ([`Pulse::default`]) does nothing.
//!
//! No answer is lost. The silent threads are a set behind one mutex. A thread is put into the set
//! before it is woken, and looks at the set after it has woken up.
//!
//! ```
//! use threads::pulse::Round;
//!
//! let mut round = Round::new();
//! let (ask, asked) = crossbeam_channel::unbounded();
//! let pulse = round.member("lister", Box::new(move |_| ask.send(()).expect("the thread is there")));
//! round.ask();
//! assert_eq!(round.silent(), ["lister"]);
//! asked.recv().expect("the thread is asked");
//! pulse.beat();
//! round.answered().recv().expect("all have answered");
//! assert!(round.silent().is_empty());
//! ```

use std::collections::BTreeSet;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::primitives::{Mutex, PlainArc};

/// The threads that are asked together.
pub struct Round {
    members: Vec<AskedThread>,
    shared: PlainArc<RoundCore>,
    answered: Receiver<()>,
}

struct AskedThread {
    name: &'static str,
    ask: Box<dyn Fn(&Pulse) + Send>,
}

struct RoundCore {
    seats: Mutex<Seats>,
    /// With room for one message, since a round ends once.
    answered: Sender<()>,
}

/// Members by their number.
#[derive(Default)]
struct Seats {
    silent: BTreeSet<usize>,
    away: BTreeSet<usize>,
}

/// A thread's side of the rounds. Clones belong to the same thread.
#[derive(Clone, Default)]
pub struct Pulse {
    seat: Option<(PlainArc<RoundCore>, usize)>,
}

impl Round {
    /// Without members.
    #[must_use]
    pub fn new() -> Self {
        let (sender, answered) = bounded(1);
        let shared = RoundCore { seats: Mutex::new(Seats::default()), answered: sender };
        Self { members: Vec::new(), shared: PlainArc::new(shared), answered }
    }

    /// Adds a thread. `ask` makes the thread run its loop once, without blocking. `ask` gets
    /// the thread's pulse, for members that answer elsewhere than in a loop.
    pub fn member(&mut self, name: &'static str, ask: Box<dyn Fn(&Pulse) + Send>) -> Pulse {
        self.members.push(AskedThread { name, ask });
        self.pulse(self.members.len() - 1)
    }

    fn pulse(&self, seat: usize) -> Pulse {
        Pulse { seat: Some((PlainArc::clone(&self.shared), seat)) }
    }

    /// Asks all members. Call this when all have answered.
    pub fn ask(&self) {
        // A message that is still in the channel belongs to the previous round.
        let _ = self.answered.try_recv();
        // All members become silent at once, so the round does not end before each has been asked.
        let asked: BTreeSet<usize> = {
            let mut seats = self.shared.seats.lock();
            let asked: BTreeSet<usize> = (0..self.members.len()).filter(|seat| !seats.away.contains(seat)).collect();
            seats.silent.clone_from(&asked);
            asked
        };
        if asked.is_empty() {
            self.shared.tell();
        }
        for (seat, member) in self.members.iter().enumerate().filter(|(seat, _)| asked.contains(seat)) {
            (member.ask)(&self.pulse(seat));
        }
    }

    /// The names of the silent members.
    #[must_use]
    pub fn silent(&self) -> Vec<&'static str> {
        let seats = self.shared.seats.lock();
        self.members.iter().enumerate().filter(|(seat, _)| seats.silent.contains(seat)).map(|(_, of)| of.name).collect()
    }

    /// Gets a message when all have answered.
    #[must_use]
    pub fn answered(&self) -> &Receiver<()> {
        &self.answered
    }
}

impl Default for Round {
    fn default() -> Self {
        Self::new()
    }
}

impl RoundCore {
    fn tell(&self) {
        // If the channel is full, the message is already there.
        let _ = self.answered.try_send(());
    }

    fn answer(&self, seat: usize, seats: &mut Seats) {
        if seats.silent.remove(&seat) && seats.silent.is_empty() {
            self.tell();
        }
    }
}

impl Pulse {
    /// Call this once per iteration of the thread's loop.
    pub fn beat(&self) {
        if let Some((shared, seat)) = &self.seat {
            shared.answer(*seat, &mut shared.seats.lock());
        }
    }

    /// Runs `wait`, which depends on another program and has no time limit. Meanwhile the thread
    /// counts as one that answers.
    pub fn away<T>(&self, wait: impl FnOnce() -> T) -> T {
        let _back = self.seat.as_ref().map(|(shared, seat)| {
            let mut seats = shared.seats.lock();
            seats.away.insert(*seat);
            shared.answer(*seat, &mut seats);
            Back { shared, seat: *seat }
        });
        wait()
    }
}

/// Ends the absence, also if the wait panics.
struct Back<'a> {
    shared: &'a RoundCore,
    seat: usize,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.shared.seats.lock().away.remove(&self.seat);
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::unbounded;

    use super::{Pulse, Round};
    use crate::group::Group;

    const HANG: Duration = Duration::from_secs(60);

    /// A round of members that are asked through channels.
    fn round<const N: usize>(names: [&'static str; N]) -> (Round, [(Pulse, crossbeam_channel::Receiver<()>); N]) {
        let mut round = Round::new();
        let members = names.map(|name| {
            let (ask, asked) = unbounded();
            (round.member(name, Box::new(move |_: &Pulse| ask.send(()).unwrap())), asked)
        });
        (round, members)
    }

    #[test]
    fn the_last_answer_ends_the_round() {
        let (round, [(a, asked_a), (b, asked_b)]) = round(["a", "b"]);
        assert!(round.silent().is_empty(), "no thread has been asked");
        a.beat();
        assert!(round.answered().is_empty());
        for _ in 0..2 {
            round.ask();
            assert_eq!((asked_a.len(), asked_b.len()), (1, 1));
            assert_eq!(round.silent(), ["a", "b"]);
            b.beat();
            b.beat();
            assert_eq!(round.silent(), ["a"]);
            assert!(round.answered().is_empty(), "one answer is missing");
            a.beat();
            assert!(round.silent().is_empty());
            assert_eq!(round.answered().try_iter().count(), 1, "once");
            asked_a.recv().unwrap();
            asked_b.recv().unwrap();
        }
    }

    #[test]
    fn absent_threads_are_not_asked() {
        let (round, [(a, asked_a), (b, _asked_b)]) = round(["a", "b"]);
        round.ask();
        a.away(|| {
            assert_eq!(round.silent(), ["b"], "an absent thread counts as answered");
            b.beat();
            asked_a.recv().unwrap();
            assert_eq!(round.answered().try_iter().count(), 1);
            round.ask();
            assert!(asked_a.is_empty());
            assert_eq!(round.silent(), ["b"]);
            b.away(|| {
                assert_eq!(round.answered().try_iter().count(), 1);
                round.ask();
                assert_eq!(round.answered().try_iter().count(), 1, "no thread is left that could answer");
            });
        });
        round.ask();
        assert_eq!(round.silent(), ["a", "b"], "both are back");
    }

    #[test]
    fn a_late_answer_belongs_to_its_round() {
        let (round, [(a, _asked)]) = round(["a"]);
        round.ask();
        a.beat();
        // No receiver takes the message.
        round.ask();
        assert!(round.answered().is_empty());
        assert_eq!(round.silent(), ["a"]);
    }

    #[test]
    fn a_pulse_without_a_round_does_nothing() {
        let pulse = Pulse::default();
        pulse.beat();
        assert_eq!(pulse.away(|| 7), 7);
    }

    #[test]
    fn the_stuck_thread_is_named() {
        let (round, [(good, asked_good), (stuck, asked_stuck)]) = round(["good", "stuck"]);
        let group = Group::new(&["good", "stuck"]);
        let (release, gate) = unbounded::<()>();
        let (tell, told) = unbounded();
        group
            .spawn("good", move || {
                for () in &asked_good {
                    good.beat();
                    tell.send(()).unwrap();
                }
                Ok(())
            })
            .unwrap();
        group
            .spawn("stuck", move || {
                for () in &asked_stuck {
                    // Stuck until released.
                    let _ = gate.recv();
                    stuck.beat();
                }
                Ok(())
            })
            .unwrap();
        round.ask();
        told.recv_timeout(HANG).unwrap();
        assert_eq!(round.silent(), ["stuck"]);
        release.send(()).unwrap();
        round.answered().recv_timeout(HANG).unwrap();
        assert!(round.silent().is_empty());
        drop(round);
        group.join(&["good", "stuck"], HANG).unwrap();
    }
}
