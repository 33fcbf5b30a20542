//! Threads that run jobs, as many as are needed and not more than is stated.
//!
//! Must never know: what a job is about, and which lock grants it carries.
//!
//! # The promise
//!
//! A job is *brief*, *slow* or *long*, and brief and slow ones belong to a *share*: the part of the program's work that may be
//! held up if the job hangs. Each class has its [`Bounds`], so that
//!
//! - brief jobs never wait for slow ones, nor slow ones for brief ones;
//! - a share whose jobs hang holds up nobody but itself: every other share can run at least one job of each class, until
//!   [`Bounds::most`] shares hang;
//! - within a class and share jobs start by their rank, and by submission among those of one rank.
//!
//! Long jobs wait for nobody, and nobody waits for them.
//!
//! Threads are named `worker-1`, `worker-2` …. As many as are to be kept are started at once and stay. Others are started when a job
//! may run and all are busy, and end when there is nothing for them to do. A thread outlives a panic of its job.
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

/// What a worker runs. It owns all that it needs, for instance the guard of a lock, which ends with it.
pub type Job = Box<dyn FnOnce() + Send>;

/// How long a job may take, and what it may hold up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class<K> {
    /// What people do not notice.
    Brief(K),
    /// Formats, checks, waits for other programs or the network.
    Slow(K),
    /// What may take hours.
    Long,
}

/// How many threads there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Those that stay when there is nothing to do.
    pub kept: usize,
    /// For brief jobs.
    pub brief: Bounds,
    /// For slow jobs.
    pub slow: Bounds,
}

/// What can be a share. Implemented for all that qualifies.
pub trait Share: Ord + Clone + Send + 'static {}

impl<X: Ord + Clone + Send + 'static> Share for X {}

/// The pool of workers. Clones are the same pool; it is closed when the last one is dropped.
pub struct Workers<K: Share> {
    handle: PlainArc<Handle<K>>,
}

impl<K: Share> Clone for Workers<K> {
    fn clone(&self) -> Self {
        Self { handle: PlainArc::clone(&self.handle) }
    }
}

/// Ends the threads when nobody can submit any more. The threads have the board itself, not this.
struct Handle<K: Share> {
    board: PlainArc<Board<K>>,
}

/// Where the jobs are, and where idle threads wait for them.
struct Board<K> {
    jobs: Mutex<Jobs<K>>,
    /// Notified when there is a job that may run, and at the end.
    changed: Condvar,
    group: Group,
    kept: usize,
}

/// Unbounded, since a job may submit the next step of its own work: a bound would let workers wait for each other. What is in
/// it is bounded by whoever submits: one job for each request that was let in.
struct Jobs<K> {
    brief: Admission<K, Job>,
    slow: Admission<K, Job>,
    /// Those that may run, each counted as running. Never more than idle threads, unless no more threads could be started.
    ready: VecDeque<(Class<K>, Job)>,
    /// Threads that run no job: those that wait, those that have been notified, and those that are about to begin.
    idle: usize,
    /// The numbers in the names of all threads.
    threads: BTreeSet<usize>,
    submitted: u64,
    closed: bool,
}

impl<K: Share> Workers<K> {
    /// Starts the threads that are kept.
    ///
    /// # Errors
    /// One of them could not be started; those that were end again.
    pub fn start(group: &Group, limits: Limits) -> Result<Self, SpawnError> {
        let kept = limits.kept.max(1);
        let jobs = Jobs {
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
        // From here on an early return drops the handle, which closes the board and thereby ends the threads.
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
    /// The pool is closed; the job is handed back.
    pub fn submit(&self, class: Class<K>, rank: u64, job: Job) -> Result<(), Job> {
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
            Class::Long => jobs.ready.push_back((Class::Long, job)),
        }
        board.make_ready(&mut jobs);
        Ok(())
    }

    /// Takes no more jobs. Those in the queue are still run; then the threads end.
    pub fn close(&self) {
        self.handle.board.close();
    }
}

impl<K: Share> Drop for Handle<K> {
    fn drop(&mut self) {
        self.board.close();
    }
}

impl<K: Share> Board<K> {
    fn close(&self) {
        self.jobs.lock().closed = true;
        // From here on `submit` refuses. Jobs that may not run yet are made ready by the threads that run others.
        // All: each has to see it. Not lost, for the reason given in `make_ready`.
        self.changed.notify_all();
    }

    /// Lets all jobs that may run be run, by threads that are idle or are started for it.
    fn make_ready(self: &PlainArc<Self>, jobs: &mut MutexGuard<'_, Jobs<K>>) {
        while let Some((share, job)) = jobs.brief.admit() {
            jobs.ready.push_back((Class::Brief(share), job));
        }
        while let Some((share, job)) = jobs.slow.admit() {
            jobs.ready.push_back((Class::Slow(share), job));
        }
        while jobs.ready.len() > jobs.idle {
            if let Err(error) = self.start_thread(jobs) {
                log::warn!("a job waits for a thread that has another one: {error}");
                break;
            }
        }
        // Not lost: a thread looks for ready jobs and falls asleep under one hold of the mutex, which is held here. Each
        // ready job has an idle thread, and notifying those that are not asleep any more does no harm.
        for _ in 0..jobs.ready.len() {
            self.changed.notify_one();
        }
    }

    /// Starts a thread, which is idle at first.
    fn start_thread(self: &PlainArc<Self>, jobs: &mut MutexGuard<'_, Jobs<K>>) -> Result<(), SpawnError> {
        let number = (1..).find(|number| !jobs.threads.contains(number)).unwrap_or_default();
        let board = PlainArc::clone(self);
        // Under the mutex, so that no two ask for one name; the new thread waits for it.
        self.group.spawn_passing(&format!("worker-{number}"), move || board.work(number))?;
        jobs.threads.insert(number);
        jobs.idle += 1;
        Ok(())
    }

    /// The life of a thread.
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
                    Class::Long => {}
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

/// Runs a job. It is expected to catch its own panics, where it is known what to answer. This catch is for the pool: other
/// jobs must not lose their thread. Nothing is shared with the job but what it brought along.
fn contained(job: Job) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        log::error!("a job panicked: {}", panic_text(panic.as_ref()));
    }
}
