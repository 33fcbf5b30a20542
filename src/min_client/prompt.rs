//! Asks for a passphrase: reads one line of standard input, without echo if that is a terminal. The
//! bytes are wiped when they are no longer needed. If a signal ends the program during a prompt,
//! the echo is switched on first.
//!
//! Must never know: what the passphrase is for.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    flag,
    low_level::{self, pipe},
};
use zeroize::Zeroizing;

/// Longest line. A key has at most 64 bytes; the daemon refuses longer ones.
const LINE_BYTES_MAX: usize = 4096;

/// Why there is no passphrase. Scripts know some of the texts.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PromptError {
    #[error("Password provided was empty")]
    Empty,
    #[error("Passphrases did not match")]
    Different,
    #[error("the passphrase has more than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("cannot write the prompt")]
    Write(#[source] io::Error),
    #[error("cannot read the passphrase from standard input")]
    Read(#[source] io::Error),
    #[error("cannot make a pipe for the passphrase")]
    Pipe(#[source] io::Error),
}

type PassphraseLine = Zeroizing<Vec<u8>>;

/// Asks once.
///
/// # Errors
/// The line is empty, too long or cannot be read.
pub fn once() -> Result<PassphraseLine, PromptError> {
    not_empty(ask("Enter passphrase followed by return: ")?)
}

/// Asks twice, and compares.
///
/// # Errors
/// The lines differ, or [`once`] would fail.
pub fn twice() -> Result<PassphraseLine, PromptError> {
    let first = ask("Enter passphrase followed by return: ")?;
    let second = ask("Verify passphrase: ")?;
    if first != second { Err(PromptError::Different) } else { not_empty(first) }
}

fn not_empty(line: PassphraseLine) -> Result<PassphraseLine, PromptError> {
    if line.is_empty() { Err(PromptError::Empty) } else { Ok(line) }
}

fn ask(prompt: &str) -> Result<PassphraseLine, PromptError> {
    let mut out = io::stdout();
    let quiet = Quiet::begin();
    out.write_all(prompt.as_bytes()).and_then(|()| out.flush()).map_err(PromptError::Write)?;
    line(quiet.as_ref())
}

/// Reads a line byte by byte, so that nothing after it is consumed and no other buffer holds its
/// bytes.
fn line(quiet: Option<&Quiet>) -> Result<PassphraseLine, PromptError> {
    // The buffer never grows: growing would leave a copy behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    loop {
        if let Some(quiet) = quiet {
            quiet.wait_for_input().map_err(|errno| PromptError::Read(errno.into()))?;
        }
        let mut byte = Zeroizing::new([0]);
        match rustix::io::read(rustix::stdio::stdin(), &mut *byte) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(PromptError::Read(errno.into())),
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) if line.len() == LINE_BYTES_MAX => return Err(PromptError::TooLong),
            Ok(_) => line.push(byte[0]),
        }
    }
    Ok(line)
}

/// The signals that end the program.
struct Endings {
    /// Whether a signal ends the program at once, because no prompt is under way.
    at_once: Arc<AtomicBool>,
    /// Becomes readable when a signal has come during a prompt.
    come: UnixStream,
    /// The number of that signal.
    number: Arc<AtomicUsize>,
}

/// `None` if the signals cannot be caught. Then they end the program at once.
static ENDINGS: LazyLock<Option<Endings>> = LazyLock::new(|| Endings::catch().ok());

impl Endings {
    fn catch() -> io::Result<Endings> {
        let (come, write) = UnixStream::pair()?;
        let (at_once, number) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            flag::register_conditional_default(signal, Arc::clone(&at_once))?;
            flag::register_usize(signal, Arc::clone(&number), signal.unsigned_abs() as usize)?;
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Endings { at_once, come, number })
    }
}

/// Switches the echo of the terminal off until it is dropped; a newline is still shown.
struct Quiet(Termios);

impl Quiet {
    /// `None` if standard input is not a terminal.
    fn begin() -> Option<Quiet> {
        let before = tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        Quiet::at_once(false);
        let done = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &quiet);
        // If that failed, dropping this makes signals end the program at once again.
        let quiet = Quiet(before);
        done.ok().map(|()| quiet)
    }

    /// Sets whether a signal ends the program at once.
    fn at_once(at_once: bool) {
        if let Some(endings) = &*ENDINGS {
            endings.at_once.store(at_once, Ordering::SeqCst);
        }
    }

    /// Waits for input. If a signal comes first, switches the echo on and ends the program by it.
    fn wait_for_input(&self) -> Result<(), Errno> {
        let Some(endings) = &*ENDINGS else { return Ok(()) };
        loop {
            let stdin = rustix::stdio::stdin();
            let mut both = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&endings.come, PollFlags::IN)];
            match poll(&mut both, None) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
                Ok(_) if both[1].revents().is_empty() => return Ok(()),
                Ok(_) => {}
            }
            self.restore();
            // The default of each of these signals is to end the process.
            let _ = low_level::emulate_default_handler(endings.number.load(Ordering::SeqCst) as i32);
            return Err(Errno::INTR);
        }
    }

    fn restore(&self) {
        // A terminal that is closed needs no echo.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.restore();
        Quiet::at_once(true);
    }
}
