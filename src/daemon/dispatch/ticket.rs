//! One running request: where its next step runs, where it waits, and what follows a step.
//!
//! Must never know: how the daemon stops, beyond "stopping".

use std::{any::Any, borrow::Cow, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use threads::{
    lock::{Guard, WantedAccess},
    parking::Arrival,
    workers::Class,
};

use super::{
    super::table::{PoolEntry, ReadTable, WriteTable, target},
    Dispatcher, DispatcherCore, LockWaiter, ParkedRequest, ReadyRequest, Records, Request, caught,
    context::{AfterLinks, Chain, Context, FreeStep, GrantedStep, JoinStep},
    failed,
};
use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::request::{Access, Granted, Mode, Pace, Part, Share, Step, Wait},
    platform::PendingLinks,
    service::Failure,
    view::Change,
};

/// A running request. Its owner must continue it. If the ticket is dropped, the request is answered
/// that the daemon stops.
pub(super) struct Ticket<R: Send + 'static, C: Context> {
    pub(super) inner: Arc<DispatcherCore<R, C>>,
    pub(super) number: u64,
    pub(super) label: Arc<str>,
    /// A step has run that did not park.
    pub(super) begun: bool,
    /// The share of the last step.
    pub(super) share: Option<Share>,
    /// The request has parked and has not continued since: the parking knows it.
    pub(super) parked: bool,
}

/// The outcome of a step: the rest of the chain, or the text of its panic.
type StepOutcome<R, C> = Result<Chain<R, C>, String>;

