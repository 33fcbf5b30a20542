//! Runs chains of steps over the lock and the workers, and hands what they change to the tree writer.
//!
//! Must never know: what a chain is for, what a pool is beyond [`PoolEntry`], who is told of an outcome and how.
//!
//! # The promises
//!
//! - *No thread waits.* A request waits for a lock as an entry in the lock's queue, for a claim as an entry in the list of
//!   the parked, for links as an entry of one thread's list ([`Links`]), for a worker as a job. So any number of waiting
//!   requests leaves every worker free.
//! - *What hangs holds up its own.* Each step is run as a job of a share: what the request is about, a pool as a rule
//!   (`threads::workers`). Brief steps never wait for slow ones.
//! - *In the order of arrival.* A request has one number for life, and by that number it waits for a lock, for a claim and for a
//!   worker. So what has been begun goes before what has come since.
//! - *Commit order.* What a step changed goes to the tree writer while the step's grant is still held, in one record with
//!   the reply if it is the last step. What is known of pools that do not run is taken from the engine and sent under one
//!   mutex, so whoever finds it taken by another finds it sent, too: a reply never passes the change it is about.
//! - *One answer.* Each request is answered once: by its chain, or by its `on_failure` when a step panics or the daemon
//!   stops first. What answers stands in the list of requests, and whoever takes it out answers. A request that is dropped
//!   anywhere answers as it goes.
//! - *Whole requests.* A request of which a step has run is run to its end, also when the daemon stops: it may be between
//!   the step that reserves and the one that commits. The others are answered by the stop at once, wherever they wait.
//!   Those that have not come to their end when its time is up are answered by [`Dispatcher::close`].
//! - *No lost wake-up.* A request that finds something claimed waits for just that in `threads::parking`, which says why no
//!   wake-up gets lost and in which order requests are woken. Whoever gives a claim back wakes at once, in the middle of its
//!   step; all that happens there is that the woken request becomes a job of a worker.
//!
//! Order of the mutexes: `records` before that of the parking, and that before those inside the engine. `queue` is a leaf.
//! Nothing of a request is run or dropped under `queue`.

use std::{
    any::Any,
    borrow::Cow,
    collections::BTreeMap,
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Mutex, MutexGuard};
use threads::{
    lock::{self, Guard, Lock},
    parking::{Arrival, Parking},
    workers::{self, Bounds, Class, Limits},
};

use super::links::Links;
use super::table::{PoolEntry, ReadTable, WriteTable, target};
use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    bus::job::Failure,
    engine::{
        Engine,
        pool::Pool,
        request::{Access, ActStep, Granted, Join, LinkedStep, Mode, Next, Pace, Part, Share, UnderStep, Wait},
    },
    platform::PendingLinks,
    view::{self, Change, Update},
};

/// Threads that run steps. A share of `None` is that of steps which are about nothing in particular.
pub type Workers = workers::Workers<Option<Share>>;

/// How many steps run at once. Brief steps are those under a lock as well, so a device that hangs can hold up one of each class and
/// more: as many as its share may have.
///
/// Eight brief ones keep two processors busy, and disks side by side. Sixteen slow ones are sixteen formats or programs of
/// different pools, eight of them of one pool. Beyond that each share has one of its own, until 64 hang.
pub const LIMITS: Limits = Limits {
    kept: 8,
    brief: Bounds { shared: 8, per_share: 4, most: 64 },
    slow: Bounds { shared: 16, per_share: 8, most: 64 },
};

/// What running chains asks of what all their steps share.
pub trait Context: Send + Sync + 'static {
    /// What the lock guards.
    type Pool: PoolEntry;
    /// Counts how often a claim has been given back.
    fn claims_given_back(&self) -> u64;
    /// Whether what a request waits for has not come about yet, since the count of claims given back was `since`.
    fn is_taken(&self, wait: &Wait, since: u64) -> bool;
    /// Has `watcher` told of all that is given back, after it is free, by whoever gives it back.
    fn watch_claims(&self, watcher: Box<dyn Fn(Vec<Wait>) + Send + Sync>);
    /// The pools that do not run, if that changed since this was last called.
    fn take_stopped_change(&self) -> Option<Arc<view::Stopped>>;
    /// Lets work of hours stop as soon as it can.
    fn end(&self);
    /// Lets requests that have begun take back what they have done instead of going on with what takes long.
    fn hurry(&self);
    /// Work that steps have begun and nobody waits for, with its labels.
    fn take_background<R: Send + 'static>(&self) -> Vec<(String, Chain<R, Self>)>
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

    fn take_stopped_change(&self) -> Option<Arc<view::Stopped>> {
        Engine::take_stopped_change(self)
    }

    fn end(&self) {
        Engine::end(self);
    }

    fn hurry(&self) {
        Engine::hurry(self);
    }

    fn take_background<R: Send + 'static>(&self) -> Vec<(String, Chain<R, Self>)> {
        let begun = Engine::take_background(self).into_iter();
        begun.map(|(label, chain)| (label, chain.map(|()| None))).collect()
    }
}

