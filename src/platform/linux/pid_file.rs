//! One daemon at a time: a locked file in `/run` that also contains the process ID
//! (`docs/spec/engine/engine-behaviour.md` §1.2). This module knows nothing of what the daemon
//! does.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use log::info;
use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::wait;

/// Lock file of stratisd, in the runtime directory.
pub const DAEMON: &str = "stratisd.pid";
/// Lock file of the early-boot daemon, in the runtime directory.
pub const EARLY_DAEMON: &str = "stratisd-min.pid";
/// Program name of the early-boot daemon.
pub const EARLY_PROGRAM: &str = "stratisd-min";
/// Anyone who can read the file could lock it, so only root may.
const MODE: u32 = 0o600;
/// Longer than any process ID; a longer text is not a process ID.
const TEXT_BYTES_MAX: u64 = 32;
/// How long to wait for an exit before `go_on` is called again.
const LOOK: Duration = Duration::from_secs(1);
/// How long a lock may be held while its file names no process of the right program. A daemon
/// writes its process ID two system calls after it takes the lock.
const STRANGE_LIMIT: Duration = Duration::from_secs(5);
/// The interval at which the file is read meanwhile.
const STRANGE_LOOK: Duration = Duration::from_millis(50);

/// Why the lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another daemon holds it.
    #[error("cannot start: stratisd is already running as process {holder}; stop it first (lock file {})", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
        /// The text of the file: normally the process ID.
        holder: String,
    },
    /// The process that the file names is not the expected program, so it was not interrupted.
    #[error(
        "{} is locked, but process {holder}, which it names, is not {program}; find the process that holds the lock (with \
         lslocks) and stop it",
        path.display()
    )]
    Stranger {
        /// The lock file.
        path: PathBuf,
        /// The text of the file.
        holder: String,
        /// The expected program.
        program: String,
    },
    /// An operation on the file failed.
    #[error("cannot {action} {}; run the daemon as root", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The lock, held until dropped. The file stays.
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
    /// Takes the lock and writes this process's ID into the file.
    ///
    /// # Errors
    /// [`PidFileError::Taken`] if another process holds it; the file is unchanged then.
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

/// Checks that no process holds a lock. Creates the file if there is none, as the holder would.
///
/// # Errors
/// [`PidFileError::Taken`] if a process holds it.
pub fn check_free(path: &Path) -> Result<(), PidFileError> {
    let mut file = open(path)?;
    if !try_lock(&file, path)? {
        return Err(PidFileError::Taken { path: path.to_owned(), holder: holder(&mut file, path)? });
    }
    unlock(&file);
    Ok(())
}

/// Makes another daemon, `program`, release its lock: sends it SIGINT and waits until it exits,
/// without a limit, since it completes what it has begun. Does not keep the lock. Does nothing if
/// no process holds it. Calls `go_on` before each wait, which is short; if `go_on` returns `false`,
/// so does this function.
///
/// The holder writes its process ID after it has taken the lock. So a file that names no process,
/// or another program, is read again for a while.
///
/// # Errors
/// [`PidFileError::Stranger`] if the file still names no process that runs the program when the
/// time is over. No process is interrupted then.
pub fn take_over(path: &Path, program: &str, mut go_on: impl FnMut() -> bool) -> Result<bool, PidFileError> {
    let mut file = open(path)?;
    let mut told: Option<(Pid, OwnedFd)> = None;
    let mut strange_until = None;
    loop {
        if try_lock(&file, path)? {
            unlock(&file);
            return Ok(true);
        }
        if !go_on() {
            return Ok(false);
        }
        let holder = holder(&mut file, path)?;
        let pid = holder.trim().parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| told.as_ref().is_none_or(|(told, _)| told != pid)) {
            let process = interrupt(pid, program).map_err(error("interrupt the process named in", path))?;
            told = process.map(|process| (pid, process));
        }
        match &told {
            // The kernel releases the locks of a process when it exits.
            Some((pid, process)) => {
                strange_until = None;
                let look = Instant::now() + LOOK;
                let has_exited = wait::readable(process.as_fd(), look);
                if has_exited.map_err(error("wait for the process named in", path))? {
                    info!("{program}, process {pid}, has ended; this daemon takes over its pools");
                    told = None;
                }
            }
            None => {
                let until = *strange_until.get_or_insert_with(|| Instant::now() + STRANGE_LIMIT);
                if Instant::now() >= until {
                    return Err(PidFileError::Stranger { path: path.to_owned(), holder, program: program.to_owned() });
                }
                wait::pause(STRANGE_LOOK);
            }
        }
    }
}

/// Sends SIGINT to a process that runs this program. The pidfd keeps naming the same process even if
/// its ID is reused, and becomes readable when it exits. `None`: the process has exited, or runs
/// another program, since the file is stale and the ID was reused.
fn interrupt(pid: Pid, program: &str) -> io::Result<Option<OwnedFd>> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(None),
        other => other?,
    };
    // With the pidfd open, the process checked here is the one signalled below, or has exited.
    match runs(pid, program) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(ended) if ended.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    match pidfd_send_signal(&process, Signal::INT) {
        Ok(()) => Ok(Some(process)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a process runs a program of this name. The kernel marks the link if the executable was
/// replaced, or left behind in an initramfs.
fn runs(pid: Pid, program: &str) -> io::Result<bool> {
    let executable = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))?;
    let name = executable.file_name().unwrap_or_default().to_string_lossy();
    Ok(name.strip_suffix(" (deleted)").unwrap_or(&name) == program)
}

