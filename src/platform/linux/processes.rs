//! Child processes of the daemon: starting one, running several in parallel, killing one at its
//! time limit.
//!
//! This is the only place that starts processes. A child gets the C locale, a fixed PATH, no
//! blocked signals and a new session, so that Ctrl-C on the daemon's terminal does not reach
//! it and it has no terminal to prompt on. Of the daemon's descriptors it gets only those for its
//! input and output. Data that passes through them may be secret and is wiped.
//!
//! At its time limit a child is killed, together with everything that it started. A child that
//! survives even that waits in the kernel, and nothing ends it before its device answers. The
//! caller gets an error and continues; [`reap`] collects the child when it exits. [`running`] lists
//! all children, hung ones included.
//!
//! This module knows nothing of what the programs are for.

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
    secret_bytes::SecretBytes,
    wait,
};
use crate::platform::RunningProgram;

/// Directories in which programs are searched, in this order. A distribution can set another list,
/// joined by colons, as `EXECUTABLES_PATHS` when it builds the daemon. The PATH of the daemon's
/// environment is not used.
pub(super) const PLACES: &str = match option_env!("EXECUTABLES_PATHS") {
    Some(places) => places,
    None => "/usr/sbin:/sbin:/usr/bin:/bin",
};
/// Limit of what is kept of each output; a program may print more.
pub(super) const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Initial capacity for an output.
const OUTPUT_BYTES: usize = 8 << 10;
/// This much fits into any pipe that is ready for writing, so that the write does not block.
const WRITE_BYTES_MAX: usize = 4096;

/// The beginning of an output.
pub(super) struct Kept {
    /// The bytes.
    pub(super) bytes: SecretBytes,
    /// The output was longer.
    pub(super) cut: bool,
}

impl Kept {
    /// No output yet.
    pub(super) fn new() -> Kept {
        Kept { bytes: SecretBytes::with_room(OUTPUT_BYTES), cut: false }
    }

    /// Keeps as many of the bytes as there is room for.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.push(&bytes[..bytes.len().min(room)]);
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChildEnd {
    /// It exited, or a signal from elsewhere ended it.
    Exited(ExitStatus),
    /// It was killed at its time limit.
    TimedOut,
    /// It was killed at its time limit, or because its caller gave up, and has not exited.
    Unkillable,
}

/// How a program ended and what it printed.
pub(super) struct Finished {
    /// How it ended.
    pub(super) end: ChildEnd,
    /// Its standard output.
    pub(super) output: Kept,
    /// Its standard error.
    pub(super) errors: Kept,
}

/// Standard input of a child.
pub(super) enum Input<'a> {
    /// A pipe with these bytes.
    Bytes(&'a [u8]),
    /// A descriptor.
    Descriptor(OwnedFd),
}

/// A program to run.
pub(super) struct Invocation<'a> {
    /// What it does, for users: `mkfs.xfs on /dev/mapper/x`.
    pub(super) label: String,
    /// Path of the executable.
    pub(super) path: &'a Path,
    /// Its arguments. Every user can see them, so never put a secret there.
    pub(super) arguments: &'a [&'a OsStr],
    /// Environment variables besides the locale and the PATH, which they may override.
    pub(super) environment: &'a [(&'a str, OsString)],
    /// Its standard input.
    pub(super) input: Input<'a>,
    /// Its time limit; `None` for no limit.
    pub(super) limit: Option<Duration>,
    /// The mount namespace to run it in, if not the daemon's.
    pub(super) namespace: Option<BorrowedFd<'a>>,
}

impl Invocation<'_> {
    /// Starts the program with pipes for its standard descriptors.
    ///
    /// # Errors
    /// If there is no such program.
    pub(super) fn start(&mut self) -> io::Result<Process> {
        reap();
        // The only place that starts programs.
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

    /// Runs the program to its end.
    ///
    /// # Errors
    /// If it cannot be started, or its output cannot be read.
    pub(super) fn run(self) -> io::Result<Finished> {
        let mut result = None;
        run_all(vec![self], |_, finished| {
            result = Some(finished);
            true
        });
        result.unwrap_or_else(|| Err(io::Error::other("its result was not delivered")))
    }
}

