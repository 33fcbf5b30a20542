//! The thread `timers`: has every running pool checked ten seconds after the check before has ended, and does not wake up
//! when no pool runs.
//!
//! Must never know: what a check looks at.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use threads::{stop::Stop, wake::Waker};

use super::{Ended, Error, Running, Submit, Task, Woken, wait};
use crate::engine::{ids::PoolUuid, ops};

/// From the end of a round of checks to the beginning of the next (`spec/engine/engine-behaviour.md` §1.4).
const PAUSE: Duration = Duration::from_secs(10);

/// The watcher. [`Timers::run`] is its thread.
pub struct Timers {
    running: Running,
    waker: Waker,
    submit: Submit,
    /// Unbounded, but holds at most one message for each pool: checks that have ended.
    ended: (Sender<()>, Receiver<()>),
}

/// When the next round is due.
#[derive(Debug, Default)]
struct Rounds {
    /// Checks of the round that have not ended.
    under_way: usize,
    last_ended: Option<Instant>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Check these.
    Check(Vec<PoolUuid>),
    /// Wait to be woken, at most until then.
    Wait(Option<Instant>),
}

impl Rounds {
    /// One check has ended.
    fn ended(&mut self, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.last_ended = Some(now);
        }
    }

    /// What is due with these pools running. After `Check` the caller begins that many checks.
    fn due(&mut self, now: Instant, pools: Vec<PoolUuid>) -> Due {
        if self.under_way > 0 || pools.is_empty() {
            return Due::Wait(None);
        }
        match self.last_ended.map(|ended| ended + PAUSE) {
            Some(next) if now < next => Due::Wait(Some(next)),
            _ => {
                self.under_way = pools.len();
                Due::Check(pools)
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
            let now = Instant::now();
            self.ended.1.try_iter().for_each(|()| rounds.ended(now));
            deadline = match rounds.due(now, self.running.list()) {
                Due::Check(pools) => {
                    pools.into_iter().for_each(|pool| self.check(pool));
                    None
                }
                Due::Wait(deadline) => deadline,
            };
        }
        Ok(())
    }

    fn check(&self, pool: PoolUuid) {
        let chain = Ended::of((), &self.ended.0, &self.waker).after(ops::check_pool(pool));
        (self.submit)(Task { label: format!("check of pool {pool} by time"), chain });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(count: u8) -> Vec<PoolUuid> {
        (0..count).map(|number| PoolUuid::from_random([number; 16])).collect()
    }

    #[test]
    fn nothing_is_waited_for_without_pools() {
        let mut rounds = Rounds::default();
        let now = Instant::now();
        assert_eq!(rounds.due(now, pools(0)), Due::Wait(None));
        assert_eq!(rounds.due(now, pools(1)), Due::Check(pools(1)));
        rounds.ended(now);
        assert_eq!(rounds.due(now, pools(0)), Due::Wait(None), "not even when a round is due");
    }

    #[test]
    fn a_round_begins_ten_seconds_after_the_last_one_has_ended() {
        let mut rounds = Rounds::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rounds.due(start, pools(2)), Due::Check(pools(2)), "the first at once");
        assert_eq!(rounds.due(after(30), pools(2)), Due::Wait(None), "a check takes its time");
        rounds.ended(after(40));
        assert_eq!(rounds.due(after(40), pools(2)), Due::Wait(None), "another is still under way");
        rounds.ended(after(50));
        assert_eq!(rounds.due(after(50), pools(2)), Due::Wait(Some(after(60))));
        assert_eq!(rounds.due(after(59), pools(3)), Due::Wait(Some(after(60))));
        assert_eq!(rounds.due(after(60), pools(3)), Due::Check(pools(3)));
    }
}
