//! Runs chains of steps over the lock and the workers, and sends their changes to the tree writer.
//!
//! This module must never know what a chain is for, what a pool is beyond
//! [`PoolEntry`](super::table::PoolEntry), or who receives an outcome and how.
//!
//! # The promises
//!
//! - *No thread waits.* A request waits for a lock as an entry in the lock's queue, for a claim as
//!   an entry in the list of parked requests, for links as an entry in the list of one thread
//!   ([`Links`]), for a worker as a job. So waiting requests occupy no worker, however many there
//!   are.
//! - *A hang blocks its own share only.* Each step runs as a job of a share: what the request is
//!   about, usually a pool (`threads::workers`). Brief steps never wait for slow ones.
//! - *Order of arrival.* A request has one number for life. By that number it waits for a lock, for
//!   a claim and for a worker. So a request that has begun goes before later arrivals.
//! - *Commit order.* The changes of a step go to the tree writer while the step's grant is still
//!   held, in one record with the reply if it is the last step. The change to the stopped pools is
//!   taken from the engine and sent under one mutex: if another step has taken the change, that
//!   step has sent it. So a reply never overtakes the change that it is about.
//! - *One answer.* Each request is answered once: by its chain, or by its `on_failure` if a step
//!   panics or the daemon stops first. `on_failure` is in the list of requests, and the thread that
//!   takes it out answers. A request that is dropped anywhere answers in its destructor.
//! - *Whole requests.* A request that has run a step runs to its end, also when the daemon stops:
//!   the request may be between the step that reserves and the one that commits. A stop answers all
//!   others at once, wherever they wait. [`Dispatcher::close`] answers the requests that have not
//!   ended when the time is up.
//! - *No lost wake-up.* A request that finds something claimed waits for that claim in
//!   `threads::parking`, which says why no wake-up gets lost and in which order requests are woken.
//!   The thread that gives a claim back wakes the next request at once, in the middle of its own
//!   step; the wake-up only makes the request a job of a worker.
//!
//! Order of the mutexes: first `records`, then the mutex of the parking, then those inside the
//! engine. `queue` is a leaf. No code of a request runs, and no request is dropped, under `queue`.

mod context;
#[cfg(test)]
mod tests;
mod ticket;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use threads::{
    lock::{self, Lock},
    parking::{Arrival, Parking},
    workers::{self, Bounds, Class, Limits},
};

pub use self::context::{Chain, Context};
use self::{context::GrantedStep, ticket::Ticket};
use super::links::Links;
use crate::{
    base::{ids::PoolUuid, name::Name},
    engine::{
        Engine,
        request::{Share, Wait},
    },
    service::{Failure, OnFailure},
    view::{Change, Update},
};

/// The threads that run steps. The share `None` is for steps that concern no pool or device.
pub type StepWorkers = workers::Workers<Option<Share>>;

/// How many steps run at once. Steps under a lock are brief steps too, so a device that hangs can
/// block steps of both classes, up to the bounds of its share.
///
/// Eight brief steps keep two processors and their disks busy. Sixteen slow steps are sixteen
/// formats or programs of different pools, at most eight of them of one pool. Beyond that each
/// share can run one step, until 64 hang.
pub const LIMITS: Limits = Limits {
    kept: 8,
    brief: Bounds { shared: 8, per_share: 4, most: 64 },
    slow: Bounds { shared: 16, per_share: 8, most: 64 },
};

/// A request to run.
pub struct Request<R, C: Context = Engine> {
    /// The caller and the operation, for the log.
    pub label: String,
    /// The steps.
    pub chain: Chain<R, C>,
    /// The answer if the chain does not complete.
    pub on_failure: OnFailure<R>,
}

/// Runs requests. Clones are the same dispatcher.
pub struct Dispatcher<R: Send + 'static, C: Context = Engine> {
    inner: Arc<DispatcherCore<R, C>>,
}

impl<R: Send + 'static, C: Context> Clone for Dispatcher<R, C> {
    fn clone(&self) -> Self {
        Dispatcher { inner: Arc::clone(&self.inner) }
    }
}

/// Sees all changes in commit order, before the tree writer does. The observer must return quickly.
pub type Observer = Box<dyn Fn(&[Change]) + Send + Sync>;

