//! The thread `timers`: has every running pool checked every ten seconds, and does not wake up when no pool runs.
//!
//! Must never know: what a check looks at.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{stop::Stop, wake::Waker};

use super::{Ended, Error, Running, Submit, Task, Woken, wait};
use crate::{base::ids::PoolUuid, engine::ops::Depth};

/// From one round of checks to the next (`docs/spec/engine/engine-behaviour.md` §1.4).
const PAUSE: Duration = Duration::from_secs(10);

/// The watcher. [`Timers::run`] is its thread.
pub struct Timers {
    running: Running,
    waker: Waker,
    submit: Submit,
    /// Unbounded, but holds at most one message for each pool: checks that have ended.
    ended: (Sender<PoolUuid>, Receiver<PoolUuid>),
}

/// The rounds. A pool whose check takes its time is left out of them and keeps no other waiting.
#[derive(Debug, Default)]
struct Rounds {
    under_way: BTreeSet<PoolUuid>,
    last: Option<Instant>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Check these, then ask again.
    Check(Vec<PoolUuid>),
    /// Wait to be woken, at most until then.
    Wait(Option<Instant>),
}

impl Rounds {
    /// The check of a pool has ended.
    fn ended(&mut self, pool: PoolUuid) {
        self.under_way.remove(&pool);
    }

    /// What is due with these pools running. After `Check` the caller begins these checks.
    fn due(&mut self, now: Instant, pools: Vec<PoolUuid>) -> Due {
        match self.last.map(|last| last + PAUSE) {
            _ if pools.is_empty() => Due::Wait(None),
            Some(next) if now < next => Due::Wait(Some(next)),
            _ => {
                self.last = Some(now);
                Due::Check(pools.into_iter().filter(|pool| self.under_way.insert(*pool)).collect())
            }
        }
    }
}

impl Timers {
    /// A watcher of the pools of `running`. `waker` is the one that `running` wakes.
    pub fn new(running: Running, waker: Waker, submit: Submit) -> Timers {
        Timers { running, waker, submit, ended: unbounded() }
    }

    /// Works until the stop.
    ///
    /// # Errors
    /// When waiting is not possible.
    pub fn run(self, stop: &Stop) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let mut rounds = Rounds::default();
        let mut deadline = None;
        while wait(None, &self.waker, stop, deadline)? != Woken::Stop {
            self.ended.1.try_iter().for_each(|pool| rounds.ended(pool));
            deadline = loop {
                match rounds.due(Instant::now(), self.running.list()) {
                    Due::Check(pools) => pools.into_iter().for_each(|pool| self.check(pool)),
                    Due::Wait(deadline) => break deadline,
                }
            };
        }
        Ok(())
    }

    fn check(&self, pool: PoolUuid) {
        let ended = Ended::of(pool, &self.ended.0, &self.waker);
        // Looks before the next round are a matter of the thread `dm-events`.
        let chain = ended.after_check_of(pool, Depth::Whole, move |_| pool);
        (self.submit)(Task { label: format!("check of pool {pool} by time"), chain });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(count: u8) -> Vec<PoolUuid> {
        (0..count).map(|number| PoolUuid::from_random([number; 16])).collect()
    }

    fn ended(rounds: &mut Rounds, pools: Vec<PoolUuid>) {
        pools.into_iter().for_each(|pool| rounds.ended(pool));
    }

    #[test]
    fn nothing_is_waited_for_without_pools() {
        let mut rounds = Rounds::default();
        let now = Instant::now();
        assert_eq!(rounds.due(now, pools(0)), Due::Wait(None));
        assert_eq!(rounds.due(now, pools(1)), Due::Check(pools(1)));
        ended(&mut rounds, pools(1));
        assert_eq!(rounds.due(now + PAUSE, pools(0)), Due::Wait(None), "not even when a round is due");
    }

    #[test]
    fn a_round_begins_ten_seconds_after_the_last_and_waits_for_nobody() {
        let mut rounds = Rounds::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rounds.due(start, pools(2)), Due::Check(pools(2)), "the first at once");
        assert_eq!(rounds.due(start, pools(2)), Due::Wait(Some(after(10))));
        let [first, second] = [pools(2)[0], pools(2)[1]];
        rounds.ended(first);
        assert_eq!(rounds.due(after(9), pools(2)), Due::Wait(Some(after(10))));
        assert_eq!(rounds.due(after(10), pools(2)), Due::Check(vec![first]), "the other is still under way");
        rounds.ended(second);
        assert_eq!(rounds.due(after(19), pools(2)), Due::Wait(Some(after(20))));
        assert_eq!(rounds.due(after(20), pools(3)), Due::Check(vec![second, pools(3)[2]]));
    }
}