/// Opens a lock file. An older daemon may have made it readable for all users, who could then lock
/// it, so the mode is corrected.
fn open(path: &Path) -> Result<File, PidFileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    let file = options.open(path).map_err(error("open", path))?;
    let mode = file.metadata().map_err(error("stat", path))?.permissions().mode();
    if mode & 0o777 != MODE {
        fchmod(&file, Mode::from_raw_mode(MODE)).map_err(|errno| error("set the mode of", path)(errno.into()))?;
    }
    Ok(file)
}

/// Returns `false` if another process holds the lock.
fn try_lock(file: &File, path: &Path) -> Result<bool, PidFileError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(error("lock", path)(errno.into())),
    }
}

/// Unlocks explicitly instead of by closing the file: until its exec, a child that is just being
/// started has the file open too.
fn unlock(file: &File) {
    // This fails only if nothing is locked.
    let _ = flock(file, FlockOperation::Unlock);
}

fn holder(file: &mut File, path: &Path) -> Result<String, PidFileError> {
    let mut text = Vec::new();
    file.rewind().map_err(error("read", path))?;
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
    };

    use rustix::process::Pid;

    use super::{PidFile, PidFileError, check_free, runs, take_over};

    fn path() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pid");
        (directory, path)
    }

    /// Starts another process that runs `before`, takes the lock, and runs `then`.
    fn holder(path: &Path, before: &str, then: &str) -> Child {
        // A stand-in for another daemon, not a program of the engine.
        // `env` restores SIGINT: a shell cannot trap a signal that was ignored when it started, as
        // in the background.
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
    fn only_one_process_holds_the_lock() {
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
    fn taking_over_a_free_lock_leaves_it_free() {
        let (_directory, path) = path();
        assert!(take_over(&path, "bash", || panic!("nothing to wait for")).unwrap());
        check_free(&path).unwrap();
        let held = PidFile::take(&path).unwrap();
        assert!(matches!(check_free(&path), Err(PidFileError::Taken { .. })));
        drop(held);
    }

    /// With a file that every user could read, any user could hold the lock and keep the daemon
    /// from starting.
    #[test]
    fn the_lock_file_is_for_root_only() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (_directory, path) = path();
        drop(PidFile::take(&path).unwrap());
        assert_eq!(mode(&path), 0o600, "mode of a new file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(PidFile::take(&path).unwrap());
        assert_eq!(mode(&path), 0o600, "mode of an existing file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        take_over(&path, "bash", || true).unwrap();
        assert_eq!(mode(&path), 0o600, "mode of another daemon's file");
    }

    /// The process ID in the file may be stale and belong to any process by now.
    #[test]
    fn another_program_is_not_interrupted() {
        let (_directory, path) = path();
        let then = "trap 'echo -n hit > $0.hit' INT; echo ready; while :; do sleep 0.1; done";
        let mut child = holder(&path, "", then);
        let error = take_over(&path, "stratisd-min", || true).unwrap_err();
        let PidFileError::Stranger { holder, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*holder, child.id().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!path.with_extension("pid.hit").exists());
    }

    #[test]
    fn the_holder_is_interrupted_and_waited_for() {
        let (_directory, path) = path();
        // On SIGINT the process first does something and then exits; the lock must stay taken until
        // then.
        let then = "trap \"echo -n done > $0.done; kill $!; exit 0\" INT; echo ready; wait";
        let mut child = holder(&path, "sleep 1000 > /dev/null &", then);
        assert!(take_over(&path, "bash", || true).unwrap());
        assert_eq!(fs::read_to_string(path.with_extension("pid.done")).unwrap(), "done");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn waiting_for_a_holder_can_be_given_up() {
        let (_directory, path) = path();
        let mut child = holder(&path, "", "trap '' INT; echo ready; exec sleep 1000");
        // The shell has printed "ready" and is about to become `sleep`.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        while !runs(pid, "sleep").unwrap() {
            std::thread::yield_now();
        }
        // `go_on` is called once before the holder is interrupted, and again when it has not ended.
        let mut asked = 0;
        let go_on = || {
            asked += 1;
            asked < 3
        };
        assert!(!take_over(&path, "sleep", go_on).unwrap());
        assert_eq!(asked, 3);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_invalid_process_id_interrupts_nobody() {
        let (_directory, path) = path();
        let held = PidFile::take(&path).unwrap();
        // 0 and negative numbers would mean process groups, 1 is init.
        for text in ["", "0", "-1", "1", "x", "99999999999999999999999999999999999999"] {
            fs::write(&path, text).unwrap();
            let mut asked = 0;
            let go_on = || {
                asked += 1;
                asked < 3
            };
            assert!(!take_over(&path, "bash", go_on).unwrap(), "{text}");
        }
        drop(held);
    }

    /// stratisd failed to start when it looked between the lock and the process ID of a stratisd-min
    /// that was just starting.
    #[test]
    fn a_holder_may_write_its_process_id_late() {
        let (_directory, path) = path();
        let then = "echo -n > $0; trap \"kill $!; exit 0\" INT; echo ready; wait";
        let mut child = holder(&path, "sleep 1000 > /dev/null &", then);
        let mut asked = 0;
        let go_on = || {
            asked += 1;
            if asked == 3 {
                fs::write(&path, child.id().to_string()).unwrap();
            }
            true
        };
        assert!(take_over(&path, "bash", go_on).unwrap());
        assert!(child.wait().unwrap().success());
    }
}
