//! The child's connection to the daemon: standard input and output, and the signals that end the
//! child.
//!
//! This module knows the frames, but not what the requests mean.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::event::{PollFd, PollFlags};
use zeroize::Zeroizing;

use super::{
    fault::{self, LuksFault},
    wire::{self, GO, Garbled, LuksAnswer, LuksRequest, Received},
};
use crate::{
    base::units::Bytes,
    platform::{keyring::Secret, linux::wait},
};

/// Termination signals. They are blocked, because a step must not be interrupted.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// The connection to the daemon.
pub(super) struct DaemonConnection {
    input: File,
    output: File,
    signals: SignalFd,
}

impl DaemonConnection {
    /// Takes over standard input and output, and the termination signals.
    pub(super) fn open() -> io::Result<DaemonConnection> {
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
    pub(super) fn request(&mut self) -> io::Result<Option<(LuksRequest, Vec<Secret>)>> {
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

    /// Asks the daemon for this much memory and waits for permission. `false` if the daemon has
    /// ended or has cancelled the request.
    pub(super) fn may_use(&mut self, memory: Bytes) -> io::Result<bool> {
        self.say(&LuksAnswer::Needs(memory), &[])?;
        let mut word = [0];
        Ok(self.input.read(&mut word)? == 1 && word[0] == GO)
    }

    /// Whether to stop. The daemon requests a stop by closing the pipe, which also happens when it
    /// dies; other processes send a signal.
    pub(super) fn is_to_stop(&self) -> bool {
        let mut fds = [PollFd::new(&self.input, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        wait::any(&mut fds, Some(Instant::now())).unwrap_or(true)
    }
}

/// Waits for permission to use memory for key derivation. Cheap derivations need none.
pub(super) fn may_use(connection: &mut DaemonConnection, memory: Bytes) -> fault::Result<()> {
    if memory == Bytes(0) || connection.may_use(memory).map_err(LuksFault::Connection)? {
        Ok(())
    } else {
        Err(LuksFault::Alone)
    }
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}
