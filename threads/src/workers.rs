//! Threads that run jobs: as many as needed, up to a stated number.
//!
//! Must never know: what a job is about, and which lock grants it carries.
//!
//! # The promise
//!
//! A job is *brief*, *slow* or in the *background*. Brief and slow jobs belong to a *share*: the
//! part of the program's work that the job blocks if it hangs. Each class has its [`Bounds`], so
//! that
//!
//! - brief jobs never wait for slow ones, nor slow ones for brief ones;
//! - a share whose jobs hang blocks only itself: every other share can run at least one job of each
//!   class, until [`Bounds::most`] shares hang;
//! - within a class and share, jobs start by rank, and by submission within a rank.
//!
//! A background job has a dedicated thread: it waits for no other job, and no job waits for it.
//!
//! Threads are named `worker-1`, `worker-2` …. A fixed number of them is started at once and kept.
//! More are started when a job may run and all threads are busy, and end when they have nothing to
//! do. A thread survives a panic of its job.
//!
//! ```
//! use std::time::Duration;
//! use threads::{group::Group, workers::{Bounds, Class, Limits, Workers}};
//!
//! let group = Group::new(&["worker-*"]);
//! let bounds = Bounds { shared: 2, per_share: 1, most: 8 };
//! let workers = Workers::start(&group, Limits { kept: 2, brief: bounds, slow: bounds }).expect("threads can be started");
//! let (done, results) = crossbeam_channel::unbounded();
//! assert!(workers.submit(Class::Brief("disk"), 1, Box::new(move || drop(done.send(6 * 7)))).is_ok());
//! assert_eq!(results.recv(), Ok(42));
//! workers.close();
//! group.join(&["worker-*"], Duration::from_secs(60)).expect("nothing is left to do");
//! ```

use std::{
    collections::{BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    group::{Group, SpawnError, panic_text},
    primitives::{Condvar, Mutex, MutexGuard, PlainArc, wait},
};

mod admission;
#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;

use admission::Admission;
pub use admission::Bounds;

/// The function a worker runs. It owns everything it needs, for instance the guard of a lock, which
/// ends with it.
pub type JobFn = Box<dyn FnOnce() + Send>;

/// How long a job may take, and which share it may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class<K> {
    /// Too short for a user to notice.
    Brief(K),
    /// Formats, checks, waits for other programs or the network.
    Slow(K),
    /// May take hours. Runs on a dedicated thread.
    Background,
}

/// The number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Threads that are kept when idle.
    pub kept: usize,
    /// Bounds of brief jobs.
    pub brief: Bounds,
    /// Bounds of slow jobs.
    pub slow: Bounds,
}

/// A type that can be a share. Implemented for every type that qualifies.
pub trait ShareKey: Ord + Clone + Send + 'static {}

impl<X: Ord + Clone + Send + 'static> ShareKey for X {}

/// The worker pool. Clones are the same pool; dropping the last one closes it.
pub struct Workers<K: ShareKey> {
    handle: PlainArc<Handle<K>>,
}

impl<K: ShareKey> Clone for Workers<K> {
    fn clone(&self) -> Self {
        Self { handle: PlainArc::clone(&self.handle) }
    }
}

/// Ends the threads when no handle is left that could submit. The threads own the board, not this
/// handle.
struct Handle<K: ShareKey> {
    board: PlainArc<Board<K>>,
}

/// The jobs, and the place where idle threads wait for them.
struct Board<K> {
    jobs: Mutex<JobQueues<K>>,
    /// Notified when a job may run, and when the pool is closed.
    changed: Condvar,
    group: Group,
    kept: usize,
}

/// Unbounded, since a job may submit the next step of its own work: with a bound, workers could
/// wait for each other. The submitter bounds the number of jobs: one for each admitted request.
struct JobQueues<K> {
    brief: Admission<K, JobFn>,
    slow: Admission<K, JobFn>,
    /// Jobs that may run, each counted as running. Never more than idle threads, unless no more
    /// threads could be started.
    ready: VecDeque<(Class<K>, JobFn)>,
    /// Threads that run no job: waiting, notified, or about to start.
    idle: usize,
    /// The numbers in the names of all threads.
    threads: BTreeSet<usize>,
    submitted: u64,
    closed: bool,
}

