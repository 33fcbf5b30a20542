//! One daemon at a time: the lock on a file in `/run` that also tells its process number
//! (`docs/spec/engine/engine-behaviour.md` §1.2). Knows nothing of what the daemon does.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::{
        fd::AsFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::wait;

/// The daemon's file.
pub const DAEMON: &str = "/run/stratisd.pid";
/// That of the small daemon of early boot.
pub const EARLY_DAEMON: &str = "/run/stratisd-min.pid";
/// The program that this daemon is.
pub const EARLY_PROGRAM: &str = "stratisd-min";
/// A lock needs no more than that the file can be read, so nobody but root may.
const MODE: u32 = 0o600;
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
    /// The process that the file names is not the one that should be asked to end.
    #[error(
        "{} is locked, but process `{holder}`, which it names, is not {program}; find the process that holds the lock (as with \
         lslocks) and stop it",
        path.display()
    )]
    Stranger {
        /// The lock file.
        path: PathBuf,
        /// What is written in it.
        holder: String,
        /// The program that was expected.
        program: String,
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

/// Makes another daemon, which is this program, give up its lock: sends it SIGINT and waits until it has ended, at most for
/// `limit`. The lock is not kept. If nobody holds it, there is nothing to do.
///
/// # Errors
/// [`PidFileError::Stays`] when the lock is still held in the end; [`PidFileError::Stranger`] when the file names another
/// process, which is left alone.
pub fn take_over(path: &Path, program: &str, limit: Duration) -> Result<(), PidFileError> {
    let mut file = open(path)?;
    if try_lock(&file, path)? {
        unlock(&file);
        return Ok(());
    }
    let holder = holder(&mut file, path)?;
    let deadline = Instant::now() + limit;
    if let Some(pid) = holder.trim().parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) {
        match interrupt(pid, program, deadline).map_err(error("interrupt the process named in", path))? {
            Interrupted::Yes => {}
            Interrupted::Stranger => {
                return Err(PidFileError::Stranger { path: path.to_owned(), holder, program: program.to_owned() });
            }
        }
    }
    // The locks of a process go with its descriptors, when it ends.
    if try_lock(&file, path)? {
        unlock(&file);
        return Ok(());
    }
    Err(PidFileError::Stays { path: path.to_owned(), holder })
}

/// What came of an interruption.
enum Interrupted {
    /// The process was asked to end, or has ended.
    Yes,
    /// It is another program: the number is out of date, and has been given to it.
    Stranger,
}

/// Sends SIGINT to a process that runs this program and waits for its end. Through a descriptor, which names that very
/// process even if its number is given to another one meanwhile, and becomes readable when it ends.
fn interrupt(pid: Pid, program: &str, deadline: Instant) -> io::Result<Interrupted> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        // Ended since it was looked up.
        Err(Errno::SRCH) => return Ok(Interrupted::Yes),
        other => other?,
    };
    // After the descriptor: it is this process that is looked at and then signalled, or one that has ended.
    match runs(pid, program) {
        Ok(true) => {}
        Ok(false) => return Ok(Interrupted::Stranger),
        Err(ended) if ended.kind() == io::ErrorKind::NotFound => return Ok(Interrupted::Yes),
        Err(error) => return Err(error),
    }
    match pidfd_send_signal(&process, Signal::INT) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno.into()),
    }
    // In time or not: the lock tells.
    wait::readable(process.as_fd(), deadline).map(|_| Interrupted::Yes)
}

/// Whether a process runs a program of this name. Its file may have been replaced or left behind in an initial ramdisk, which
/// the kernel marks in the link.
fn runs(pid: Pid, program: &str) -> io::Result<bool> {
    let executable = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))?;
    let name = executable.file_name().unwrap_or_default().to_string_lossy();
    Ok(name.strip_suffix(" (deleted)").unwrap_or(&name) == program)
}

/// Opens a lock file. One that an older daemon has made so that everybody could read it, and hold its lock, is closed to them.
fn open(path: &Path) -> Result<File, PidFileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    let file = options.open(path).map_err(error("open", path))?;
    let mode = file.metadata().map_err(error("look at", path))?.permissions().mode();
    if mode & 0o777 != MODE {
        fchmod(&file, Mode::from_raw_mode(MODE)).map_err(|errno| error("set the mode of", path)(errno.into()))?;
    }
    Ok(file)
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
        os::unix::fs::PermissionsExt,
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
        take_over(&path, "bash", Duration::from_secs(3600)).unwrap();
        PidFile::take(&path).unwrap();
    }

    /// With a file that everybody could read, everybody could hold the lock and keep the daemon from starting.
    #[test]
    fn nobody_else_can_hold_the_lock() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (_directory, path) = path();
        drop(PidFile::take(&path).unwrap());
        assert_eq!(mode(&path), 0o600, "a new file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(PidFile::take(&path).unwrap());
        assert_eq!(mode(&path), 0o600, "one that was there");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        take_over(&path, "bash", Duration::ZERO).unwrap();
        assert_eq!(mode(&path), 0o600, "that of another daemon");
    }

    /// The number in the file may be out of date and belong to any process by now.
    #[test]
    fn another_program_is_not_interrupted() {
        let (_directory, path) = path();
        let then = "trap 'echo -n hit > $0.hit' INT; echo ready; while :; do sleep 0.1; done";
        let mut child = holder(&path, "", then);
        let error = take_over(&path, "stratisd-min", Duration::from_secs(3600)).unwrap_err();
        let PidFileError::Stranger { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*holder, child.id().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!path.with_extension("pid.hit").exists());
    }

    #[test]
    fn the_holder_is_interrupted_and_waited_for() {
        let (_directory, path) = path();
        // On SIGINT it does something first, and then ends: the lock must not be had before.
        let then = "trap \"echo -n done > $0.done; kill $!; exit 0\" INT; echo ready; wait";
        let mut child = holder(&path, "sleep 1000 > /dev/null &", then);
        take_over(&path, "bash", Duration::from_secs(3600)).unwrap();
        assert_eq!(fs::read_to_string(path.with_extension("pid.done")).unwrap(), "done");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_holder_that_stays_is_named() {
        let (_directory, path) = path();
        let mut child = holder(&path, "", "trap '' INT; echo ready; exec sleep 1000");
        let error = take_over(&path, "sleep", Duration::ZERO).unwrap_err();
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
            assert!(matches!(take_over(&path, "bash", Duration::ZERO), Err(PidFileError::Stays { .. })), "{text}");
        }
        drop(held);
    }
}