impl<R: Send + 'static, C: Context> Ticket<R, C> {
    /// Arranges what the chain needs next. `seen` is the count of claims given back before the step
    /// that has just ended.
    pub(super) fn go_on(self, next: Chain<R, C>, seen: u64) {
        match next {
            Step::Done(reply) => {
                let reply = self.inner.unanswered(self.number).and(reply);
                self.inner.record(Vec::new(), reply);
            }
            Step::Locked(access, step) => self.wait_for_lock(access, step),
            Step::Blocking(pace, step) => self.run_free(pace, step),
            Step::Background(step) => self.run(Class::Background, |ticket| ticket.run_step(step)),
            Step::Linked(links, limit, step) => self.wait_for_links(links, limit, step),
            Step::Parallel(parts, join) => self.run_together(parts, join),
            Step::Parked(wait, next) => self.park(wait, *next, seen),
        }
    }

    /// Hands the request to the workers. If the daemon stops before a worker takes it, and none of
    /// its steps has run, it is answered instead.
    pub(super) fn run(self, class: Class<Option<Share>>, step: impl FnOnce(Self) + Send + 'static) {
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let ready = ReadyRequest { step: Box::new(step), ticket: self };
        {
            let mut queue = inner.queue.lock();
            // As for requests that wait for a lock. The ticket is not dropped here: the caller may
            // be in the middle of a step.
            if queue.stopping && !ready.ticket.begun {
                return queue.late.push(ready);
            }
            queue.ready.insert(number, ready);
        }
        let running = Arc::clone(&inner);
        let job = Box::new(move || running.run_ready(number));
        if inner.workers.submit(class, number, job).is_err() {
            let mut queue = inner.queue.lock();
            let ready = queue.ready.remove(&number);
            queue.late.extend(ready);
        }
    }

    /// The class of a brief step in the current share of the request.
    fn brief(&self) -> Class<Option<Share>> {
        Class::Brief(self.share.clone())
    }

    /// Runs a step that has no lock.
    fn run_free(mut self, pace: Pace, step: FreeStep<R, C>) {
        let class = match pace {
            Pace::Brief => self.brief(),
            Pace::Slow(share) => {
                self.share = share.or_else(|| self.share.take());
                Class::Slow(self.share.clone())
            }
        };
        self.run(class, |ticket| ticket.run_step(step));
    }

    fn run_step(self, step: FreeStep<R, C>) {
        let seen = self.inner.context.claims_given_back();
        let outcome = caught(|| step(&self.inner.context));
        self.after_free_step(outcome, seen);
    }

    /// Continues when the links exist or the limit has passed.
    fn wait_for_links(self, links: Box<dyn PendingLinks>, limit: Duration, step: AfterLinks<R, C>) {
        let thread = self.inner.links.clone();
        let then = move |missing| {
            let (class, inner) = (self.brief(), Arc::clone(&self.inner));
            self.run(class, move |ticket| ticket.run_step(Box::new(move |context| step(context, missing))));
            inner.drop_late();
        };
        thread.wait(links, limit, Box::new(then));
    }

    fn wait_for_lock(mut self, access: Access, step: GrantedStep<R, C>) {
        if let Access::Pool(PoolRef::Uuid(pool), _) = &access {
            self.share = Some(Share::Pool(*pool));
        }
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let label = Cow::Owned(self.label.to_string());
        let not_begun = {
            let mut queue = inner.queue.lock();
            // A stop before this point has not seen the request; a later one finds it in the list.
            if queue.stopping && !self.begun {
                Some(LockWaiter { asked: None, step, ticket: self })
            } else {
                queue.waiting.insert(number, LockWaiter { asked: None, step, ticket: self });
                None
            }
        };
        if not_begun.is_some() {
            return;
        }
        let access = match &access {
            Access::Pool(pool, Mode::Shared) => WantedAccess::Read(target(pool)),
            Access::Pool(pool, Mode::Exclusive) => WantedAccess::Write(target(pool)),
            Access::Table(Mode::Shared) => WantedAccess::ReadAll,
            Access::Table(Mode::Exclusive) => WantedAccess::WriteAll,
        };
        let granting = Arc::clone(&inner);
        let asked = inner.lock.submit(number, access, label, move |guard| {
            let found = granting.queue.lock().waiting.remove(&number);
            // `None`: a stop has answered the request. Dropping the guard passes the grant to the
            // next request.
            if let Some(LockWaiter { step, mut ticket, .. }) = found {
                // Only now is it known which pool has the name.
                match &guard {
                    Guard::Read(pool) => ticket.share = Some(Share::Pool(*pool.key())),
                    Guard::Write(pool) => ticket.share = Some(Share::Pool(*pool.key())),
                    _ => {}
                }
                // The whole table belongs to no share: no step that holds it can hang.
                let class = match &guard {
                    Guard::ReadAll(_) | Guard::WriteAll(_) => Class::Brief(None),
                    _ => ticket.brief(),
                };
                ticket.run(class, move |ticket| ticket.run_under(guard, step));
            }
        });
        if let Some(waiting) = inner.queue.lock().waiting.get_mut(&number) {
            waiting.asked = Some(asked);
        }
    }

    /// Runs a step with its grant.
    fn run_under(self, mut guard: Guard<PoolUuid, Name, C::Pool>, step: GrantedStep<R, C>) {
        let inner = Arc::clone(&self.inner);
        let context = &*inner.context;
        let seen = context.claims_given_back();
        let whole_table = matches!(guard, Guard::WriteAll(_)).then(|| inner.records.lock());
        let (outcome, changes) = match &mut guard {
            Guard::Absent => (caught(|| step(context, Granted::NoPool)), Vec::new()),
            Guard::Read(pool) => (caught(|| step(context, Granted::Read(pool))), Vec::new()),
            Guard::ReadAll(guard) => {
                let mut table = ReadTable(guard);
                (caught(|| step(context, Granted::Table(&mut table))), Vec::new())
            }
            Guard::Write(pool) => {
                let outcome = caught(|| step(context, Granted::Write(pool)));
                if outcome.is_err() {
                    pool.restrict();
                }
                (outcome, pool.take_change().map(Change::Pool).into_iter().collect())
            }
            Guard::WriteAll(guard) => {
                let mut table = WriteTable::new(guard);
                let outcome = caught(|| step(context, Granted::Table(&mut table)));
                if outcome.is_err() {
                    table.restrict_touched();
                }
                (outcome, table.changes())
            }
        };
        let records = whole_table.unwrap_or_else(|| inner.records.lock());
        self.after_step(outcome, seen, changes, records, guard);
    }

    /// Sends the changes of a step, and only then releases its grant and continues the request.
    fn after_step(
        mut self,
        mut outcome: StepOutcome<R, C>,
        seen: u64,
        changes: Vec<Change>,
        records: MutexGuard<'_, Records<R>>,
        guard: Guard<PoolUuid, Name, C::Pool>,
    ) {
        let inner = Arc::clone(&self.inner);
        let reply = match &mut outcome {
            Ok(Step::Done(reply)) => inner.unanswered(self.number).and(reply.take()),
            Ok(_) => None,
            Err(text) => {
                log::error!("{}: a step panicked: {text}; please report it", self.label);
                inner.unanswered(self.number).and_then(|on_failure| failed(&self.label, on_failure, Failure::Panicked))
            }
        };
        records.send(&*inner.context, changes, reply);
        drop(records);
        drop(guard);
        for (label, chain) in inner.context.take_follow_ups() {
            Dispatcher { inner: Arc::clone(&inner) }.submit(Request { label, chain, on_failure: Box::new(|_| None) });
        }
        match outcome {
            // The request has ended.
            Ok(Step::Done(_)) | Err(_) => drop(self),
            Ok(next) => {
                if !matches!(next, Step::Parked(..)) {
                    self.begun = true;
                    self.leave_parking();
                }
                self.go_on(next, seen);
            }
        }
        inner.drop_late();
    }

    /// The request has continued since it parked, or it ends: the next waiter for the same claim
    /// may have the turn.
    fn leave_parking(&mut self) {
        if std::mem::take(&mut self.parked) {
            let inner = &self.inner;
            inner.parking.leave(Arrival(self.number), |wait| !inner.context.is_taken(wait, 0));
        }
    }

    fn after_free_step(self, outcome: StepOutcome<R, C>, seen: u64) {
        let inner = Arc::clone(&self.inner);
        self.after_step(outcome, seen, Vec::new(), inner.records.lock(), Guard::Absent);
    }

    /// Runs parts in parallel; the one that ends last runs the join.
    fn run_together(self, parts: Vec<Part<C>>, join: JoinStep<R, C>) {
        if parts.is_empty() {
            let class = self.brief();
            self.run(class, move |ticket| ticket.run_join(join, Vec::new()));
            return;
        }
        let (inner, label) = (Arc::clone(&self.inner), Arc::clone(&self.label));
        let (number, class) = (self.number, Class::Slow(self.share.clone()));
        let results = parts.iter().map(|_| None).collect();
        let gathered = Arc::new(Mutex::new(Some(Gathered { results, left: parts.len(), join, ticket: self })));
        for (place, part) in parts.into_iter().enumerate() {
            let (gathered, inner_of_part, label) = (Arc::clone(&gathered), Arc::clone(&inner), Arc::clone(&label));
            let job = Box::new(move || {
                let result = caught(|| part(&inner_of_part.context))
                    .inspect_err(|text| log::error!("{label}: a parallel part panicked: {text}; please report it"));
                let all = Gathered::put(&mut gathered.lock(), place, result.ok());
                if let Some(Gathered { results, join, ticket, .. }) = all {
                    ticket.run_join(join, results);
                }
            });
            // The workers refuse the job when they are closed. Then the request has been answered,
            // and is dropped with its last part.
            drop(inner.workers.submit(class.clone(), number, job));
        }
    }

    fn run_join(self, join: JoinStep<R, C>, results: Vec<PartResult>) {
        let seen = self.inner.context.claims_given_back();
        let outcome = caught(|| join(&self.inner.context, results));
        self.after_free_step(outcome, seen);
    }

    /// Sets the chain aside until its claim is given back. `seen` is the count of claims given back
    /// before the step that parks.
    fn park(mut self, wait: Wait, next: Chain<R, C>, seen: u64) {
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let not_begun = {
            let mut queue = inner.queue.lock();
            // As for requests that wait for a lock.
            if queue.stopping && !self.begun {
                Some(ParkedRequest { next, ticket: self })
            } else {
                self.parked = true;
                queue.parked.insert(number, ParkedRequest { next, ticket: self });
                None
            }
        };
        if not_begun.is_some() {
            return;
        }
        let (waking, context) = (Arc::clone(&inner), &inner.context);
        let is_taken = || context.is_taken(&wait, seen);
        inner.parking.park(
            Arrival(number),
            wait.clone(),
            is_taken,
            |wait| !context.is_taken(wait, 0),
            move || waking.woken(number),
        );
    }
}

impl<R: Send + 'static, C: Context> Drop for Ticket<R, C> {
    fn drop(&mut self) {
        if let Some(on_failure) = self.inner.unanswered(self.number) {
            log::info!("{}: the request is cancelled, because the daemon is stopping", self.label);
            self.inner.record(Vec::new(), failed(&self.label, on_failure, Failure::Stopping));
        }
        self.leave_parking();
        self.inner.ended(self.number);
    }
}

type PartResult = Option<Box<dyn Any + Send>>;

/// Parts of one request that run in parallel.
struct Gathered<R: Send + 'static, C: Context> {
    results: Vec<PartResult>,
    left: usize,
    join: JoinStep<R, C>,
    ticket: Ticket<R, C>,
}

impl<R: Send + 'static, C: Context> Gathered<R, C> {
    /// Stores a result. If it is the last one, takes everything out, so that the caller can
    /// continue.
    fn put(gathered: &mut Option<Self>, place: usize, result: PartResult) -> Option<Self> {
        let parts = gathered.as_mut()?;
        parts.results[place] = result;
        parts.left -= 1;
        if parts.left == 0 { gathered.take() } else { None }
    }
}
