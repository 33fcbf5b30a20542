//! The child process that works with libcryptsetup: what it is as a process, and how it talks with the daemon.
//!
//! Its life: it makes itself unreadable for others, reads one request, serves it, answers, and ends. What the library
//! logs goes to standard error. It stops by itself when the daemon has gone: before keys are derived it then ends, and a
//! long work on data ends where the next one can go on. A signal that asks it to end is understood in the same way.

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
    wire::{self, Answer, CHILD, GO, Garbled, Received, Request},
};
use crate::{base::units::Bytes, platform::keyring::Secret};

/// Signals that ask to end. Half of a step is no place for that.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// How much everybody else goes first. Keys are derived for seconds on all processors, a pool's data is worked on for hours;
/// what others ask for meanwhile is done in no time, if only it is let.
const NICENESS: i32 = 10;

/// Serves one request if this program has been started as a child for LUKS2, which every program that uses
/// [`Linux`](super::super::Linux) must ask first: before it reads its arguments or starts a thread. `None`: it has not.
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
    let mut talk = Talk::begin()?;
    // The new daemon waits until those of the one before it have ended.
    let _at_work = orphans::mark();
    let Some((request, secrets)) = talk.request()? else { return Ok(()) };
    match calls::serve(&request, &secrets, &mut talk) {
        Ok((answer, secret)) => talk.say(&answer, secret.as_slice()),
        Err(calls::Fault::Alone) => Ok(()),
        Err(calls::Fault::Talk(fault)) => Err(fault),
        Err(fault) => talk.say(&fault.into_answer(), &[]),
    }
}

/// The way to the daemon.
pub(super) struct Talk {
    input: File,
    output: File,
    signals: SignalFd,
}

impl Talk {
    fn begin() -> io::Result<Talk> {
        // Not before exec: that would make it readable again.
        secrecy::no_core_dumps()?;
        // Where that is not allowed the daemon has said so at its start.
        let _ = secrecy::lock_memory();
        // Without filters of system calls the pages of keys that are freed early are unlocked.
        let _ = secrecy::keep_memory_locked();
        let _ = prctl::set_name(c"stratisd-luks");
        // Threads of the library inherit it.
        let _ = rustix::process::nice(NICENESS);
        let ending = SigSet::from_iter(ENDING);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ending), None)?;
        let signals = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // Raw files: the standard library's own would keep what is read in memory that is not wiped.
        let input = File::from(duplicate(io::stdin().as_fd())?);
        let output = File::from(duplicate(io::stdout().as_fd())?);
        // The library may write to standard output as well.
        rustix::stdio::dup2_stdout(io::stderr().as_fd())?;
        Ok(Talk { input, output, signals })
    }

    /// The one request; `None`: the daemon has gone before it could make it.
    fn request(&mut self) -> io::Result<Option<(Request, Vec<Secret>)>> {
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

    /// Says something.
    pub(super) fn say(&mut self, answer: &Answer, secrets: &[Secret]) -> io::Result<()> {
        self.output.write_all(&wire::frame(answer, &secrets.iter().collect::<Vec<_>>()))
    }

    /// Asks for so much memory, and waits until it may be used. `false`: nobody is there any more, or the daemon does
    /// not want it now.
    pub(super) fn may_use(&mut self, memory: Bytes) -> io::Result<bool> {
        self.say(&Answer::Needs(memory), &[])?;
        let mut word = [0];
        Ok(self.input.read(&mut word)? == 1 && word[0] == GO)
    }

    /// Whether it is to stop: the daemon says so by closing the pipe, which the kernel does for it if it dies; anybody
    /// else by a signal.
    pub(super) fn is_to_stop(&self) -> bool {
        let mut fds = [PollFd::new(&self.input, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        wait::any(&mut fds, Some(Instant::now())).unwrap_or(true)
    }
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}
