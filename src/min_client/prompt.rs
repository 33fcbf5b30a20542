//! Asks for a passphrase: one line of standard input, without echo if that is a terminal. The bytes
//! are wiped when they are not needed any more.
//!
//! Must never know: what the passphrase is for.

use std::io::{self, Write};

use rustix::{
    io::Errno,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr},
};
use zeroize::Zeroizing;

/// Longest line. A key has at most 64 bytes, but the daemon says so itself.
const LINE_BYTES_MAX: usize = 4096;

/// Why there is no passphrase. Some texts are known to scripts.
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
/// The lines differ, or are as in [`once`].
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
    out.write_all(prompt.as_bytes()).and_then(|()| out.flush()).map_err(PromptError::Write)?;
    let _quiet = Quiet::begin();
    line()
}

/// Reads a line byte by byte: nothing after it is taken, and no other buffer has its bytes.
fn line() -> Result<PassphraseLine, PromptError> {
    // The buffer never grows, which would leave a copy behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    loop {
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

/// Switches the echo of the terminal off until it is dropped; a newline is still shown.
struct Quiet(Termios);

impl Quiet {
    /// `None` if standard input is no terminal.
    fn begin() -> Option<Quiet> {
        let before = tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &quiet).ok()?;
        Some(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that has gone needs no echo.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}
