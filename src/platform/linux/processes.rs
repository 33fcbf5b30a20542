//! Children of the daemon: starting one, running some to their ends side by side, killing what takes too long.
//!
//! The only place that starts processes. A child gets the C locale, a fixed PATH, no signal blocked, a session of its own (so
//! that Ctrl-C on the daemon's terminal does not reach it, and it has no terminal to ask on), and of the daemon's descriptors
//! only those for what it is told and what it says. What passes through them may be secret and is wiped.
//!
//! A child that takes longer than its limit is killed with all that it started. One that does not even end then waits inside
//! the kernel, and nothing ends it before its device answers: the caller is told and goes on, and the child is taken leave of
//! when it ends ([`reap`]). Everything that runs, and everything that hangs, is told by [`running`].
//!
//! Knows nothing of what the programs are for.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use log::{error, info, warn};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags},
    process::{PidfdFlags, pidfd_open},
};
use zeroize::Zeroizing;

use super::{
    limits::{KILLED, NOTICE},
    programs::PLACES,
    secret_bytes::SecretBytes,
    wait,
};
use crate::platform::RunningProgram;

/// What is kept of each output of a program; it may say more.
pub(super) const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Room for an output before it has to move.
const OUTPUT_BYTES: usize = 8 << 10;
/// So much fits into any pipe that is ready to be written to, so that the write does not wait.
const WRITE_BYTES_MAX: usize = 4096;

/// The first bytes of an output.
pub(super) struct Kept {
    /// The bytes.
    pub(super) bytes: SecretBytes,
    /// There was more.
    pub(super) cut: bool,
}

impl Kept {
    /// Nothing yet.
    pub(super) fn new() -> Kept {
        Kept { bytes: SecretBytes::with_room(OUTPUT_BYTES), cut: false }
    }

    /// Keeps as much of it as there is room for.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.push(&bytes[..bytes.len().min(room)]);
    }
}

/// How a program came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself, or by a signal that somebody else sent.
    Exited(ExitStatus),
    /// It was killed because its time was up.
    TimedOut,
    /// It was killed because its time was up, or nobody listened any more, and has not ended even so.
    Unkillable,
}

/// How a program ended and what it said.
pub(super) struct Ended {
    /// How.
    pub(super) outcome: Outcome,
    /// Its standard output.
    pub(super) output: Kept,
    /// Its standard error.
    pub(super) errors: Kept,
}

/// What a child is given on standard input.
pub(super) enum Input<'a> {
    /// A pipe with these bytes.
    Bytes(&'a [u8]),
    /// A descriptor.
    Descriptor(OwnedFd),
}

/// A program to be run.
pub(super) struct Task<'a> {
    /// What it is to do, for people: `mkfs.xfs on /dev/mapper/x`.
    pub(super) label: String,
    /// Where it lies.
    pub(super) path: &'a Path,
    /// What it is given. Everybody can see them: never a secret.
    pub(super) arguments: &'a [&'a OsStr],
    /// Variables beside the locale and the PATH; these may be set to other values.
    pub(super) environment: &'a [(&'a str, OsString)],
    /// What it is told on standard input.
    pub(super) input: Input<'a>,
    /// How long it may take; `None`: as long as it takes.
    pub(super) limit: Option<Duration>,
    /// The mount namespace that it is to run in, if not the daemon's.
    pub(super) namespace: Option<BorrowedFd<'a>>,
}

