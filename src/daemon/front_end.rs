//! What the daemon needs from its front end, the part that serves clients: the bus, or the socket
//! of the early-boot daemon. Everything else is the same in both daemons.
//!
//! Must never know: a protocol.

use std::{error, sync::Arc};

use crossbeam_channel::{Receiver, Sender};
use threads::{
    group::Group,
    lock::{Observation, Observed},
    pulse::Pulse,
    stop::Stop,
};

use super::{
    dispatch::{Dispatcher, Request},
    error::Error,
    machine::{DaemonRole, RunPaths},
    thread_table::FrontEndThreads,
    watchdog::Watchdog,
};
use crate::{
    base::error_chain,
    platform::{self, Platform},
    service::{ClientJob, Holder, Locks, ReportedProgram, Submit},
    view::Update,
};

/// Any error of a front end.
pub type FrontEndError = Box<dyn error::Error + Send + Sync>;

/// Called when the changes of a request have been published.
pub type OnPublished = Box<dyn FnOnce() + Send>;

/// The part that serves clients. The daemon calls the functions in this order.
pub trait FrontEnd: Sized {
    /// A reply on its way: it follows the publication of the changes of its request.
    type Reply: Send + 'static;
    /// Which of the two daemons this is.
    const ROLE: DaemonRole;
    /// The threads that [`FrontEnd::publish`] and [`FrontEnd::serve`] start.
    const THREADS: FrontEndThreads;

    /// Opens what the front end needs before pools are set up. It does not serve clients yet.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(paths: &RunPaths) -> Result<Self, FrontEndError>;

    /// A reply for the daemon itself: calls `then` when the changes of its update, and all changes
    /// before it, have been published. `then` must return quickly.
    fn tell(then: OnPublished) -> Self::Reply;

    /// Starts the threads that publish changes and answer. They end when every sender of updates is
    /// gone.
    ///
    /// # Errors
    /// A thread cannot be started.
    fn publish(
        &mut self,
        threads: &mut Threads<'_>,
        updates: UpdateChannel<Self::Reply>,
        jobs: &Jobs<Self::Reply>,
    ) -> Result<(), Error>;

    /// Starts to serve clients, when the first view is published. Returns a description of what is
    /// served, for the log.
    ///
    /// # Errors
    /// Clients cannot be served.
    fn serve(self, threads: &mut Threads<'_>, jobs: Jobs<Self::Reply>) -> Result<String, Error>;
}

/// The channel of updates to the front end.
pub struct UpdateChannel<R> {
    /// The receiving end.
    pub updates: Receiver<Update<R>>,
    pub(super) sender: Sender<Update<R>>,
}

impl<R: Send + 'static> UpdateChannel<R> {
    /// For [`Threads::spawn`]: makes the receiving thread run its loop once, by an update without
    /// changes.
    pub fn nudge(&self) -> impl Fn(&Pulse) + Send + 'static + use<R> {
        let sender = self.sender.clone();
        move |_| drop(sender.send(Update { changes: Vec::new(), reply: None }))
    }
}

/// Starts threads of the table.
pub struct Threads<'a> {
    pub(super) group: &'a Group,
    pub(super) stop: &'a Stop,
    pub(super) watchdog: &'a mut Watchdog,
}

impl Threads<'_> {
    /// Starts a thread of the table. `ask` makes it run its loop once, in which it calls
    /// [`Pulse::beat`].
    ///
    /// # Errors
    /// The thread is not in the table, or the system refuses.
    pub fn spawn<E: error::Error>(
        &mut self,
        name: &'static str,
        ask: impl Fn(&Pulse) + Send + 'static,
        run: impl FnOnce(&Stop, &Pulse) -> Result<(), E> + Send + 'static,
    ) -> Result<(), Error> {
        let (stop, pulse) = (self.stop.clone(), self.watchdog.member(name, ask));
        let run = move || run(&stop, &pulse).map_err(|error| error_chain::sentence(&error));
        Ok(self.group.spawn(name, run)?)
    }
}

/// Takes the jobs of a front end.
pub struct Jobs<R: Send + 'static> {
    pub(super) dispatcher: Dispatcher<R>,
    pub(super) platform: Arc<dyn Platform>,
}

impl<R: Send + 'static> Clone for Jobs<R> {
    fn clone(&self) -> Self {
        Jobs { dispatcher: self.dispatcher.clone(), platform: Arc::clone(&self.platform) }
    }
}

impl<R: Send + 'static> Submit<R> for Jobs<R> {
    fn submit(&self, ClientJob { label, chain, on_failure }: ClientJob<R>) {
        self.dispatcher.submit(Request { label, chain, on_failure });
    }

    fn locks(&self) -> Locks {
        let list = |observed: Vec<Observed>| -> Vec<Holder> {
            let holder = |Observed { label, access, age, .. }| Holder { request: label.into_owned(), access, age };
            observed.into_iter().map(holder).collect()
        };
        let Observation { holders, waiters } = self.dispatcher.observe();
        let running = self.platform.running_programs().into_iter();
        let programs = running.map(|platform::RunningProgram { label, process, age, is_stuck }| ReportedProgram {
            label,
            process,
            age,
            is_stuck,
        });
        let unanswered_udev_events = self.platform.unanswered_udev_events();
        Locks { holders: list(holders), waiters: list(waiters), programs: programs.collect(), unanswered_udev_events }
    }
}
