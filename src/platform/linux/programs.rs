//! Programs that the engine has run: where they lie, and running one to its end.
//!
//! The only place that starts processes. A program gets no input, the C locale, a fixed PATH, no signal blocked, a
//! process group of its own (so that Ctrl-C on the daemon's terminal does not reach it), and of the daemon's
//! descriptors only the pipes for its output.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    io::Read,
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use super::wait;
use crate::platform::{Error, Program, Result};

/// Where programs are looked for, in this order. A distribution may give another list, joined by colons, in
/// `EXECUTABLES_PATHS` when it builds the daemon. The PATH of the daemon's own environment is not used.
const PLACES: &str = match option_env!("EXECUTABLES_PATHS") {
    Some(places) => places,
    None => "/usr/sbin:/sbin:/usr/bin:/bin",
};
/// What is kept of each output of a program; it may say more.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// What is told of it when it fails.
const COMPLAINT_CHARS_MAX: usize = 400;

/// The programs, found.
pub(super) struct Programs {
    paths: HashMap<Program, PathBuf>,
}

impl Programs {
    /// Finds every program.
    ///
    /// # Errors
    /// [`Error::Missing`] names all that are not there.
    pub(super) fn find() -> Result<Programs> {
        Programs::find_in(PLACES)
    }

    fn find_in(places: &str) -> Result<Programs> {
        let mut paths = HashMap::new();
        let mut missing = Vec::new();
        for program in Program::ALL {
            match places.split(':').map(|place| Path::new(place).join(program.name())).find(|path| is_executable(path))
            {
                Some(path) => drop(paths.insert(program, path)),
                None => missing.push(program.name()),
            }
        }
        if missing.is_empty() {
            return Ok(Programs { paths });
        }
        Err(Error::Missing(format!(
            "{} not found in {places}; install the packages that bring them (xfsprogs, thin-provisioning-tools)",
            missing.join(", ")
        )))
    }

    /// Runs a program to its end and gives its standard output.
    pub(super) fn run(&self, program: Program, arguments: &[&str]) -> Result<String> {
        let failed = |what| Error::Program { program, what };
        // `find` has found every program or failed.
        let path = self.paths.get(&program).ok_or_else(|| failed("not found at start-up".to_owned()))?;
        let ended = execute(path, arguments).map_err(|fault| failed(format!("could not be run: {fault}")))?;
        if !ended.status.success() {
            return Err(failed(complaint(ended.status, &ended.errors.bytes)));
        }
        if ended.output.cut {
            let text = one_line(&ended.output.bytes);
            return Err(Error::Unexpected { what: "the far too long output of a program", text });
        }
        Ok(String::from_utf8_lossy(&ended.output.bytes).into_owned())
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The first bytes of an output.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// There was more.
    cut: bool,
}

/// How a program ended and what it said.
struct Ended {
    status: ExitStatus,
    output: Kept,
    errors: Kept,
}

fn execute(path: &Path, arguments: &[impl AsRef<OsStr>]) -> io::Result<Ended> {
    // The one place where programs are started.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", PLACES)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    set_apart::child_of(&mut command);
    let mut child = command.spawn()?;
    let read = drain(&mut child);
    if read.is_err() {
        // Nobody reads what it says any more; it must not stay behind, waiting to say it.
        let _ = child.kill();
    }
    // In any case, so that it does not stay as a zombie.
    let status = child.wait()?;
    let (output, errors) = read?;
    Ok(Ended { status, output, errors })
}

mod set_apart {
    //! What a child would inherit and must not: signals that the parent's thread blocks (programs do not expect any
    //! to be blocked), and descriptors that some library, or whoever started the daemon, left open across an exec.
    #![allow(unsafe_code)]

    use std::{os::unix::process::CommandExt, process::Command};

    use nix::{
        libc::{CLOSE_RANGE_CLOEXEC, SYS_close_range, c_uint, syscall},
        sys::signal::{SigSet, SigmaskHow, sigprocmask},
    };

    pub(super) fn child_of(command: &mut Command) {
        let none = SigSet::empty();
        let before_exec = move || {
            // SAFETY: a system call on numbers. It marks descriptors and closes none, so that nobody who owns one is
            // wronged. Before Linux 5.11 it fails, which leaves things as they would be without it.
            unsafe { syscall(SYS_close_range, 3, c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
            Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?)
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes two system calls,
        // on values made before the fork, and allocates nothing: an error is an errno.
        unsafe { command.pre_exec(before_exec) };
    }
}

/// An output that is being read.
struct Output<P> {
    /// `None` after its end.
    pipe: Option<P>,
    kept: Kept,
}

impl<P: Read> Output<P> {
    fn new(pipe: Option<P>) -> Output<P> {
        Output { pipe, kept: Kept::default() }
    }

    /// Reads once, which does not wait when the pipe is ready.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                let room = OUTPUT_BYTES_MAX - self.kept.bytes.len();
                self.kept.cut |= count > room;
                self.kept.bytes.extend_from_slice(&buffer[..count.min(room)]);
            }
            Err(interrupted) if interrupted.kind() == io::ErrorKind::Interrupted => {}
            Err(failed) => return Err(failed),
        }
        Ok(())
    }
}

