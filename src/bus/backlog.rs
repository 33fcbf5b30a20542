//! What the tree writer holds back because of large changes: the remaining signals of those
//! changes, and later updates about the same pools.
//!
//! A change of ten thousand objects is published at once, but its signals are sent in portions.
//! Updates about other pools are sent between the portions. Until the last portion is sent, no
//! other update about the same pool is published or answered. So the value of an object that a
//! client reads is at most one change ahead of the signals that the client has received, and never
//! behind them.
//!
//! Pure state: sends nothing.

use std::collections::{HashSet, VecDeque};

use crate::{
    base::ids::PoolUuid,
    bus::{
        changes::Signals,
        job::{About, Reply},
    },
    view::{Change, Update},
};

/// The pools that an update is about.
#[derive(Debug, Default)]
pub struct Topics {
    pools: Vec<PoolUuid>,
    /// The update carries a reply about pools that are not known beforehand.
    any: bool,
}

impl Topics {
    /// The topics of an update.
    pub fn of(Update { changes, reply }: &Update<Reply>) -> Topics {
        let changed = changes.iter().filter_map(|change| match change {
            Change::Pool(pool) => Some(pool.uuid),
            Change::PoolGone(pool) => Some(*pool),
            // Stopped pools are ordered by their version.
            Change::Stopped(_) => None,
        });
        let about = reply.as_ref().map_or(About::Nothing, |reply| reply.about);
        let told = match about {
            About::Pool(pool) => Some(pool),
            About::Nothing | About::Any => None,
        };
        Topics { pools: changed.chain(told).collect(), any: about == About::Any }
    }
}

/// The rest of a large change.
#[derive(Debug)]
pub struct Tail {
    /// The pools that the change is about.
    pub topics: Topics,
    /// The signals that are not sent yet.
    pub signals: Signals,
    /// The reply, sent after the last signal.
    pub reply: Option<Reply>,
}

/// Tails, and the updates that wait for them.
#[derive(Default)]
pub struct Backlog {
    tails: VecDeque<Tail>,
    /// Updates that wait for a tail, in order of arrival.
    held: VecDeque<(Topics, Update<Reply>)>,
    /// The pools that tails and held updates are about.
    busy: HashSet<PoolUuid>,
}

impl Backlog {
    /// Whether no signals wait. If none do, no update waits either.
    pub fn is_empty(&self) -> bool {
        self.tails.is_empty()
    }

    /// Holds back an update about a pool that has a tail or a held update. Gives back an update
    /// that need not wait.
    pub fn hold(&mut self, update: Update<Reply>) -> Option<(Topics, Update<Reply>)> {
        let topics = Topics::of(&update);
        let waits_for = |pool| self.busy.contains(pool);
        if !topics.pools.iter().any(waits_for) && (!topics.any || self.is_empty()) {
            return Some((topics, update));
        }
        self.put_back(topics, update);
        None
    }

    /// Holds back an update unconditionally.
    pub fn put_back(&mut self, topics: Topics, update: Update<Reply>) {
        self.busy.extend(&topics.pools);
        self.held.push_back((topics, update));
    }

    /// Adds the rest of a large change.
    pub fn add(&mut self, tail: Tail) {
        self.busy.extend(&tail.topics.pools);
        self.tails.push_back(tail);
    }

    /// Takes out the tail whose turn it is. The caller adds the tail again, or calls
    /// [`Backlog::ended`].
    pub fn next(&mut self) -> Option<Tail> {
        self.tails.pop_front()
    }

    /// A tail has ended. Returns the updates that waited; the caller tries them again in this
    /// order.
    pub fn ended(&mut self) -> VecDeque<(Topics, Update<Reply>)> {
        self.busy = self.tails.iter().flat_map(|tail| &tail.topics.pools).copied().collect();
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::caller::Caller;

    fn pool(byte: u8) -> PoolUuid {
        PoolUuid::from_random([byte; 16])
    }

    fn change(byte: u8) -> Update<Reply> {
        Update { changes: vec![Change::PoolGone(pool(byte))], reply: None }
    }

    fn reply(about: About) -> Update<Reply> {
        let caller = Caller { name: ":1.1".into(), serial: 1 };
        let answer = Box::new(|_: &_| unreachable!("nobody asks"));
        Update { changes: Vec::new(), reply: Some(Reply::to(caller, about, answer)) }
    }

    fn tail(byte: u8) -> Tail {
        Tail { topics: Topics::of(&change(byte)), signals: Signals::new(Vec::new()), reply: None }
    }

    #[test]
    fn updates_wait_for_signals_of_their_pool() {
        let mut backlog = Backlog::default();
        assert!(backlog.hold(change(1)).is_some());
        backlog.add(tail(1));
        assert!(backlog.hold(change(2)).is_some() && backlog.hold(reply(About::Pool(pool(2)))).is_some());
        assert!(backlog.hold(reply(About::Nothing)).is_some());
        assert!(backlog.hold(change(1)).is_none() && backlog.hold(reply(About::Pool(pool(1)))).is_none());
        let both = Update { changes: vec![Change::PoolGone(pool(3)), Change::PoolGone(pool(1))], reply: None };
        assert!(backlog.hold(both).is_none());
        assert!(backlog.hold(change(3)).is_none(), "behind one that waits");
        assert!(backlog.next().is_some());
        let waited: Vec<Vec<PoolUuid>> = backlog.ended().into_iter().map(|(topics, _)| topics.pools).collect();
        assert_eq!(waited, [vec![pool(1)], vec![pool(1)], vec![pool(3), pool(1)], vec![pool(3)]]);
        assert!(backlog.hold(change(1)).is_some() && backlog.is_empty());
    }

    #[test]
    fn reply_about_unknown_pools_waits_for_all_signals() {
        let mut backlog = Backlog::default();
        backlog.add(tail(1));
        backlog.add(tail(2));
        assert!(backlog.hold(reply(About::Any)).is_none());
        assert!(backlog.hold(change(3)).is_some(), "and keeps nobody else waiting");
        backlog.next();
        let again: Vec<_> = backlog.ended().into_iter().filter_map(|(_, update)| backlog.hold(update)).collect();
        assert!(again.is_empty(), "one is left");
        backlog.next();
        assert_eq!(backlog.ended().into_iter().filter_map(|(_, update)| backlog.hold(update)).count(), 1);
    }
}
