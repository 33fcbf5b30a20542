//! The one place that starts threads: names from a fixed list, panics caught, each end reported, joins bounded.
//!
//! Must never know: what the threads do, and what their end means for the program.

//!
//! The order of a stop is the order of the names given to [`Group::join`]. Each of these threads has been told to end by
//! then, by a stop or by the end of what it waits on; the join only sees to it, and says who did not listen.
//!
//! ```
//! use std::time::Duration;
//! use threads::group::{Group, How};
//!
//! let group = Group::new(&["timers", "worker-*"]);
//! group.spawn("worker-1", || Ok(())).expect("the name is on the list");
//! group.spawn("timers", || panic!("a mistake")).expect("the name is on the list");
//! group.join(&["worker-*", "timers"], Duration::from_secs(60)).expect("both end by themselves");
//! let ends: Vec<How> = group.ended().try_iter().map(|ended| ended.how).collect();
//! assert!(ends.contains(&How::Panicked("a mistake".into())));
//! ```

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use thiserror::Error;

use crate::primitives::{Mutex, PlainArc};

/// How long the name of a thread may be, in bytes: the kernel keeps 15 and a zero, and cuts off the rest.
pub const NAME_BYTES_MAX: usize = 15;

/// The threads of a program. Clones are the same group.
#[derive(Clone, Debug)]
pub struct Group {
    shared: PlainArc<Shared>,
}

/// What the clones share. The threads themselves do not keep it alive: each has only the sender for its report.
#[derive(Debug)]
struct Shared {
    allowed: &'static [&'static str],
    /// Those started and not joined yet, in the order of their start.
    threads: Mutex<Vec<Thread>>,
    /// Unbounded, and holds at most one message for each thread ever started: a thread sends one when it ends. Passing ones send
    /// none, unless they panic.
    ended: (Sender<Ended>, Receiver<Ended>),
}

#[derive(Debug)]
struct Thread {
    name: String,
    /// It was started by [`Group::spawn_passing`].
    passing: bool,
    /// Disconnected when the thread has nothing left to do but to go: a join that comes after that is quick.
    over: Receiver<std::convert::Infallible>,
    handle: std::thread::JoinHandle<()>,
}

/// The report of a thread's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The thread.
    pub name: String,
    /// How it ended.
    pub how: How,
}

/// How a thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Its function returned.
    Returned,
    /// Its function returned this error.
    Failed(String),
    /// Its function panicked with this text.
    Panicked(String),
}

/// Why a thread was not started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The name is not on the group's list.
    #[error("{name:?} is not one of this program's threads; add it to the list of thread names")]
    NotListed {
        /// The name asked for.
        name: String,
    },
    /// The kernel would cut the name.
    #[error("the thread name {name:?} is longer than {NAME_BYTES_MAX} bytes; choose a shorter one")]
    NameTooLong {
        /// The name asked for.
        name: String,
    },
    /// A thread of that name was started and not joined yet.
    #[error("there is already a thread named {name:?}; join it first")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// The system refused.
    #[error("the system did not start the thread {name:?}; look at the limits on tasks and memory")]
    System {
        /// The name asked for.
        name: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Threads that did not end in time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("still running after the time allowed: {}", names.join(", "))]
pub struct Hanging {
    /// Their names, in the order in which they were waited for.
    pub names: Vec<String>,
}

