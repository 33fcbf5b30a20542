//! One daemon at a time: the lock on a file in `/run` that also tells its process number
//! (`spec/engine/engine-behaviour.md` §1.2). Knows nothing of what the daemon does.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::wait;

/// The daemon's file.
pub const DAEMON: &str = "/run/stratisd.pid";
/// That of the small daemon of early boot.
pub const EARLY_DAEMON: &str = "/run/stratisd-min.pid";
/// A process number is shorter; what is longer is none.
const TEXT_BYTES_MAX: u64 = 32;

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another daemon has it.
    #[error("stratisd is running already, with process number `{holder}`; stop it first ({})", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
        /// What is written in it: the supposed process number.
        holder: String,
    },
    /// The holder did not give the lock up.
    #[error("the daemon of early boot, process number `{holder}`, did not end; stop it ({})", path.display())]
    Stays {
        /// The lock file.
        path: PathBuf,
        /// What is written in it.
        holder: String,
    },
    /// The file cannot be used.
    #[error("could not {action} {}; is the daemon run as root?", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The lock; held until dropped. The file stays.
#[derive(Debug)]
pub struct PidFile {
    locked: File,
}

impl Drop for PidFile {
    fn drop(&mut self) {
        unlock(&self.locked);
    }
}

impl PidFile {
    /// Takes the lock and writes this process's number into the file.
    ///
    /// # Errors
    /// [`PidFileError::Taken`] if another process has it; nothing is changed then.
    pub fn take(path: &Path) -> Result<PidFile, PidFileError> {
        let mut file = open(path)?;
        if !try_lock(&file, path)? {
            return Err(PidFileError::Taken { path: path.to_owned(), holder: holder(&mut file, path)? });
        }
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", process::id())
        };
        write().map_err(error("write", path))?;
        Ok(PidFile { locked: file })
    }
}

/// Makes another daemon give up its lock: sends it SIGINT and waits until it has ended, at most for `limit`. The lock
/// is not kept. If nobody holds it, there is nothing to do.
///
/// # Errors
/// [`PidFileError::Stays`] when the lock is still held in the end.
pub fn take_over(path: &Path, limit: Duration) -> Result<(), PidFileError> {
    let mut file = open(path)?;
    if try_lock(&file, path)? {
        unlock(&file);
        return Ok(());
    }
    let holder = holder(&mut file, path)?;
    let deadline = Instant::now() + limit;
    if let Some(pid) = holder.trim().parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) {
        interrupt(pid, deadline).map_err(error("interrupt the process named in", path))?;
    }
    // The locks of a process go with its descriptors, when it ends.
    if try_lock(&file, path)? {
        unlock(&file);
        return Ok(());
    }
    Err(PidFileError::Stays { path: path.to_owned(), holder })
}

/// Sends SIGINT and waits for the end of the process. Through a descriptor, which names that very process even if its
/// number is given to another one meanwhile, and becomes readable when it ends.
fn interrupt(pid: Pid, deadline: Instant) -> io::Result<()> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        // Ended since it was looked up.
        Err(Errno::SRCH) => return Ok(()),
        other => other?,
    };
    match pidfd_send_signal(&process, Signal::INT) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    // In time or not: the lock tells.
    wait::readable(process.as_fd(), deadline).map(drop)
}

fn open(path: &Path) -> Result<File, PidFileError> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(error("open", path))
}

/// `false`: another has it.
fn try_lock(file: &File, path: &Path) -> Result<bool, PidFileError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(error("lock", path)(errno.into())),
    }
}

/// Not left to the closing of the file: a child that is just being started has it open too, until its exec.
fn unlock(file: &File) {
    // Fails for what is no lock only; then there is nothing to give up.
    let _ = flock(file, FlockOperation::Unlock);
}

fn holder(file: &mut File, path: &Path) -> Result<String, PidFileError> {
    let mut text = Vec::new();
    file.take(TEXT_BYTES_MAX).read_to_end(&mut text).map_err(error("read", path))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PidFileError {
    let path = path.to_owned();
    move |source| PidFileError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead, BufReader},
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use super::{PidFile, PidFileError, take_over};

    fn path() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pid");
        (directory, path)
    }

    /// Another process that does `before`, takes the lock, and does `then`.
    fn holder(path: &Path, before: &str, then: &str) -> Child {
        // A stand-in for another daemon, not a program of the engine.
        // A shell cannot trap a signal that was ignored when it began, as it is in what runs in the background.
        #[allow(clippy::disallowed_methods)]
        let mut child = Command::new("/usr/bin/env")
            .args([
                "--default-signal=INT",
                "/bin/bash",
                "-c",
                &format!("{before} exec 9<>$0; flock 9; echo -n $$ > $0; {then}"),
            ])
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    #[test]
    fn there_is_one_holder() {
        let (_directory, path) = path();
        fs::write(&path, "an older and longer text").unwrap();
        let first = PidFile::take(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        let error = PidFile::take(&path).unwrap_err();
        let PidFileError::Taken { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*holder, std::process::id().to_string());
        drop(first);
        PidFile::take(&path).unwrap();
    }

    #[test]
    fn a_lock_that_nobody_holds_is_taken_over_and_left() {
        let (_directory, path) = path();
        take_over(&path, Duration::from_secs(3600)).unwrap();
        PidFile::take(&path).unwrap();
    }

    #[test]
    fn the_holder_is_interrupted_and_waited_for() {
        let (_directory, path) = path();
        // On SIGINT it does something first, and then ends: the lock must not be had before.
        let then = "trap \"echo -n done > $0.done; kill $!; exit 0\" INT; echo ready; wait";
        let mut child = holder(&path, "sleep 1000 > /dev/null &", then);
        take_over(&path, Duration::from_secs(3600)).unwrap();
        assert_eq!(fs::read_to_string(path.with_extension("pid.done")).unwrap(), "done");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_holder_that_stays_is_named() {
        let (_directory, path) = path();
        let mut child = holder(&path, "", "trap '' INT; echo ready; exec sleep 1000");
        let error = take_over(&path, Duration::ZERO).unwrap_err();
        let PidFileError::Stays { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*holder, child.id().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_text_that_is_no_process_number_interrupts_nobody() {
        let (_directory, path) = path();
        let held = PidFile::take(&path).unwrap();
        // 0 and negative numbers would mean whole groups, 1 the first process.
        for text in ["", "0", "-1", "1", "x", "99999999999999999999999999999999999999"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(take_over(&path, Duration::ZERO), Err(PidFileError::Stays { .. })), "{text}");
        }
        drop(held);
    }
}