struct DispatcherCore<R: Send + 'static, C: Context> {
    context: Arc<C>,
    lock: Lock<PoolUuid, Name, C::Pool>,
    parking: Parking<Wait>,
    workers: StepWorkers,
    links: Links,
    records: Mutex<Records<R>>,
    queue: Mutex<RequestLists<R, C>>,
}

/// The channel to the tree writer. Its mutex is held from taking a change from the engine until it
/// is sent, and during a step with the whole table, so that the changes of such a step to running
/// and stopped pools are in one record.
struct Records<R> {
    /// Unbounded: a worker that holds a grant must not wait for the bus. The number of admitted
    /// requests bounds the length. `None`: closed.
    updates: Option<Sender<Update<R>>>,
    observer: Observer,
}

struct RequestLists<R: Send + 'static, C: Context> {
    stopping: bool,
    /// Numbers the requests in the order of arrival.
    arrivals: u64,
    /// All requests that have not ended, as many as the bus admits.
    live: BTreeMap<u64, LiveRequest<R>>,
    /// Requests that wait for a lock. The lock knows only their numbers, so a stop can remove them.
    waiting: BTreeMap<u64, LockWaiter<R, C>>,
    /// Requests that wait for a claim. The parking knows only their numbers, too.
    parked: BTreeMap<u64, ParkedRequest<R, C>>,
    /// Requests that wait for a worker. The workers know only their numbers, too.
    ready: BTreeMap<u64, ReadyRequest<R, C>>,
    /// Requests that found the workers closed. They are dropped where no mutex is held.
    late: Vec<ReadyRequest<R, C>>,
    /// Dropped when the daemon stops and no request is left.
    open: Option<Sender<Infallible>>,
    over: Receiver<Infallible>,
}

/// A request that has not ended.
struct LiveRequest<R> {
    label: Arc<str>,
    /// `None`: the request has been answered.
    on_failure: Option<OnFailure<R>>,
}

// In the next three types the ticket comes last: fields are dropped in order, and the claims of a
// request must be given back before the request counts as ended.
struct LockWaiter<R: Send + 'static, C: Context> {
    /// The id in the lock's queue, once it is known.
    asked: Option<lock::RequestId>,
    step: GrantedStep<R, C>,
    ticket: Ticket<R, C>,
}

struct ParkedRequest<R: Send + 'static, C: Context> {
    next: Chain<R, C>,
    ticket: Ticket<R, C>,
}

struct ReadyRequest<R: Send + 'static, C: Context> {
    step: Box<dyn FnOnce(Ticket<R, C>) + Send>,
    ticket: Ticket<R, C>,
}

impl<R: Send + 'static, C: Context> Dispatcher<R, C> {
    /// A dispatcher with an empty table of pools. It sends records to `updates` after `observer`
    /// has seen their changes. A thread must run `links`.
    pub fn new(
        context: Arc<C>,
        workers: StepWorkers,
        links: Links,
        updates: Sender<Update<R>>,
        observer: Observer,
    ) -> Self {
        // The channel carries no message.
        let (open, over) = crossbeam_channel::bounded(0);
        let queue = RequestLists {
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
        Dispatcher { inner: Arc::new(DispatcherCore { context, lock, parking, workers, links, records, queue }) }
    }

    /// Starts a request and returns at once. After [`Dispatcher::stop`] the request is answered
    /// instead.
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
                let live = LiveRequest { label: Arc::clone(&label), on_failure: Some(request.on_failure) };
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
                log::info!("{label}: the request is refused, because the daemon is stopping");
                inner.record(Vec::new(), failed(&label, on_failure, Failure::Stopping));
            }
        }
        inner.drop_late();
    }

    /// Refuses new requests and answers those that wait and have not begun. The others run to their
    /// end and need the workers until then. The returned channel is disconnected when no request is
    /// left.
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
        // The removed requests no longer block others. A request that is being granted right now is
        // not found, and its grant goes to the next request.
        for id in waiting.values().filter_map(|waiting| waiting.asked) {
            inner.lock.cancel(id);
        }
        // Each request answers when it is dropped, outside the mutex. The parking and the workers
        // still have the numbers but find no request.
        drop((waiting, parked, ready));
        over
    }

    /// Cancels formats and new pools that have not begun: their requests undo their changes and are
    /// refused.
    pub fn hurry(&self) {
        self.inner.context.hurry();
    }

    /// Ends the workers, and the tree writer once it has processed its queue. Call it when the
    /// channel of [`Dispatcher::stop`] is disconnected. Requests that still run are answered here
    /// without an outcome, and their later changes are not published.
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
            log::error!("{label}: the request has not ended when the daemon exits; its outcome is unknown");
            inner.record(Vec::new(), failed(&label, on_failure, Failure::Unfinished));
        }
        inner.records.lock().updates = None;
    }

    /// Labels of the requests that have not ended, in the order of arrival.
    pub fn unfinished(&self) -> Vec<String> {
        self.inner.queue.lock().live.values().map(|live| live.label.to_string()).collect()
    }

    /// Lets a worker pass the mutexes that every request passes, then call `then`. It waits for no
    /// step of any request, so a step that hangs on a device does not delay it.
    pub fn pass(&self, then: Box<dyn FnOnce() + Send>) {
        let inner = Arc::clone(&self.inner);
        let job = Box::new(move || {
            drop(inner.lock.observe());
            drop(inner.queue.lock());
            then();
        });
        // Refused if the daemon stops; then no caller waits for `then`.
        drop(self.inner.workers.submit(Class::Background, 0, job));
    }

    /// The holders and waiters of the pool locks.
    pub fn observe(&self) -> lock::Observation {
        self.inner.lock.observe()
    }
}

