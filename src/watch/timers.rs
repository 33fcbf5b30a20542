//! The thread `timers`: checks every running pool every ten seconds, and does not wake up when no
//! pool runs.
//!
//! Must never know: what a check looks at.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{pulse::Pulse, stop::Stop, wake::Waker};

use super::{EndReport, Error, RunningPools, SubmitWatched, WatchRequest, Woken, wait};
use crate::{base::ids::PoolUuid, engine::ops::Depth};

/// The time between two rounds of checks (`docs/spec/engine/engine-behaviour.md` §1.4).
const PAUSE: Duration = Duration::from_secs(10);

/// The watcher. [`Timers::run`] is its thread.
pub struct Timers {
    running: RunningPools,
    waker: Waker,
    submit: SubmitWatched,
    /// Checks that have ended. Unbounded, but holds at most one message for each pool.
    ended: (Sender<PoolUuid>, Receiver<PoolUuid>),
}

/// The rounds of checks. A round skips a pool whose last check still runs, so that no other pool
/// waits for it.
#[derive(Debug, Default)]
struct Rounds {
    under_way: BTreeSet<PoolUuid>,
    last: Option<Instant>,
}

/// The next action.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Check these pools, then ask again.
    Check(Vec<PoolUuid>),
    /// Wait for a wake-up, at most until then.
    Wait(Option<Instant>),
}

impl Rounds {
    /// The check of a pool has ended.
    fn ended(&mut self, pool: PoolUuid) {
        self.under_way.remove(&pool);
    }

    /// The next action while these pools run. After `Check` the caller starts these checks.
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
    /// A watcher of the pools of `running`, which wakes `waker`.
    pub fn new(running: RunningPools, waker: Waker, submit: SubmitWatched) -> Timers {
        Timers { running, waker, submit, ended: unbounded() }
    }

    /// Runs until the stop.
    ///
    /// # Errors
    /// Waiting for events failed.
    pub fn run(self, stop: &Stop, pulse: &Pulse) -> Result<(), Error> {
        stop.on_stop(self.waker.clone());
        let mut rounds = Rounds::default();
        let mut deadline = None;
        while wait(None, &self.waker, stop, deadline)? != Woken::Stop {
            pulse.beat();
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
        let ended = EndReport::of(pool, &self.ended.0, &self.waker);
        // If a check is due before the next round, the thread `dm-events` makes it.
        let chain = ended.after_check_of(pool, Depth::Whole, move |_| pool);
        (self.submit)(WatchRequest { label: format!("periodic check of pool {pool}"), chain });
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
    fn without_pools_there_is_no_deadline() {
        let mut rounds = Rounds::default();
        let now = Instant::now();
        assert_eq!(rounds.due(now, pools(0)), Due::Wait(None));
        assert_eq!(rounds.due(now, pools(1)), Due::Check(pools(1)));
        ended(&mut rounds, pools(1));
        assert_eq!(rounds.due(now + PAUSE, pools(0)), Due::Wait(None), "a round without pools is due");
    }

    #[test]
    fn a_round_starts_every_ten_seconds() {
        let mut rounds = Rounds::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rounds.due(start, pools(2)), Due::Check(pools(2)), "the first round starts at once");
        assert_eq!(rounds.due(start, pools(2)), Due::Wait(Some(after(10))));
        let [first, second] = [pools(2)[0], pools(2)[1]];
        rounds.ended(first);
        assert_eq!(rounds.due(after(9), pools(2)), Due::Wait(Some(after(10))));
        assert_eq!(rounds.due(after(10), pools(2)), Due::Check(vec![first]), "the other check still runs");
        rounds.ended(second);
        assert_eq!(rounds.due(after(19), pools(2)), Due::Wait(Some(after(20))));
        assert_eq!(rounds.due(after(20), pools(3)), Due::Check(vec![second, pools(3)[2]]));
    }
}
