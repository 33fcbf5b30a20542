//! A fixed number of threads that run jobs, of which slow ones hold at most half; and one more for each job of hours.
//!
//! Must never know: what a job is about, and which lock grants it carries.
//!
//! # The promise
//!
//! Jobs start in the order of their submission, except that quick ones pass slow ones that have to wait. A slow job waits
//! only while half of the workers (at least one) run slow ones; a quick job waits only while all workers are busy. With
//! more than one worker there is always one that no slow job may take. A worker outlives a panic of its job.
//!
//! Long jobs wait for nobody and nobody waits for them: each has a thread, `long-1`, `long-2` …, which the next one takes over.

//! # Why half
//!
//! Slow jobs wait for other programs or the network, for minutes at times. If they could have all workers, the shortest
//! request would wait for as long as the slowest of them takes. Nor is a half kept for quick ones alone: as long as there are no
//! slow jobs, all workers are for the quick.
//!
//! ```
//! use std::{num::NonZeroUsize, time::Duration};
//! use threads::{group::Group, workers::{Class, Workers}};
//!
//! let group = Group::new(&["worker-*"]);
//! let workers = Workers::start(&group, NonZeroUsize::MIN).expect("a thread can be started");
//! let (done, results) = crossbeam_channel::unbounded();
//! assert!(workers.submit(Class::Quick, Box::new(move || drop(done.send(6 * 7)))).is_ok());
//! assert_eq!(results.recv(), Ok(42));
//! workers.close();
//! group.join(&["worker-*"], Duration::from_secs(60)).expect("nothing is left to do");
//! ```

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    group::{Group, SpawnError, panic_text},
    primitives::{Condvar, Mutex, MutexGuard, PlainArc, wait},
};

/// What a worker runs. It owns all that it needs, for instance the guard of a lock, which ends with it.
pub type Job = Box<dyn FnOnce() + Send>;

/// How long a job may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// What people do not notice.
    Quick,
    /// Anything else: formats, checks, waits for other programs or the network.
    Slow,
    /// What may take hours.
    Long,
}

/// The pool of workers. Clones are the same pool; it is closed when the last one is dropped.
#[derive(Clone)]
pub struct Workers {
    handle: PlainArc<Handle>,
}

/// Ends the threads when nobody can submit any more. The threads have the board itself, not this.
struct Handle {
    board: PlainArc<Board>,
    group: Group,
}

/// Where the jobs are, and where the workers wait for them.
struct Board {
    jobs: Mutex<Jobs>,
    /// Notified when a worker that found nothing to do may find something: a new job, room for a slow one, the end.
    changed: Condvar,
    /// Notified when there is a long job, and at the end.
    long_changed: Condvar,
    /// How many slow jobs may run at once: half of the workers, rounded down, and one if that is none.
    slow_max: usize,
}

/// Unbounded, since a job may submit the next step of its own work: a bound would let workers wait for each other. What is in
/// it is bounded by whoever submits: one job for each request that was let in.
#[derive(Default)]
struct Jobs {
    /// Numbered in the order of submission, over both queues, so that the older of the two heads is known.
    quick: VecDeque<(u64, Job)>,
    slow: VecDeque<(u64, Job)>,
    /// Never more than free threads for them, unless there could be no more threads.
    long: VecDeque<Job>,
    /// Threads for long jobs,
    long_threads: usize,
    /// and how many of them run none.
    long_free: usize,
    /// Raised under the mutex by whoever takes the job, lowered when the job is over, panicked or not.
    slow_running: usize,
    submitted: u64,
    closed: bool,
}