/// A chain of steps over a context and its pools. It ends with the answer to the caller, if there is one.
pub type Chain<R, C> = Next<Option<R>, C, <C as Context>::Pool>;

/// A step of such a chain under a lock.
type Step<R, C> = UnderStep<Option<R>, C, <C as Context>::Pool>;
/// A step of such a chain without one.
type FreeStep<R, C> = ActStep<Option<R>, C, <C as Context>::Pool>;
/// What follows when links are there.
type AfterLinks<R, C> = LinkedStep<Option<R>, C, <C as Context>::Pool>;
/// What follows the parts of such a chain that ran side by side.
type JoinStep<R, C> = Join<Option<R>, C, <C as Context>::Pool>;

/// Makes the answer of a request that does not come to its end.
pub type OnFailure<R> = Box<dyn FnOnce(Failure) -> Option<R> + Send>;

/// Something to be run.
pub struct Request<R, C: Context = Engine> {
    /// Who asks for what, for the log.
    pub label: String,
    /// What is to be done.
    pub chain: Chain<R, C>,
    /// The answer if the chain does not come to its end.
    pub on_failure: OnFailure<R>,
}

/// Runs requests. Clones are the same dispatcher.
pub struct Dispatcher<R: Send + 'static, C: Context = Engine> {
    inner: Arc<Inner<R, C>>,
}

impl<R: Send + 'static, C: Context> Clone for Dispatcher<R, C> {
    fn clone(&self) -> Self {
        Dispatcher { inner: Arc::clone(&self.inner) }
    }
}

/// Sees all changes in commit order, before the tree writer does. It must be quick.
pub type Observer = Box<dyn Fn(&[Change]) + Send + Sync>;

struct Inner<R: Send + 'static, C: Context> {
    context: Arc<C>,
    lock: Lock<PoolUuid, Name, C::Pool>,
    parking: Parking<Wait>,
    workers: Workers,
    links: Links,
    records: Mutex<Records<R>>,
    queue: Mutex<Queue<R, C>>,
}

/// The way to the tree writer. Its mutex is held from taking a change from the engine to its sending, and over a step that
/// has the whole table, so that what such a step does to pools and to what is known of them gets into one record.
struct Records<R> {
    /// Unbounded: a worker that holds a grant must not wait for the bus. What is in it is bounded by the requests let in.
    /// None: closed.
    updates: Option<Sender<Update<R>>>,
    observer: Observer,
}

struct Queue<R: Send + 'static, C: Context> {
    stopping: bool,
    /// Numbers the requests in the order of their arrival.
    arrivals: u64,
    /// All requests that have not ended. As many as the bus lets in.
    live: BTreeMap<u64, Live<R>>,
    /// Those that wait for a lock. The lock has only their number, so a stop can take them back.
    waiting: BTreeMap<u64, Waiting<R, C>>,
    /// Those that wait for a claim to be given back. The parking has only their number, too.
    parked: BTreeMap<u64, Parked<R, C>>,
    /// Those that wait for a worker. The workers have only their number, too.
    ready: BTreeMap<u64, Ready<R, C>>,
    /// Those that found the workers closed. They are dropped where no mutex is held.
    late: Vec<Ready<R, C>>,
    /// Dropped when a stop has been asked for and no request is left.
    open: Option<Sender<Infallible>>,
    over: Receiver<Infallible>,
}

/// A request that has not ended.
struct Live<R> {
    label: Arc<str>,
    /// None: it has been answered.
    on_failure: Option<OnFailure<R>>,
}

