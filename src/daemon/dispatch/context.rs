//! What the dispatcher needs from the object that all steps share (the engine, or a simple
//! substitute in the dispatcher's tests), and the types of chains and steps over it.
//!
//! Must never know: how chains are run.

use std::sync::Arc;

use super::super::table::PoolEntry;
use crate::{
    engine::{
        Engine,
        pool::Pool,
        request::{BlockingStep, Join, LinkedStep, LockedStep, Step, Wait},
    },
    view,
};

/// What the dispatcher needs from the object that all steps share.
pub trait Context: Send + Sync + 'static {
    /// The values that the lock guards.
    type Pool: PoolEntry;
    /// How often a claim has been given back so far.
    fn claims_given_back(&self) -> u64;
    /// Whether a request still has to wait for `wait`. `since` is the count of claims given back
    /// when its step began.
    fn is_taken(&self, wait: &Wait, since: u64) -> bool;
    /// Registers `watcher`. Code that gives something back calls `watcher` afterwards, with all
    /// that became free.
    fn watch_claims(&self, watcher: Box<dyn Fn(Vec<Wait>) + Send + Sync>);
    /// The stopped pools, if they changed since the last call.
    fn take_stopped_change(&self) -> Option<Arc<view::StoppedPoolsView>>;
    /// Asks background steps to end as soon as they can.
    fn end(&self);
    /// Asks requests that have begun to undo their changes instead of beginning a format or a new
    /// pool.
    fn hurry(&self);
    /// Chains that steps have begun and for which no caller waits, with their labels. They run as
    /// separate requests.
    fn take_follow_ups<R: Send + 'static>(&self) -> Vec<(String, Chain<R, Self>)>
    where
        Self: Sized;
}

impl Context for Engine {
    type Pool = Pool;

    fn claims_given_back(&self) -> u64 {
        Engine::claims_given_back(self)
    }

    fn is_taken(&self, wait: &Wait, since: u64) -> bool {
        Engine::is_taken(self, wait, since)
    }

    fn watch_claims(&self, watcher: Box<dyn Fn(Vec<Wait>) + Send + Sync>) {
        Engine::watch_claims(self, watcher);
    }

    fn take_stopped_change(&self) -> Option<Arc<view::StoppedPoolsView>> {
        Engine::take_stopped_change(self)
    }

    fn end(&self) {
        Engine::end(self);
    }

    fn hurry(&self) {
        Engine::hurry(self);
    }

    fn take_follow_ups<R: Send + 'static>(&self) -> Vec<(String, Chain<R, Self>)> {
        let begun = Engine::take_follow_ups(self).into_iter();
        begun.map(|(label, chain)| (label, chain.map(|()| None))).collect()
    }
}

/// A chain of steps over a context and its pools. It ends with the answer to the caller, if there
/// is one.
pub type Chain<R, C> = Step<Option<R>, C, <C as Context>::Pool>;

/// A step of such a chain under a lock.
pub(super) type GrantedStep<R, C> = LockedStep<Option<R>, C, <C as Context>::Pool>;
/// A step of such a chain without a lock.
pub(super) type FreeStep<R, C> = BlockingStep<Option<R>, C, <C as Context>::Pool>;
/// The step that follows when the links exist.
pub(super) type AfterLinks<R, C> = LinkedStep<Option<R>, C, <C as Context>::Pool>;
/// The step that follows the parallel parts of a chain.
pub(super) type JoinStep<R, C> = Join<Option<R>, C, <C as Context>::Pool>;