/// Reads both outputs to their ends, side by side, so that the child never waits for a full pipe. Without a deadline:
/// formatting a slow disk takes as long as it takes.
fn drain(child: &mut Child) -> io::Result<(Kept, Kept)> {
    let mut output = Output::new(child.stdout.take());
    let mut errors = Output::new(child.stderr.take());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (output_ready, errors_ready) = match (&output.pipe, &errors.pipe) {
            (None, None) => return Ok((output.kept, errors.kept)),
            // With one left, its read may as well do the waiting.
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some(output), Some(errors)) => wait::either(output.as_fd(), errors.as_fd())?,
        };
        if output_ready {
            output.take(&mut buffer)?;
        }
        if errors_ready {
            errors.take(&mut buffer)?;
        }
    }
}

/// How it ended and what it said, for people.
fn complaint(status: ExitStatus, errors: &[u8]) -> String {
    let end = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    };
    match one_line(errors) {
        said if said.is_empty() => end,
        said => format!("{end}: {said}"),
    }
}

/// The words of a text on one line, cut to a readable length.
fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(COMPLAINT_CHARS_MAX) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

    use super::{COMPLAINT_CHARS_MAX, Ended, OUTPUT_BYTES_MAX, Programs, complaint, execute, one_line};
    use crate::platform::{Error, Program};

    fn shell(script: &str) -> Ended {
        execute(Path::new("/bin/sh"), &["-c", script]).unwrap()
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn output_and_errors_are_kept_apart() {
        let ended = shell("echo out; echo err >&2; exit 3");
        assert_eq!((text(&ended.output.bytes), text(&ended.errors.bytes)), ("out\n", "err\n"));
        assert_eq!(complaint(ended.status, &ended.errors.bytes), "exit status 3: err");
    }

    #[test]
    fn much_output_on_both_is_read_to_the_end_and_cut() {
        let ended = shell("yes | head -c 3000000 >&2; yes | head -c 3000000");
        assert!(ended.status.success());
        for kept in [&ended.output, &ended.errors] {
            assert!(kept.cut);
            assert_eq!(kept.bytes.len(), OUTPUT_BYTES_MAX);
        }
    }

    #[test]
    fn output_of_just_the_bound_is_not_cut() {
        let ended = shell(&format!("yes | head -c {OUTPUT_BYTES_MAX}"));
        assert!(!ended.output.cut);
        assert_eq!(ended.output.bytes.len(), OUTPUT_BYTES_MAX);
    }

    #[test]
    fn a_death_by_signal_is_told() {
        let ended = shell("kill -9 $$");
        assert_eq!(complaint(ended.status, &ended.errors.bytes), "killed by signal 9");
    }

    #[test]
    fn complaints_are_one_readable_line() {
        assert_eq!(one_line(b"  a\n\tb\x1b\x07 c \n\n"), "a b c");
        let long = one_line("ü".repeat(1000).as_bytes());
        assert_eq!(long.chars().count(), COMPLAINT_CHARS_MAX + 2);
        assert_eq!(one_line(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn the_child_is_set_apart() {
        // SIGUSR1 and SIGINT are blocked where the child is started, and must not be in the child.
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        blocked.add(Signal::SIGINT);
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before)).unwrap();
        let ended =
            shell("grep SigBlk /proc/self/status; echo $LC_ALL; echo ${HOME-none}; pwd; readlink /proc/$$/fd/0");
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).unwrap();
        assert_eq!(text(&ended.output.bytes), "SigBlk:\t0000000000000000\nC\nnone\n/\n/dev/null\n");
    }

    #[test]
    fn the_child_has_only_three_descriptors() {
        // One that is not close-on-exec, as a careless library would open it.
        let file = fs::File::open("/dev/null").unwrap();
        let careless = rustix::io::dup(&file).unwrap();
        assert!(!rustix::io::fcntl_getfd(&careless).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        // The descriptor through which the shell lists them is closed again when it looks at each.
        let ended = shell("for fd in /proc/$$/fd/*; do [ ! -e $fd ] || echo ${fd##*/}; done");
        assert_eq!(text(&ended.output.bytes), "0\n1\n2\n");
    }

    #[test]
    fn the_child_leads_its_own_process_group() {
        let ended = shell("read -r pid name state parent group rest < /proc/$$/stat; [ $pid = $group ]");
        assert!(ended.status.success());
    }

    #[test]
    fn programs_are_found_in_order_and_all_missing_ones_named() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let places = format!("{}:{}", first.path().display(), second.path().display());
        for program in Program::ALL {
            let path = second.path().join(program.name());
            fs::write(&path, "#!/bin/sh\necho $0 \"$@\"; [ $# = 2 ]\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Neither a directory nor a file without the right is a program.
        fs::create_dir(first.path().join("mkfs.xfs")).unwrap();
        fs::write(first.path().join("xfs_db"), "").unwrap();
        let programs = Programs::find_in(&places).unwrap();
        let said = programs.run(Program::XfsDb, &["-x", "uuid  a"]).unwrap();
        assert_eq!(said, format!("{}/xfs_db -x uuid  a\n", second.path().display()));
        let error = programs.run(Program::XfsDb, &["one"]).unwrap_err();
        assert!(matches!(&error, Error::Program { what, .. } if what == "exit status 1"), "{error:?}");

        fs::remove_file(second.path().join("thin_check")).unwrap();
        fs::remove_file(second.path().join("mkfs.xfs")).unwrap();
        let Err(Error::Missing(text)) = Programs::find_in(&places) else { panic!("all found") };
        assert!(text.starts_with("mkfs.xfs, thin_check not found in"), "{text}");
    }

    #[test]
    fn an_unusable_program_is_an_error() {
        assert!(execute(Path::new("/nonexistent"), &["x"]).is_err());
    }
}