impl<R: Send + 'static, C: Context> DispatcherCore<R, C> {
    /// Sends the changes of a step and the reply, if there are any.
    fn record(&self, changes: Vec<Change>, reply: Option<R>) {
        self.records.lock().send(&*self.context, changes, reply);
    }

    /// Continues a parked request. The caller may be in the middle of a step and hold any mutex but
    /// `queue`.
    fn woken(&self, number: u64) {
        let found = self.queue.lock().parked.remove(&number);
        match found {
            Some(ParkedRequest { next, ticket }) => ticket.run(Class::Brief(None), move |ticket| {
                let seen = ticket.inner.context.claims_given_back();
                ticket.go_on(next, seen);
            }),
            // A stop has answered the request, possibly before it was parked. The next request gets
            // the turn.
            None => drop(self.parking.leave(Arrival(number), |wait| !self.context.is_taken(wait, 0))),
        }
    }

    /// Runs a request when a worker is free for it.
    fn run_ready(&self, number: u64) {
        let found = self.queue.lock().ready.remove(&number);
        // `None`: a stop has answered the request.
        if let Some(ReadyRequest { step, ticket }) = found {
            log::trace!("request {number} runs a step");
            step(ticket);
        }
    }

    /// Answers requests that came too late for a worker. A grant that such a request holds goes to
    /// the next request, which may then be too late as well.
    fn drop_late(&self) {
        loop {
            let late = std::mem::take(&mut self.queue.lock().late);
            if late.is_empty() {
                return;
            }
            drop(late);
        }
    }

    /// Takes the failure answer of a request, if it has not been answered. The caller then answers.
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
            log::debug!("a change is not published, because the tree writer has ended");
        }
    }
}

impl<R: Send + 'static, C: Context> RequestLists<R, C> {
    fn close_if_over(&mut self) {
        if self.stopping && self.live.is_empty() {
            self.open = None;
        }
    }
}

/// Takes out the requests that have not run a step.
fn take_new<T>(requests: &mut BTreeMap<u64, T>, begun: impl Fn(&T) -> bool) -> BTreeMap<u64, T> {
    let (begun, new) = std::mem::take(requests).into_iter().partition(|(_, request)| begun(request));
    *requests = begun;
    new
}

/// The answer of a request that does not complete. `on_failure` is the caller's code, so it may
/// panic too.
fn failed<R>(label: &str, on_failure: OnFailure<R>, failure: Failure) -> Option<R> {
    caught(|| on_failure(failure)).unwrap_or_else(|text| {
        log::error!("{label}: a panic while making the failure answer: {text}; please report it");
        None
    })
}

/// Runs code that may panic and returns the text of the panic. The data that the code could change
/// stays safe to use: a pool is restricted, everything else of a request is dropped.
fn caught<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or("no text", |text| text).to_owned(),
    })
}