// In all of these the ticket comes last: fields are dropped in order, and when a request counts as over its claims must have
// been given back.
struct Waiting<R: Send + 'static, C: Context> {
    /// In the lock's queue, when it is known.
    asked: Option<lock::RequestId>,
    step: Step<R, C>,
    ticket: Ticket<R, C>,
}

struct Parked<R: Send + 'static, C: Context> {
    next: Chain<R, C>,
    ticket: Ticket<R, C>,
}

struct Ready<R: Send + 'static, C: Context> {
    step: Box<dyn FnOnce(Ticket<R, C>) + Send>,
    ticket: Ticket<R, C>,
}

/// A request on its way. Whoever has it has the duty to go on with it; dropping it answers that the daemon stops.
struct Ticket<R: Send + 'static, C: Context> {
    inner: Arc<Inner<R, C>>,
    number: u64,
    label: Arc<str>,
    /// A step has run that did not park.
    begun: bool,
    /// What it has been about so far.
    share: Option<Share>,
    /// It has parked, and has not gone on since: the parking knows it.
    parked: bool,
}

/// What became of a step: what comes next, or the text of its panic.
type Outcome<R, C> = Result<Chain<R, C>, String>;

impl<R: Send + 'static, C: Context> Dispatcher<R, C> {
    /// A dispatcher with an empty table of pools. Records go to `updates`, after `observer` has seen their changes. A thread must
    /// run `links`.
    pub fn new(
        context: Arc<C>,
        workers: Workers,
        links: Links,
        updates: Sender<Update<R>>,
        observer: Observer,
    ) -> Self {
        // Nothing is ever sent on it.
        let (open, over) = crossbeam_channel::bounded(0);
        let queue = Queue {
            stopping: false,
            arrivals: 0,
            live: BTreeMap::new(),
            waiting: BTreeMap::new(),
            parked: BTreeMap::new(),
            ready: BTreeMap::new(),
            late: Vec::new(),
            open: Some(open),
            over,
        };
        let records = Records { updates: Some(updates), observer };
        let (records, queue) = (Mutex::new(records), Mutex::new(queue));
        let (lock, parking) = (Lock::new(), Parking::new());
        let told = parking.clone();
        context.watch_claims(Box::new(move |open| told.opened(open)));
        Dispatcher { inner: Arc::new(Inner { context, lock, parking, workers, links, records, queue }) }
    }

    /// Begins with a request and returns at once. After [`Dispatcher::stop`] it is answered instead.
    pub fn submit(&self, request: Request<R, C>) {
        let inner = &self.inner;
        let label: Arc<str> = request.label.into();
        let seen = inner.context.claims_given_back();
        let number = {
            let mut queue = inner.queue.lock();
            if queue.stopping {
                Err(request.on_failure)
            } else {
                queue.arrivals += 1;
                let number = queue.arrivals;
                let live = Live { label: Arc::clone(&label), on_failure: Some(request.on_failure) };
                queue.live.insert(number, live);
                Ok(number)
            }
        };
        match number {
            Ok(number) => {
                log::debug!("request {number}: {label}");
                let inner = Arc::clone(inner);
                Ticket { inner, number, label, begun: false, share: None, parked: false }.go_on(request.chain, seen);
            }
            Err(on_failure) => {
                log::info!("{label}: refused, since the daemon stops");
                inner.record(Vec::new(), failed(&label, on_failure, Failure::Stopping));
            }
        }
        inner.drop_late();
    }

    /// Takes no more requests; those that wait and have not begun are answered. The others go on to their end, for
    /// which the workers must stay: the channel given back is disconnected when no request is left.
    pub fn stop(&self) -> Receiver<Infallible> {
        let inner = &self.inner;
        inner.context.end();
        let (waiting, parked, ready, over) = {
            let mut queue = inner.queue.lock();
            queue.stopping = true;
            queue.close_if_over();
            let waiting = take_new(&mut queue.waiting, |waiting| waiting.ticket.begun);
            let parked = take_new(&mut queue.parked, |parked| parked.ticket.begun);
            let ready = take_new(&mut queue.ready, |ready| ready.ticket.begun);
            (waiting, parked, ready, queue.over.clone())
        };
        // They stand in nobody's way any more. Those that are being granted find nobody, and the grant goes to the next.
        for id in waiting.values().filter_map(|waiting| waiting.asked) {
            inner.lock.cancel(id);
        }
        // Each answers as it is dropped, outside the mutex. Parking and workers still have their numbers, and find nobody.
        drop((waiting, parked, ready));
        over
    }

    /// Waits no longer for what takes long: of the requests that have begun, those that have it still before them take back
    /// what they have done, and are refused.
    pub fn hurry(&self) {
        self.inner.context.hurry();
    }

    /// The very end: lets the workers go, and the tree writer when it has worked off what there is. To be called when the
    /// channel of [`Dispatcher::stop`] is disconnected. Requests that are still under way are answered here, without an
    /// outcome, and what they do after that is not published.
    pub fn close(&self) {
        let inner = &self.inner;
        inner.links.close();
        inner.workers.close();
        let unanswered: Vec<_> = {
            let mut queue = inner.queue.lock();
            let live = queue.live.values_mut();
            live.filter_map(|live| Some((Arc::clone(&live.label), live.on_failure.take()?))).collect()
        };
        for (label, on_failure) in unanswered {
            log::error!("{label}: not at its end when the daemon ends");
            inner.record(Vec::new(), failed(&label, on_failure, Failure::Unfinished));
        }
        inner.records.lock().updates = None;
    }

    /// Labels of the requests that have not ended, in the order of arrival.
    pub fn unfinished(&self) -> Vec<String> {
        self.inner.queue.lock().live.values().map(|live| live.label.to_string()).collect()
    }

    /// Who holds and who waits for which pool.
    pub fn observe(&self) -> lock::Observation {
        self.inner.lock.observe()
    }
}