impl Task<'_> {
    /// Starts it, with a pipe for each of the three standard descriptors.
    ///
    /// # Errors
    /// When there is no such program.
    pub(super) fn start(&mut self) -> io::Result<Process> {
        reap();
        // The one place where programs are started.
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new(self.path);
        let stdin = match &mut self.input {
            Input::Bytes(_) => Stdio::piped(),
            Input::Descriptor(descriptor) => descriptor.try_clone()?.into(),
        };
        command
            .args(self.arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", PLACES)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        set_apart::child_of(&mut command, self.namespace);
        Ok(Process::new(command.spawn()?, self.label.clone()))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it could not be started or listened to.
    pub(super) fn run(self) -> io::Result<Ended> {
        let mut result = None;
        run_all(vec![self], |_, ended| {
            result = Some(ended);
            true
        });
        result.unwrap_or_else(|| Err(io::Error::other("it was given up")))
    }
}

/// Runs tasks side by side. Each one's number and end is handed over as it comes; `true`: that is enough, and the others are
/// killed.
pub(super) fn run_all(tasks: Vec<Task<'_>>, mut ended: impl FnMut(usize, io::Result<Ended>) -> bool) {
    let mut running = Vec::new();
    for (number, mut task) in tasks.into_iter().enumerate() {
        match task.start() {
            Ok(process) => running.push((number, Running::new(process, &task))),
            Err(fault) => {
                if ended(number, Err(fault)) {
                    return;
                }
            }
        }
    }
    let mut buffer = Zeroizing::new(vec![0; 64 << 10]);
    while !running.is_empty() {
        let deadline = running.iter().filter_map(|(_, running)| running.next_deadline()).min();
        let ready = {
            let mut fds: Vec<PollFd<'_>> = running.iter().flat_map(|(_, running)| running.fds()).collect();
            let waited = wait::any(&mut fds, deadline);
            waited.map(|_| fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<bool>>())
        };
        let ready = match ready {
            Ok(ready) => ready,
            // Without a wait there is nothing that could be done for any of them.
            Err(fault) => {
                for (number, _) in running {
                    if ended(number, Err(io::Error::from(fault.kind()))) {
                        break;
                    }
                }
                return;
            }
        };
        let mut ready = ready.into_iter();
        let mut at = 0;
        while let Some((number, one)) = running.get_mut(at) {
            let number = *number;
            match one.serve(&mut ready, &mut buffer) {
                Ok(None) => at += 1,
                Ok(Some(how)) => {
                    let (_, one) = running.remove(at);
                    if ended(number, Ok(one.end(how))) {
                        return;
                    }
                }
                Err(fault) => {
                    drop(running.remove(at));
                    if ended(number, Err(fault)) {
                        return;
                    }
                }
            }
        }
    }
}

// ---- what runs ----

/// Everything that runs and everything that hangs, by process.
static CHILDREN: Mutex<BTreeMap<u32, Entry>> = Mutex::new(BTreeMap::new());

struct Entry {
    label: String,
    since: Instant,
    /// A child that was given up; it has not been waited for.
    stuck: Option<Child>,
}

/// What runs at the moment, the oldest first.
pub(super) fn running() -> Vec<RunningProgram> {
    reap();
    let children = CHILDREN.lock();
    let mut list: Vec<RunningProgram> = children
        .iter()
        .map(|(process, Entry { label, since, stuck })| RunningProgram {
            label: label.clone(),
            process: *process,
            age: since.elapsed(),
            is_stuck: stuck.is_some(),
        })
        .collect();
    list.sort_by_key(|program| std::cmp::Reverse(program.age));
    list
}

/// Takes leave of those that were given up and have ended since.
pub(super) fn reap() {
    CHILDREN.lock().retain(|process, Entry { label, since, stuck }| {
        let has_ended = stuck.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
        if has_ended {
            info!(
                "{label} (process {process}), which had been given up, has ended after {} s",
                since.elapsed().as_secs()
            );
        }
        !has_ended
    });
}

/// A child that has been started. Dropping it kills it with all that it started.
pub(super) struct Process {
    /// `None`: it has been waited for, or given up.
    child: Option<Child>,
    /// Readable when the child has ended. `None` before Linux 5.3.
    end: Option<OwnedFd>,
    label: String,
    since: Instant,
    killed: Option<Instant>,
}

impl Process {
    fn new(child: Child, label: String) -> Process {
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        // It has not been waited for, so the number is its own.
        let end = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let since = Instant::now();
        CHILDREN.lock().insert(child.id(), Entry { label: label.clone(), since, stuck: None });
        Process { child: Some(child), end, label, since, killed: None }
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.child.as_ref().map(Child::id).unwrap_or_default()
    }

    /// Its pipes, each of which can be taken once.
    pub(super) fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        match &mut self.child {
            Some(child) => (child.stdin.take(), child.stdout.take(), child.stderr.take()),
            None => (None, None, None),
        }
    }

    /// Says in the log that it takes long.
    pub(super) fn warn_of_age(&self) {
        let process = self.id();
        warn!("{} (process {process}) has been running for {} s", self.label, self.since.elapsed().as_secs());
    }

    /// Kills it with all that it started (and that did not set itself apart in turn).
    pub(super) fn kill(&mut self) {
        let Some(child) = &mut self.child else { return };
        self.killed.get_or_insert_with(Instant::now);
        let group = i32::try_from(child.id()).map(Pid::from_raw);
        // It leads its own session and so a group of that number, which is nobody else's as long as it is not waited for.
        if !group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_ok()) {
            let _ = child.kill();
        }
    }

    /// Waits for its end, at most so long; `None`: it has not ended and is given up. What it started ends with it.
    pub(super) fn wait(mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let has_ended = match &self.end {
            Some(end) => wait::readable(end.as_fd(), Instant::now() + limit)?,
            // There is no way to wait with a limit.
            None => true,
        };
        if !has_ended {
            return Ok(None);
        }
        self.kill();
        let Some(mut child) = self.child.take() else { return Ok(None) };
        CHILDREN.lock().remove(&child.id());
        child.wait().map(Some)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        self.kill();
        let has_ended = match &self.end {
            Some(end) => wait::readable(end.as_fd(), self.killed.unwrap_or(self.since) + KILLED).unwrap_or(false),
            None => true,
        };
        let Some(mut child) = self.child.take() else { return };
        let mut children = CHILDREN.lock();
        if has_ended {
            children.remove(&child.id());
            drop(children);
            let _ = child.wait();
        } else if let Some(entry) = children.get_mut(&child.id()) {
            let seconds = self.since.elapsed().as_secs();
            error!(
                "{} (process {}) was killed after {seconds} s and does not end; it waits for a device that does not answer, \
                 and is given up",
                self.label,
                child.id()
            );
            entry.stuck = Some(child);
        }
    }
}