impl Workers {
    /// Starts `count` threads, named `worker-1`, `worker-2` …
    ///
    /// # Errors
    /// One of them could not be started; those that were end again.
    pub fn start(group: &Group, count: NonZeroUsize) -> Result<Workers, SpawnError> {
        let board = PlainArc::new(Board {
            jobs: Mutex::new(Jobs::default()),
            changed: Condvar::new(),
            long_changed: Condvar::new(),
            slow_max: (count.get() / 2).max(1),
        });
        // From here on an early return drops the handle, which closes the board and thereby ends the threads.
        let handle = Handle { board: PlainArc::clone(&board), group: group.clone() };
        let workers = Workers { handle: PlainArc::new(handle) };
        for number in 1..=count.get() {
            let board = PlainArc::clone(&board);
            group.spawn(&format!("worker-{number}"), move || {
                board.work();
                Ok(())
            })?;
        }
        Ok(workers)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The pool is closed; the job is handed back.
    pub fn submit(&self, class: Class, job: Job) -> Result<(), Job> {
        let board = &self.handle.board;
        let mut jobs = board.jobs.lock();
        if jobs.closed {
            return Err(job);
        }
        if class == Class::Long {
            return self.submit_long(jobs, job);
        }
        jobs.submitted += 1;
        let number = jobs.submitted;
        match class {
            Class::Quick => jobs.quick.push_back((number, job)),
            Class::Slow | Class::Long => jobs.slow.push_back((number, job)),
        }
        drop(jobs);
        // Not lost: a worker looks at the queues and falls asleep under one hold of the mutex, so it either sees this job or
        // is asleep by now. One is enough, since any worker may take this job; if the class is at its limit, the one woken
        // sleeps again and the end of a slow job wakes the next.
        board.changed.notify_one();
        Ok(())
    }

    /// Gives a long job to a thread that has none, or to a new one.
    fn submit_long(&self, mut jobs: MutexGuard<'_, Jobs>, job: Job) -> Result<(), Job> {
        let board = &self.handle.board;
        if jobs.long.len() >= jobs.long_free {
            // Under the mutex, so that no two ask for one name; the new thread waits for it.
            let (name, its_board) = (format!("long-{}", jobs.long_threads + 1), PlainArc::clone(board));
            let spawned = self.handle.group.spawn(&name, move || {
                its_board.work_long();
                Ok(())
            });
            match spawned {
                Ok(()) => {
                    jobs.long_threads += 1;
                    jobs.long_free += 1;
                }
                Err(error) if jobs.long_threads == 0 => {
                    log::warn!("no thread for a long job, which becomes a slow one: {error}");
                    drop(jobs);
                    return self.submit(Class::Slow, job);
                }
                Err(error) => log::warn!("no thread for a long job, which waits for another one: {error}"),
            }
        }
        jobs.long.push_back(job);
        drop(jobs);
        board.long_changed.notify_one();
        Ok(())
    }

    /// Takes no more jobs. Those in the queue are still run; then the threads end.
    pub fn close(&self) {
        self.handle.board.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.board.close();
    }
}

impl Board {
    fn close(&self) {
        self.jobs.lock().closed = true;
        // From here on `submit` refuses, so the queues only get shorter, and the last worker finds them empty.
        // All: each has to see it. Not lost, for the reason given in `submit`.
        self.changed.notify_all();
        self.long_changed.notify_all();
    }

    /// The life of a worker.
    fn work(&self) {
        while let Some((class, job)) = self.next() {
            contained(job);
            if class == Class::Slow {
                self.slow_ended();
            }
        }
    }

    /// The life of a thread for long jobs.
    fn work_long(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.long.pop_front() {
                jobs.long_free -= 1;
                drop(jobs);
                contained(job);
                jobs = self.jobs.lock();
                jobs.long_free += 1;
            } else if jobs.closed {
                return;
            } else {
                jobs = wait(&self.long_changed, jobs);
            }
        }
    }

    /// The next job that may be run, in the order of submission; None when there will be no more.
    fn next(&self) -> Option<(Class, Job)> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(found) = jobs.take(self.slow_max) {
                return Some(found);
            }
            // When slow jobs are left they wait for the end of others, whose workers then take them on; nobody else is needed.
            if jobs.closed {
                return None;
            }
            jobs = wait(&self.changed, jobs);
        }
    }

    /// Makes room for another slow job, and sees to it that it is taken.
    fn slow_ended(&self) {
        let mut jobs = self.jobs.lock();
        jobs.slow_running -= 1;
        let more = !jobs.slow.is_empty();
        drop(jobs);
        if more {
            // This worker looks for work next, but may find an older quick job; so another one is told that a slow job may run.
            self.changed.notify_one();
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

impl Jobs {
    /// The oldest job that may be run.
    fn take(&mut self, slow_max: usize) -> Option<(Class, Job)> {
        let quick = self.quick.front().map(|(number, _)| *number);
        let slow = self.slow.front().map(|(number, _)| *number).filter(|_| self.slow_running < slow_max);
        let slow_first = match (quick, slow) {
            (Some(quick), Some(slow)) => slow < quick,
            (quick, _) => quick.is_none(),
        };
        if slow_first && slow.is_some() {
            self.slow_running += 1;
            self.slow.pop_front().map(|(_, job)| (Class::Slow, job))
        } else {
            self.quick.pop_front().map(|(_, job)| (Class::Quick, job))
        }
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;