impl<R: Send + 'static, C: Context> Inner<R, C> {
    /// Sends a step's changes and the reply, if there is anything to send.
    fn record(&self, changes: Vec<Change>, reply: Option<R>) {
        self.records.lock().send(&*self.context, changes, reply);
    }

    /// Goes on with a parked request. Whoever gave the claim back may be in the middle of a step, and hold anything but `queue`.
    fn woken(&self, number: u64) {
        let found = self.queue.lock().parked.remove(&number);
        match found {
            Some(Parked { next, ticket }) => ticket.run(Class::Brief(None), move |ticket| {
                let seen = ticket.inner.context.claims_given_back();
                ticket.go_on(next, seen);
            }),
            // A stop has answered the request, maybe before the parking came to know it. The next one has the turn.
            None => drop(self.parking.leave(Arrival(number), |wait| !self.context.is_taken(wait, 0))),
        }
    }

    /// Runs a request whose worker has come.
    fn run_ready(&self, number: u64) {
        let found = self.queue.lock().ready.remove(&number);
        // None: a stop has answered the request.
        if let Some(Ready { step, ticket }) = found {
            log::trace!("request {number}: a step");
            step(ticket);
        }
    }

    /// Answers what has come too late for a worker.
    fn drop_late(&self) {
        let late = std::mem::take(&mut self.queue.lock().late);
        drop(late);
    }

    /// What answers a request that does not come to its end, if it has not been answered. Whoever takes it answers.
    fn unanswered(&self, number: u64) -> Option<OnFailure<R>> {
        self.queue.lock().live.get_mut(&number)?.on_failure.take()
    }

    fn ended(&self, number: u64) {
        let mut queue = self.queue.lock();
        queue.live.remove(&number);
        queue.close_if_over();
    }
}

impl<R> Records<R> {
    fn send<C: Context>(&self, context: &C, mut changes: Vec<Change>, reply: Option<R>) {
        changes.extend(context.take_stopped_change().map(Change::Stopped));
        if changes.is_empty() && reply.is_none() {
            return;
        }
        (self.observer)(&changes);
        let update = Update { changes, reply };
        if self.updates.as_ref().is_none_or(|updates| updates.send(update).is_err()) {
            log::debug!("a change is not published, since the tree writer has ended");
        }
    }
}

impl<R: Send + 'static, C: Context> Queue<R, C> {
    fn close_if_over(&mut self) {
        if self.stopping && self.live.is_empty() {
            self.open = None;
        }
    }
}