// ---- one that is listened to ----

/// A child with its pipes, on the way to its end.
struct Running<'a> {
    process: Process,
    /// With what is still to be said; `None` when all is.
    input: Option<(ChildStdin, &'a [u8])>,
    output: Output<ChildStdout>,
    errors: Output<ChildStderr>,
    /// When its time is up; after that, when it is given up.
    deadline: Option<Instant>,
    notice: Option<Instant>,
    late: bool,
    /// It has ended; until then its outputs are read, which something that it started may hold open.
    ended: Option<Instant>,
}

/// An output that is being read.
struct Output<P> {
    /// `None` after its end.
    pipe: Option<P>,
    kept: Kept,
}

impl<P: Read> Output<P> {
    fn new(pipe: Option<P>) -> Output<P> {
        Output { pipe, kept: Kept::new() }
    }

    /// Reads once, which does not wait when the pipe is ready.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => self.kept.keep(&buffer[..count]),
            Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
            Err(failed) => return Err(failed),
        }
        Ok(())
    }
}

impl<'a> Running<'a> {
    fn new(mut process: Process, task: &Task<'a>) -> Running<'a> {
        let (input, output, errors) = process.pipes();
        let bytes = match &task.input {
            Input::Bytes(bytes) => *bytes,
            Input::Descriptor(_) => &[],
        };
        let now = Instant::now();
        Running {
            process,
            input: input.filter(|_| !bytes.is_empty()).map(|pipe| (pipe, bytes)),
            output: Output::new(output),
            errors: Output::new(errors),
            deadline: task.limit.map(|limit| now + limit),
            notice: Some(now + NOTICE),
            late: false,
            ended: None,
        }
    }

    /// What is waited for.
    fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let input = self.input.as_ref().map(|(pipe, _)| PollFd::new(pipe, PollFlags::OUT));
        let output = self.output.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let errors = self.errors.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let end = self.process.end.as_ref().filter(|_| self.ended.is_none()).map(|end| PollFd::new(end, PollFlags::IN));
        [input, output, errors, end].into_iter().flatten()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.ended.or_else(|| self.deadline.into_iter().chain(self.notice).min())
    }