/// Runs invocations in parallel. Hands over each result as it arrives, with the index of its
/// invocation. `ended` returns `true` when it needs no more; the remaining children are then
/// killed.
pub(super) fn run_all(invocations: Vec<Invocation<'_>>, mut ended: impl FnMut(usize, io::Result<Finished>) -> bool) {
    let mut running = Vec::new();
    for (number, mut invocation) in invocations.into_iter().enumerate() {
        match invocation.start() {
            Ok(process) => running.push((number, PipedChild::new(process, &invocation))),
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
            // Without a working poll nothing can be done for any of them.
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
                Ok(Some(end)) => {
                    let (_, one) = running.remove(at);
                    if ended(number, Ok(one.finish(end))) {
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

// ---- running children ----

/// All children that run or hang, by process ID.
static CHILDREN: Mutex<BTreeMap<u32, RunningChild>> = Mutex::new(BTreeMap::new());

struct RunningChild {
    label: String,
    since: Instant,
    /// A child that was given up and not yet reaped.
    stuck: Option<Child>,
}

/// Running children, the oldest first.
pub(super) fn running() -> Vec<RunningProgram> {
    reap();
    let children = CHILDREN.lock();
    let mut list: Vec<RunningProgram> = children
        .iter()
        .map(|(process, RunningChild { label, since, stuck })| RunningProgram {
            label: label.clone(),
            process: *process,
            age: since.elapsed(),
            is_stuck: stuck.is_some(),
        })
        .collect();
    list.sort_by_key(|program| std::cmp::Reverse(program.age));
    list
}

/// Reaps children that were given up and have exited since.
pub(super) fn reap() {
    CHILDREN.lock().retain(|process, RunningChild { label, since, stuck }| {
        let has_ended = stuck.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
        if has_ended {
            info!(
                "{label} (process {process}), which had not reacted to SIGKILL, exited after {} s",
                since.elapsed().as_secs()
            );
        }
        !has_ended
    });
}

/// A started child. Dropping it kills the child and everything that it started.
pub(super) struct Process {
    /// `None` once it has been reaped or given up.
    child: Option<Child>,
    /// Becomes readable when the child exits. `None` before Linux 5.3.
    end: Option<OwnedFd>,
    label: String,
    since: Instant,
    killed: Option<Instant>,
}

impl Process {
    fn new(child: Child, label: String) -> Process {
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        // The child is not reaped yet, so the process ID is still its own.
        let end = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let since = Instant::now();
        CHILDREN.lock().insert(child.id(), RunningChild { label: label.clone(), since, stuck: None });
        Process { child: Some(child), end, label, since, killed: None }
    }

    /// Its process ID.
    pub(super) fn id(&self) -> u32 {
        self.child.as_ref().map(Child::id).unwrap_or_default()
    }

    /// Its pipes. Each can be taken once.
    pub(super) fn pipes(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        match &mut self.child {
            Some(child) => (child.stdin.take(), child.stdout.take(), child.stderr.take()),
            None => (None, None, None),
        }
    }

    /// Logs how long it has been running.
    pub(super) fn log_age(&self) {
        let process = self.id();
        warn!("{} (process {process}) has been running for {} s", self.label, self.since.elapsed().as_secs());
    }

    /// Kills the child and everything that it started, except processes in another session.
    pub(super) fn kill(&mut self) {
        let Some(child) = &mut self.child else { return };
        self.killed.get_or_insert_with(Instant::now);
        let group = i32::try_from(child.id()).map(Pid::from_raw);
        // The child leads its own session, so its process group has its ID. No other group gets
        // that ID before the child is reaped.
        if !group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_ok()) {
            let _ = child.kill();
        }
    }

    /// Waits for the child to exit, for at most `limit`. `None`: the child has not exited and is
    /// given up. What the child started is killed when the child exits.
    pub(super) fn wait(mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let has_ended = match &self.end {
            Some(end) => wait::readable(end.as_fd(), Instant::now() + limit)?,
            // Without a pidfd the wait cannot have a limit.
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
                "{} (process {}) was killed after {seconds} s but does not exit: it waits for a device that does not respond; \
                 continuing without it",
                self.label,
                child.id()
            );
            entry.stuck = Some(child);
        }
    }
}

// ---- a child whose output is read ----

/// A child that runs, with its pipes.
struct PipedChild<'a> {
    process: Process,
    /// The input pipe with the bytes still to write; `None` when all are written.
    input: Option<(ChildStdin, &'a [u8])>,
    output: Output<ChildStdout>,
    errors: Output<ChildStderr>,
    /// Its time limit; once it has been killed, the time at which to give it up.
    deadline: Option<Instant>,
    notice: Option<Instant>,
    late: bool,
    /// Set when the child has exited: until this time its outputs are still read, because something
    /// that it started may hold them open.
    ended: Option<Instant>,
}

/// An output pipe that is being read.
struct Output<P> {
    /// `None` after end of file.
    pipe: Option<P>,
    kept: Kept,
}

impl<P: Read> Output<P> {
    fn new(pipe: Option<P>) -> Output<P> {
        Output { pipe, kept: Kept::new() }
    }

    /// Reads once. Does not block if the pipe is ready.
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

impl<'a> PipedChild<'a> {
    fn new(mut process: Process, invocation: &Invocation<'a>) -> PipedChild<'a> {
        let (input, output, errors) = process.pipes();
        let bytes = match &invocation.input {
            Input::Bytes(bytes) => *bytes,
            Input::Descriptor(_) => &[],
        };
        let now = Instant::now();
        PipedChild {
            process,
            input: input.filter(|_| !bytes.is_empty()).map(|pipe| (pipe, bytes)),
            output: Output::new(output),
            errors: Output::new(errors),
            deadline: invocation.limit.map(|limit| now + limit),
            notice: Some(now + NOTICE),
            late: false,
            ended: None,
        }
    }

    /// The descriptors to wait for.
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

    /// Does everything that is possible without blocking; `ready` says for each of the child's
    /// descriptors whether it is ready. Returns how the child ended, once it has ended.
    fn serve(&mut self, ready: &mut impl Iterator<Item = bool>, buffer: &mut [u8]) -> io::Result<Option<ChildEnd>> {
        let mut take = |there: bool| there && ready.next().unwrap_or(false);
        let told = take(self.input.is_some());
        let says = take(self.output.pipe.is_some());
        let complains = take(self.errors.pipe.is_some());
        let ends = take(self.process.end.is_some() && self.ended.is_none());
        if told {
            self.write_input()?;
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
            // Processes that the child has left behind would hold its pipes open.
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
                return Ok(Some(ChildEnd::Unkillable));
            }
            self.late = true;
            self.process.kill();
            self.deadline = Some(now + KILLED);
            self.notice = None;
        }
        if self.notice.is_some_and(|notice| notice <= now) {
            self.process.log_age();
            self.notice = None;
        }
        Ok(None)
    }

    /// Reaps the child, which is known to have exited.
    fn status(&mut self) -> io::Result<ChildEnd> {
        let Some(mut child) = self.process.child.take() else { return Ok(ChildEnd::Unkillable) };
        CHILDREN.lock().remove(&child.id());
        let status = child.wait()?;
        Ok(if self.late { ChildEnd::TimedOut } else { ChildEnd::Exited(status) })
    }

    fn finish(self, end: ChildEnd) -> Finished {
        if !matches!(end, ChildEnd::Exited(_)) {
            let seconds = self.process.since.elapsed().as_secs();
            warn!("{} was killed after {seconds} s", self.process.label);
        }
        Finished { end, output: self.output.kept, errors: self.errors.kept }
    }

    /// Writes a piece of the input. A program that closes its input early is no error; its exit
    /// status decides.
    fn write_input(&mut self) -> io::Result<()> {
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
    //! Removes what a child must not inherit: blocked signals of the parent's thread (programs do
    //! not expect any), descriptors that a library or the starter of the daemon left open across
    //! exec, the session with its terminal, and the mount namespace, in which the mounts of users
    //! are not visible.
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
        // The descriptor is open as long as the invocation exists, and so until the child has
        // started.
        let namespace = namespace.map(|namespace| namespace.as_raw_fd());
        let before_exec = move || {
            if let Some(namespace) = namespace {
                // SAFETY: a system call on numbers. If it fails, the child runs in the daemon's
                // namespace, where it finds its devices as well.
                unsafe { setns(namespace, CLONE_NEWNS) };
            }
            // SAFETY: a system call on numbers. It marks descriptors and closes none, so their
            // owners are unaffected. Before Linux 5.11 it fails, which changes nothing.
            unsafe { syscall(SYS_close_range, 3, c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
            setsid()?;
            Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?)
        };
        // SAFETY: only async-signal-safe calls are allowed between fork and exec. The closure makes
        // four system calls on values made before the fork, and allocates nothing: an error is an
        // errno.
        unsafe { command.pre_exec(before_exec) };
    }
}

#[cfg(test)]
#[path = "processes_tests.rs"]
mod tests;