impl<R: Send + 'static, C: Context> Ticket<R, C> {
    /// Arranges for what the chain needs next. `seen` is the count of claims given back before the step that asks.
    fn go_on(self, next: Chain<R, C>, seen: u64) {
        match next {
            Next::Done(reply) => {
                let reply = self.inner.unanswered(self.number).and(reply);
                self.inner.record(Vec::new(), reply);
            }
            Next::Under(access, step) => self.wait_for_lock(access, step),
            Next::Act(pace, step) => self.run_free(pace, step),
            Next::Long(step) => self.run(Class::Long, |ticket| ticket.run_step(step)),
            Next::Linked(links, limit, step) => self.wait_for_links(links, limit, step),
            Next::Together(parts, join) => self.run_together(parts, join),
            Next::Parked(wait, next) => self.park(wait, *next, seen),
        }
    }

    /// Gives the request to the workers. If the daemon stops before one comes to it, and nothing of it has been done, it is
    /// answered instead.
    fn run(self, class: Class<Option<Share>>, step: impl FnOnce(Self) + Send + 'static) {
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let ready = Ready { step: Box::new(step), ticket: self };
        {
            let mut queue = inner.queue.lock();
            // As with those that wait for a lock. Not dropped here: this may be in the middle of somebody's step.
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

    /// The class of a brief step about what the request has been about so far.
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

    /// Goes on when links are there, or will not come.
    fn wait_for_links(self, links: Box<dyn PendingLinks>, limit: Duration, step: AfterLinks<R, C>) {
        let thread = self.inner.links.clone();
        let then = move |missing| {
            let (class, inner) = (self.brief(), Arc::clone(&self.inner));
            self.run(class, move |ticket| ticket.run_step(Box::new(move |context| step(context, missing))));
            inner.drop_late();
        };
        thread.wait(links, limit, Box::new(then));
    }

    fn wait_for_lock(mut self, access: Access, step: Step<R, C>) {
        if let Access::Pool(PoolRef::Uuid(pool), _) = &access {
            self.share = Some(Share::Pool(*pool));
        }
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let label = Cow::Owned(self.label.to_string());
        let not_begun = {
            let mut queue = inner.queue.lock();
            // A stop that came before this has not seen the request; one that comes later finds it in the list.
            if queue.stopping && !self.begun {
                Some(Waiting { asked: None, step, ticket: self })
            } else {
                queue.waiting.insert(number, Waiting { asked: None, step, ticket: self });
                None
            }
        };
        if not_begun.is_some() {
            return;
        }
        let access = match &access {
            Access::Pool(pool, Mode::Shared) => lock::Access::Read(target(pool)),
            Access::Pool(pool, Mode::Exclusive) => lock::Access::Write(target(pool)),
            Access::Table(Mode::Shared) => lock::Access::ReadAll,
            Access::Table(Mode::Exclusive) => lock::Access::WriteAll,
        };
        let granting = Arc::clone(&inner);
        let asked = inner.lock.submit(number, access, label, move |guard| {
            let found = granting.queue.lock().waiting.remove(&number);
            // None: a stop has answered the request. The guard is dropped, and the grant goes to the next.
            if let Some(Waiting { step, mut ticket, .. }) = found {
                // A name is known to be that of a pool only now.
                match &guard {
                    Guard::Read(pool) => ticket.share = Some(Share::Pool(*pool.key())),
                    Guard::Write(pool) => ticket.share = Some(Share::Pool(*pool.key())),
                    _ => {}
                }
                // The whole table is nobody's in particular: nothing that can hang is done with it.
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
    fn run_under(self, mut guard: Guard<PoolUuid, Name, C::Pool>, step: Step<R, C>) {
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

    /// Sends what a step changed, and only then gives its grant back and goes on.
    fn after_step(
        mut self,
        mut outcome: Outcome<R, C>,
        seen: u64,
        changes: Vec<Change>,
        records: MutexGuard<'_, Records<R>>,
        guard: Guard<PoolUuid, Name, C::Pool>,
    ) {
        let inner = Arc::clone(&self.inner);
        let reply = match &mut outcome {
            Ok(Next::Done(reply)) => inner.unanswered(self.number).and(reply.take()),
            Ok(_) => None,
            Err(text) => {
                log::error!("{}: a step panicked: {text}", self.label);
                inner.unanswered(self.number).and_then(|on_failure| failed(&self.label, on_failure, Failure::Panicked))
            }
        };
        records.send(&*inner.context, changes, reply);
        drop(records);
        drop(guard);
        for (label, chain) in inner.context.take_background() {
            Dispatcher { inner: Arc::clone(&inner) }.submit(Request { label, chain, on_failure: Box::new(|_| None) });
        }
        match outcome {
            // The request is over.
            Ok(Next::Done(_)) | Err(_) => drop(self),
            Ok(next) => {
                if !matches!(next, Next::Parked(..)) {
                    self.begun = true;
                    self.leave_parking();
                }
                self.go_on(next, seen);
            }
        }
        inner.drop_late();
    }

    /// The request has gone on since it was parked, or ends: who waits for the same may have its turn.
    fn leave_parking(&mut self) {
        if std::mem::take(&mut self.parked) {
            let inner = &self.inner;
            inner.parking.leave(Arrival(self.number), |wait| !inner.context.is_taken(wait, 0));
        }
    }

    fn after_free_step(self, outcome: Outcome<R, C>, seen: u64) {
        let inner = Arc::clone(&self.inner);
        self.after_step(outcome, seen, Vec::new(), inner.records.lock(), Guard::Absent);
    }

    /// Runs parts side by side; whoever ends the last one runs the join.
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
                    .inspect_err(|text| log::error!("{label}: one of several parts panicked: {text}"));
                let all = Gathered::put(&mut gathered.lock(), place, result.ok());
                if let Some(Gathered { results, join, ticket, .. }) = all {
                    ticket.run_join(join, results);
                }
            });
            // Refused when the workers are closed: then the request has been answered, and goes with its last part.
            drop(inner.workers.submit(class.clone(), number, job));
        }
    }

    fn run_join(self, join: JoinStep<R, C>, results: Vec<PartResult>) {
        let seen = self.inner.context.claims_given_back();
        let outcome = caught(|| join(&self.inner.context, results));
        self.after_free_step(outcome, seen);
    }

    /// Sets the chain aside until what it waits for has come about. `seen` is the count of claims given back before the step
    /// that asks for this was begun.
    fn park(mut self, wait: Wait, next: Chain<R, C>, seen: u64) {
        let (inner, number) = (Arc::clone(&self.inner), self.number);
        let not_begun = {
            let mut queue = inner.queue.lock();
            // As with those that wait for a lock.
            if queue.stopping && !self.begun {
                Some(Parked { next, ticket: self })
            } else {
                self.parked = true;
                queue.parked.insert(number, Parked { next, ticket: self });
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
            log::info!("{}: given up, since the daemon stops", self.label);
            self.inner.record(Vec::new(), failed(&self.label, on_failure, Failure::Stopping));
        }
        self.leave_parking();
        self.inner.ended(self.number);
    }
}

type PartResult = Option<Box<dyn Any + Send>>;

/// Parts of one request that run side by side.
struct Gathered<R: Send + 'static, C: Context> {
    results: Vec<PartResult>,
    left: usize,
    join: JoinStep<R, C>,
    ticket: Ticket<R, C>,
}

impl<R: Send + 'static, C: Context> Gathered<R, C> {
    /// Notes a result; if it was the last, takes everything out, to go on with it.
    fn put(gathered: &mut Option<Self>, place: usize, result: PartResult) -> Option<Self> {
        let parts = gathered.as_mut()?;
        parts.results[place] = result;
        parts.left -= 1;
        if parts.left == 0 { gathered.take() } else { None }
    }
}

/// Takes out the requests of which nothing has been done.
fn take_new<T>(requests: &mut BTreeMap<u64, T>, begun: impl Fn(&T) -> bool) -> BTreeMap<u64, T> {
    let (begun, new) = std::mem::take(requests).into_iter().partition(|(_, request)| begun(request));
    *requests = begun;
    new
}

/// The answer of a request that does not come to its end. What makes it is the caller's and may panic, too.
fn failed<R>(label: &str, on_failure: OnFailure<R>, failure: Failure) -> Option<R> {
    caught(|| on_failure(failure)).unwrap_or_else(|text| {
        log::error!("{label}: making the answer to its failure panicked: {text}");
        None
    })
}

/// Runs somebody's code and gives the text of its panic. What the code could change is safe to look at afterwards: a pool
/// is restricted, everything else of a request is dropped.
fn caught<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("no text", |text| text).to_owned(),
    })
}

#[cfg(test)]
mod tests;