    /// Does what can be done without waiting; `ready` says of each of its descriptors whether there is something to do. Gives
    /// how it ended, when it has.
    fn serve(&mut self, ready: &mut impl Iterator<Item = bool>, buffer: &mut [u8]) -> io::Result<Option<Outcome>> {
        let mut take = |there: bool| there && ready.next().unwrap_or(false);
        let told = take(self.input.is_some());
        let says = take(self.output.pipe.is_some());
        let complains = take(self.errors.pipe.is_some());
        let ends = take(self.process.end.is_some() && self.ended.is_none());
        if told {
            self.tell()?;
        }
        if says {
            self.output.take(buffer)?;
        }
        if complains {
            self.errors.take(buffer)?;
        }
        let silent = self.output.pipe.is_none() && self.errors.pipe.is_none();
        let now = Instant::now();
        if ends || (self.process.end.is_none() && silent && self.ended.is_none()) {
            // What it started would hold its pipes open, and has nobody left to work for.
            self.process.kill();
            self.ended = Some(now + KILLED);
        }
        if let Some(until) = self.ended {
            if !silent && now < until {
                return Ok(None);
            }
            return self.status().map(Some);
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            if self.late {
                return Ok(Some(Outcome::Unkillable));
            }
            self.late = true;
            self.process.kill();
            self.deadline = Some(now + KILLED);
            self.notice = None;
        }
        if self.notice.is_some_and(|notice| notice <= now) {
            self.process.warn_of_age();
            self.notice = None;
        }
        Ok(None)
    }

    /// How it ended, when that is known to have happened.
    fn status(&mut self) -> io::Result<Outcome> {
        let Some(mut child) = self.process.child.take() else { return Ok(Outcome::Unkillable) };
        CHILDREN.lock().remove(&child.id());
        let status = child.wait()?;
        Ok(if self.late { Outcome::TimedOut } else { Outcome::Exited(status) })
    }

    fn end(self, outcome: Outcome) -> Ended {
        if !matches!(outcome, Outcome::Exited(_)) {
            let seconds = self.process.since.elapsed().as_secs();
            warn!("{} was killed after {seconds} s", self.process.label);
        }
        Ended { outcome, output: self.output.kept, errors: self.errors.kept }
    }

    /// Writes a piece. A program that does not want to hear it is no error: outcome it ends tells.
    fn tell(&mut self) -> io::Result<()> {
        let Some((pipe, left)) = &mut self.input else { return Ok(()) };
        match pipe.write(&left[..left.len().min(WRITE_BYTES_MAX)]) {
            Ok(count) => *left = &left[count..],
            Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(closed) if closed.kind() == io::ErrorKind::BrokenPipe => *left = &[],
            Err(failed) => return Err(failed),
        }
        if left.is_empty() {
            self.input = None;
        }
        Ok(())
    }
}

mod set_apart {
    //! What a child would inherit and must not: signals that the parent's thread blocks (programs do not expect any
    //! to be blocked), descriptors that some library, or whoever started the daemon, left open across an exec, the
    //! session with its terminal, and the mount namespace, in which what users have mounted cannot be seen.
    #![allow(unsafe_code)]

    use std::{
        os::{
            fd::{AsRawFd, BorrowedFd},
            unix::process::CommandExt,
        },
        process::Command,
    };

    use nix::{
        libc::{CLONE_NEWNS, CLOSE_RANGE_CLOEXEC, SYS_close_range, c_uint, setns, syscall},
        sys::signal::{SigSet, SigmaskHow, sigprocmask},
        unistd::setsid,
    };

    pub(super) fn child_of(command: &mut Command, namespace: Option<BorrowedFd<'_>>) {
        let none = SigSet::empty();
        // Open at least as long as the task, and so until the child has been started.
        let namespace = namespace.map(|namespace| namespace.as_raw_fd());
        let before_exec = move || {
            if let Some(namespace) = namespace {
                // SAFETY: a system call on numbers. Where it is refused the child runs in the daemon's namespace, where it
                // finds its devices as well.
                unsafe { setns(namespace, CLONE_NEWNS) };
            }
            // SAFETY: a system call on numbers. It marks descriptors and closes none, so that nobody who owns one is
            // wronged. Before Linux 5.11 it fails, which leaves things as they would be without it.
            unsafe { syscall(SYS_close_range, 3, c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
            setsid()?;
            Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?)
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes four system calls,
        // on values made before the fork, and allocates nothing: an error is an errno.
        unsafe { command.pre_exec(before_exec) };
    }
}

#[cfg(test)]
#[path = "processes_tests.rs"]
mod tests;