impl Group {
    /// A group without threads. `names` are those that threads may have; one that ends in `-*` stands for a family
    /// (`worker-*`: `worker-1`, `worker-2` …).
    #[must_use]
    pub fn new(names: &'static [&'static str]) -> Self {
        let ended = crossbeam_channel::unbounded();
        Self { shared: PlainArc::new(Shared { allowed: names, threads: Mutex::new(Vec::new()), ended }) }
    }

    /// Starts a thread of a family whose members come and go: that it returns is not reported, and several may have one name,
    /// since one that ends is there for a moment longer. A panic is reported as for the others.
    ///
    /// # Errors
    /// The name is not allowed or too long, or the system refuses.
    pub fn spawn_passing(&self, name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), SpawnError> {
        // What has ended is let go here, or it would stay in the list for as long as the group.
        let ended: Vec<Thread> = {
            let mut threads = self.shared.threads.lock();
            let is_over = |over: &Receiver<_>| over.try_recv() == Err(TryRecvError::Disconnected);
            threads.extract_if(.., |thread| thread.passing && is_over(&thread.over)).collect()
        };
        ended.into_iter().for_each(Thread::join);
        self.start(name, true, move || {
            f();
            Ok(())
        })
    }

    /// Starts a thread. How it ends is reported to [`Group::ended`]; a panic is caught and is one of the ways.
    ///
    /// # Errors
    /// The name is not allowed, too long or in use, or the system refuses.
    pub fn spawn(&self, name: &str, f: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), SpawnError> {
        self.start(name, false, f)
    }

    fn start(
        &self,
        name: &str,
        passing: bool,
        f: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), SpawnError> {
        let owned = || name.to_owned();
        if !self.shared.allowed.iter().any(|pattern| matches(pattern, name)) {
            return Err(SpawnError::NotListed { name: owned() });
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(SpawnError::NameTooLong { name: owned() });
        }
        // Held over the start, so that a name cannot be taken twice; the new thread does not need it.
        let mut threads = self.shared.threads.lock();
        if threads.iter().any(|thread| thread.name == name && !(thread.passing && passing)) {
            return Err(SpawnError::Exists { name: owned() });
        }
        let (running, over) = crossbeam_channel::bounded(0);
        let reports = self.shared.ended.0.clone();
        let name_inside = owned();
        let body = move || {
            // Caught here and not found out by the join: a panic must be known when it happens, since the stop follows from
            // it. What the function used is not looked at again by anybody but its owner, so it cannot be seen half changed.
            let how = match catch_unwind(AssertUnwindSafe(f)) {
                Ok(Ok(())) => How::Returned,
                Ok(Err(error)) => How::Failed(error),
                Err(panic) => How::Panicked(panic_text(panic.as_ref())),
            };
            log::debug!("thread {name_inside} ended: {how:?}");
            // The group may be gone; then nobody is interested. The report comes before `running` is dropped, so whoever
            // has joined the thread finds its report.
            if !passing || how != How::Returned {
                let _ = reports.send(Ended { name: name_inside, how });
            }
            drop(running);
        };
        let handle = std::thread::Builder::new()
            .name(owned())
            .spawn(body)
            .map_err(|source| SpawnError::System { name: owned(), source })?;
        threads.push(Thread { name: owned(), passing, over, handle });
        Ok(())
    }

    /// Where the end of each thread is reported, once. All receivers share the reports: one reader is meant.
    #[must_use]
    pub fn ended(&self) -> Receiver<Ended> {
        self.shared.ended.1.clone()
    }

    /// Waits for the named threads to end, one after the other in this order, and `limit` for all of them together. A family
    /// (`worker-*`) stands for its threads in the order of their start; names that have no thread are passed over.
    ///
    /// # Errors
    /// Names the threads that had not ended when the time was up. They stay in the group and can be joined again.
    pub fn join(&self, names: &[&str], limit: Duration) -> Result<(), Hanging> {
        // One deadline for all: the time that the first one takes is not there for the others, so the whole is bounded.
        let deadline = Instant::now() + limit;
        let mut hanging = Vec::new();
        for pattern in names {
            for thread in self.take(pattern) {
                // After the deadline this still sees those that have ended: they are joined, and only the others named.
                if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = thread.over.recv_deadline(deadline) {
                    hanging.push(thread.name.clone());
                    self.shared.threads.lock().push(thread);
                } else {
                    thread.join();
                }
            }
        }
        if hanging.is_empty() { Ok(()) } else { Err(Hanging { names: hanging }) }
    }

    /// Takes the threads that a name or family means out of the list, so that nothing is waited for under the mutex.
    fn take(&self, pattern: &str) -> Vec<Thread> {
        self.shared.threads.lock().extract_if(.., |thread| matches(pattern, &thread.name)).collect()
    }
}

impl Thread {
    /// Joins a thread that has nothing left to do.
    fn join(self) {
        if self.handle.join().is_err() {
            // The body catches all panics; what is left is one in the drop of a panic's own value.
            log::error!("thread {} ended by a panic outside its function", self.name);
        }
    }
}

/// Whether a name is meant by an item of a list of names.
/// A family needs the dash, so that `timers*` is a mistake that nothing matches and not a wide door.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('-') => name.len() > prefix.len() && name.starts_with(prefix),
        _ => pattern == name,
    }
}

/// The text of a panic, for people. `panic!` with a plain text carries a `&str`, with arguments a `String`; anything else was
/// thrown by `panic_any` and cannot be told.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;