impl<K: ShareKey> Workers<K> {
    /// Starts the threads that are kept.
    ///
    /// # Errors
    /// A thread cannot be started. Those already started end again.
    pub fn start(group: &Group, limits: Limits) -> Result<Self, SpawnError> {
        let kept = limits.kept.max(1);
        let jobs = JobQueues {
            brief: Admission::new(limits.brief),
            slow: Admission::new(limits.slow),
            ready: VecDeque::new(),
            idle: 0,
            threads: BTreeSet::new(),
            submitted: 0,
            closed: false,
        };
        let board =
            PlainArc::new(Board { jobs: Mutex::new(jobs), changed: Condvar::new(), group: group.clone(), kept });
        // From here on an early return drops the handle, which closes the board and ends the
        // threads.
        let workers = Workers { handle: PlainArc::new(Handle { board: PlainArc::clone(&board) }) };
        let mut jobs = board.jobs.lock();
        for _ in 0..kept {
            board.start_thread(&mut jobs)?;
        }
        drop(jobs);
        Ok(workers)
    }

    /// Queues a job. Jobs of one class and share start by `rank`.
    ///
    /// # Errors
    /// The pool is closed; the job is returned.
    pub fn submit(&self, class: Class<K>, rank: u64, job: JobFn) -> Result<(), JobFn> {
        let board = &self.handle.board;
        let mut jobs = board.jobs.lock();
        if jobs.closed {
            return Err(job);
        }
        jobs.submitted += 1;
        let place = (rank, jobs.submitted);
        match class {
            Class::Brief(share) => jobs.brief.add(share, place, job),
            Class::Slow(share) => jobs.slow.add(share, place, job),
            Class::Background => jobs.ready.push_back((Class::Background, job)),
        }
        board.make_ready(&mut jobs);
        Ok(())
    }

    /// Refuses new jobs. The threads run the queued ones and then end.
    pub fn close(&self) {
        self.handle.board.close();
    }
}

impl<K: ShareKey> Drop for Handle<K> {
    fn drop(&mut self) {
        self.board.close();
    }
}

impl<K: ShareKey> Board<K> {
    fn close(&self) {
        self.jobs.lock().closed = true;
        // From here on `submit` refuses. Threads that end a job make the remaining ones ready.
        // Every thread has to see the change, so all are notified; no notification is lost, for the
        // reason given in `make_ready`.
        self.changed.notify_all();
    }

    /// Hands all jobs that may run to idle threads, or starts threads for them.
    fn make_ready(self: &PlainArc<Self>, jobs: &mut MutexGuard<'_, JobQueues<K>>) {
        while let Some((share, job)) = jobs.brief.admit() {
            jobs.ready.push_back((Class::Brief(share), job));
        }
        while let Some((share, job)) = jobs.slow.admit() {
            jobs.ready.push_back((Class::Slow(share), job));
        }
        while jobs.ready.len() > jobs.idle {
            if let Err(error) = self.start_thread(jobs) {
                log::warn!("a job waits for a busy thread: {error}");
                break;
            }
        }
        // No notification is lost: a thread looks for ready jobs and goes to sleep under one lock
        // of the mutex, which is held here. Each ready job has an idle thread; notifying a thread
        // that is awake does no harm.
        for _ in 0..jobs.ready.len() {
            self.changed.notify_one();
        }
    }

    /// Starts a thread, which is idle at first.
    fn start_thread(self: &PlainArc<Self>, jobs: &mut MutexGuard<'_, JobQueues<K>>) -> Result<(), SpawnError> {
        let number = (1..).find(|number| !jobs.threads.contains(number)).unwrap_or_default();
        let board = PlainArc::clone(self);
        // The number is chosen under the mutex, so that no two threads get the same name. The new
        // thread waits for the mutex.
        self.group.spawn_transient(&format!("worker-{number}"), move || board.work(number))?;
        jobs.threads.insert(number);
        jobs.idle += 1;
        Ok(())
    }

    /// The main loop of a thread.
    fn work(self: &PlainArc<Self>, number: usize) {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some((class, job)) = jobs.ready.pop_front() {
                jobs.idle -= 1;
                drop(jobs);
                contained(job);
                jobs = self.jobs.lock();
                jobs.idle += 1;
                match class {
                    Class::Brief(share) => jobs.brief.ended(&share),
                    Class::Slow(share) => jobs.slow.ended(&share),
                    Class::Background => {}
                }
                self.make_ready(&mut jobs);
            } else if jobs.closed || jobs.threads.len() > self.kept {
                jobs.idle -= 1;
                jobs.threads.remove(&number);
                return;
            } else {
                jobs = wait(&self.changed, jobs);
            }
        }
    }
}

/// Runs a job. The job is expected to catch its own panics, because it knows what to answer. This
/// catch protects the pool: a panic must not cost other jobs their thread. After the panic no other
/// data is affected, since the job uses only what it owns.
fn contained(job: JobFn) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        log::error!("a job panicked: {}; please report it", panic_text(panic.as_ref()));
    }
}
