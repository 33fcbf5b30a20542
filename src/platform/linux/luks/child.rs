//! The child process that calls libcryptsetup: its process attributes and its connection to the
//! daemon.
//!
//! The child makes its memory unreadable for other processes, reads one request, serves it,
//! answers, and exits. The library's log goes to standard error. If the daemon is gone, the child
//! stops by itself: before a key derivation it exits, and a re-encryption job stops where the next
//! one can resume. Termination signals have the same effect.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::Instant,
};

use nix::sys::{
    prctl,
    signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::event::{PollFd, PollFlags};
use zeroize::Zeroizing;

use super::{
    super::{secrecy, wait},
    calls, orphans,
    wire::{self, CHILD, GO, Garbled, LuksAnswer, LuksRequest, Received},
};
use crate::{base::units::Bytes, platform::keyring::Secret};

/// Termination signals. They are blocked, because a step must not be interrupted.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Gives way to all other processes. Key derivation loads all processors for seconds, and a
/// re-encryption job for hours; other requests need little time, if they get it.
const NICENESS: i32 = 10;

/// Serves one request if this program was started as a LUKS2 child. Every program that uses
/// [`Linux`](super::super::Linux) must call this before it reads arguments or starts threads.
/// `None` if it was not.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != CHILD || arguments.next().is_some() {
        return None;
    }
    Some(match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    })
}

fn serve() -> io::Result<()> {
    let mut connection = DaemonConnection::begin()?;
    // A new daemon waits until the children of its predecessor have exited.
    let _marked = orphans::mark();
    let Some((request, secrets)) = connection.request()? else { return Ok(()) };
    match calls::serve(&request, &secrets, &mut connection) {
        Ok((answer, secret)) => connection.say(&answer, secret.as_slice()),
        Err(calls::LuksFault::Alone) => Ok(()),
        Err(calls::LuksFault::Connection(fault)) => Err(fault),
        Err(fault) => connection.say(&fault.into_answer(), &[]),
    }
}

/// The connection to the daemon.
pub(super) struct DaemonConnection {
    input: File,
    output: File,
    signals: SignalFd,
}

impl DaemonConnection {
    fn begin() -> io::Result<DaemonConnection> {
        // Not before exec, which would make the memory readable again.
        secrecy::no_core_dumps()?;
        // If this fails, the daemon has already logged it at its start.
        let _ = secrecy::lock_memory();
        // If this fails, the pages of freed keys are unlocked early.
        let _ = secrecy::keep_memory_locked();
        let _ = prctl::set_name(c"stratisd-luks");
        // The library's threads inherit it.
        let _ = rustix::process::nice(NICENESS);
        let ending = SigSet::from_iter(ENDING);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ending), None)?;
        let signals = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // Raw files: the buffers of std's own handles would keep secrets in memory that is not
        // wiped.
        let input = File::from(duplicate(io::stdin().as_fd())?);
        let output = File::from(duplicate(io::stdout().as_fd())?);
        // The library may write to standard output, too.
        rustix::stdio::dup2_stdout(io::stderr().as_fd())?;
        Ok(DaemonConnection { input, output, signals })
    }

    /// Reads the request. `None` if the daemon closed the pipe first.
    fn request(&mut self) -> io::Result<Option<(LuksRequest, Vec<Secret>)>> {
        let mut received = Received::new();
        let mut buffer = Zeroizing::new([0; 4096]);
        loop {
            let garbled = |Garbled(what)| io::Error::new(io::ErrorKind::InvalidData, what);
            if let Some(request) = received.next().map_err(garbled)? {
                return Ok(Some(request));
            }
            match self.input.read(&mut buffer[..])? {
                0 => return Ok(None),
                count => received.add(&buffer[..count]),
            }
        }
    }

    /// Sends a message.
    pub(super) fn say(&mut self, answer: &LuksAnswer, secrets: &[Secret]) -> io::Result<()> {
        self.output.write_all(&wire::frame(answer, &secrets.iter().collect::<Vec<_>>()))
    }

    /// Asks the daemon for this much memory and waits for permission. `false` if the daemon is gone
    /// or has cancelled the request.
    pub(super) fn may_use(&mut self, memory: Bytes) -> io::Result<bool> {
        self.say(&LuksAnswer::Needs(memory), &[])?;
        let mut word = [0];
        Ok(self.input.read(&mut word)? == 1 && word[0] == GO)
    }

    /// Whether to stop: the daemon says so by closing the pipe, which also happens when it dies;
    /// anyone else by a signal.
    pub(super) fn is_to_stop(&self) -> bool {
        let mut fds = [PollFd::new(&self.input, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        wait::any(&mut fds, Some(Instant::now())).unwrap_or(true)
    }
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}
