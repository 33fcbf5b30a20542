//! Programs: where they lie, starting one, and running one to its end.
//!
//! The only place that starts processes. A program gets the C locale, a fixed PATH, no signal blocked, a session of its
//! own (so that Ctrl-C on the daemon's terminal does not reach it, and it has no terminal to ask on), and of the daemon's
//! descriptors only the pipes for what it is told and what it says. What passes through them may be secret and is wiped.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs, io,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustix::event::{PollFd, PollFlags};
use zeroize::Zeroizing;

use super::{secret_bytes::SecretBytes, wait};
use crate::platform::{Error, Program, ProgramEnd, Result};

/// Where programs are looked for, in this order. A distribution may give another list, joined by colons, in
/// `EXECUTABLES_PATHS` when it builds the daemon. The PATH of the daemon's own environment is not used.
pub(super) const PLACES: &str = match option_env!("EXECUTABLES_PATHS") {
    Some(places) => places,
    None => "/usr/sbin:/sbin:/usr/bin:/bin",
};
/// What is kept of each output of a program; it may say more.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Room for an output before it has to move.
const OUTPUT_BYTES: usize = 8 << 10;
/// What is told of it when it fails.
const COMPLAINT_CHARS_MAX: usize = 400;
/// So much fits into any pipe that is ready to be written to, so that the write does not wait.
const WRITE_BYTES_MAX: usize = 4096;
/// How long the outputs of a program that was killed are waited for: its own children may hold them open.
const KILLED_LIMIT: Duration = Duration::from_secs(2);

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
            match find(program.name(), places) {
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
        let failed = |end, what| Error::Program { program, end, what };
        // `find` has found every program or failed.
        let path =
            self.paths.get(&program).ok_or_else(|| failed(ProgramEnd::NotRun, "not found at start-up".to_owned()))?;
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let task = Task { path, arguments: &arguments, environment: &[], input: &[], limit: None };
        let ended = task.run().map_err(|fault| failed(ProgramEnd::NotRun, format!("could not be run: {fault}")))?;
        if !ended.status.success() {
            let end = match (ended.status.code(), ended.status.signal()) {
                (Some(status), _) => ProgramEnd::Status(status),
                (None, signal) => ProgramEnd::Signal(signal.unwrap_or_default()),
            };
            return Err(failed(end, complaint(ended.status, &ended.errors.bytes)));
        }
        if ended.output.cut {
            let text = one_line(&ended.output.bytes);
            return Err(Error::Unexpected { what: "the far too long output of a program", text });
        }
        Ok(String::from_utf8_lossy(&ended.output.bytes).into_owned())
    }
}

/// The first executable file of that name in places joined by colons.
pub(super) fn find(name: &str, places: &str) -> Option<PathBuf> {
    places.split(':').map(|place| Path::new(place).join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The first bytes of an output.
pub(super) struct Kept {
    /// The bytes.
    pub(super) bytes: SecretBytes,
    /// There was more.
    pub(super) cut: bool,
}

impl Kept {
    /// Nothing yet.
    pub(super) fn new() -> Kept {
        Kept { bytes: SecretBytes::with_room(OUTPUT_BYTES), cut: false }
    }

    /// Keeps as much of it as there is room for.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_BYTES_MAX - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.push(&bytes[..bytes.len().min(room)]);
    }
}

/// How a program ended and what it said.
pub(super) struct Ended {
    /// How.
    pub(super) status: ExitStatus,
    /// Its standard output.
    pub(super) output: Kept,
    /// Its standard error.
    pub(super) errors: Kept,
    /// It was killed because its time was up.
    pub(super) late: bool,
}

/// A program to be run.
pub(super) struct Task<'a> {
    /// Where it lies.
    pub(super) path: &'a Path,
    /// What it is given. Everybody can see them: never a secret.
    pub(super) arguments: &'a [&'a OsStr],
    /// Variables beside the locale and the PATH; these may be set to other values.
    pub(super) environment: &'a [(&'a str, OsString)],
    /// What it is told on standard input.
    pub(super) input: &'a [u8],
    /// How long it may take; then it is killed with all that it started.
    pub(super) limit: Option<Duration>,
}

impl Task<'_> {
    /// Starts it, with a pipe for each of the three standard descriptors. The caller waits for its end.
    ///
    /// # Errors
    /// When there is no such program.
    pub(super) fn start(&self) -> io::Result<Child> {
        // The one place where programs are started.
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new(self.path);
        command
            .args(self.arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", PLACES)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        set_apart::child_of(&mut command);
        command.spawn()
    }

    /// Runs it to its end.
    pub(super) fn run(&self) -> io::Result<Ended> {
        let deadline = self.limit.map(|limit| Instant::now() + limit);
        let mut child = self.start()?;
        let mut pipes = Pipes::new(&mut child, self.input);
        let mut in_time = pipes.serve(deadline);
        if !matches!(in_time, Ok(true)) {
            // Nobody waits for what it says any more; it must not stay behind, waiting to say it.
            kill(&mut child);
        }
        if matches!(in_time, Ok(false)) {
            let last = pipes.serve(Some(Instant::now() + KILLED_LIMIT));
            in_time = last.map(|_| false);
        }
        // In any case, so that it does not stay as a zombie.
        let status = child.wait()?;
        Ok(Ended { late: !in_time?, status, output: pipes.output.kept, errors: pipes.errors.kept })
    }
}

/// Kills a program with all that it started (and that did not set itself apart in turn).
pub(super) fn kill(child: &mut Child) {
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    // It leads its own session and so a group of that number, which is nobody else's as long as it is not waited for.
    if !group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_ok()) {
        let _ = child.kill();
    }
}

mod set_apart {
    //! What a child would inherit and must not: signals that the parent's thread blocks (programs do not expect any
    //! to be blocked), descriptors that some library, or whoever started the daemon, left open across an exec, and the
    //! session with its terminal.
    #![allow(unsafe_code)]

    use std::{os::unix::process::CommandExt, process::Command};

    use nix::{
        libc::{CLOSE_RANGE_CLOEXEC, SYS_close_range, c_uint, syscall},
        sys::signal::{SigSet, SigmaskHow, sigprocmask},
        unistd::setsid,
    };

    pub(super) fn child_of(command: &mut Command) {
        let none = SigSet::empty();
        let before_exec = move || {
            // SAFETY: a system call on numbers. It marks descriptors and closes none, so that nobody who owns one is
            // wronged. Before Linux 5.11 it fails, which leaves things as they would be without it.
            unsafe { syscall(SYS_close_range, 3, c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
            setsid()?;
            Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?)
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes three system calls,
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
        Output { pipe, kept: Kept::new() }
    }

    /// Reads once, which does not wait when the pipe is ready.
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

/// The three pipes of a program.
struct Pipes<'a> {
    /// With what is still to be said; `None` when all is.
    input: Option<(std::process::ChildStdin, &'a [u8])>,
    output: Output<std::process::ChildStdout>,
    errors: Output<std::process::ChildStderr>,
}

impl<'a> Pipes<'a> {
    fn new(child: &mut Child, input: &'a [u8]) -> Pipes<'a> {
        let given = child.stdin.take().filter(|_| !input.is_empty());
        Pipes {
            input: given.map(|pipe| (pipe, input)),
            output: Output::new(child.stdout.take()),
            errors: Output::new(child.stderr.take()),
        }
    }

    /// Writes and reads all to the ends, side by side, so that neither ever waits for a full pipe. `false`: time is up.
    /// Without a deadline, formatting a slow disk takes as long as it takes.
    fn serve(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        let mut buffer = Zeroizing::new(vec![0; 64 << 10]);
        while self.output.pipe.is_some() || self.errors.pipe.is_some() {
            let input = self.input.as_ref().map(|(pipe, _)| PollFd::new(pipe, PollFlags::OUT));
            let output = self.output.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
            let errors = self.errors.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
            let (with_input, with_output) = (usize::from(input.is_some()), usize::from(output.is_some()));
            let mut fds: Vec<PollFd<'_>> = [input, output, errors].into_iter().flatten().collect();
            if !wait::any(&mut fds, deadline)? {
                return Ok(false);
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if with_input == 1 && ready[0] {
                self.tell()?;
            }
            if with_output == 1 && ready[with_input] {
                self.output.take(&mut buffer)?;
            }
            if ready.get(with_input + with_output).is_some_and(|ready| *ready) {
                self.errors.take(&mut buffer)?;
            }
        }
        Ok(true)
    }

    /// Writes a piece. A program that does not want to hear it is no error: how it ends tells.
    fn tell(&mut self) -> io::Result<()> {
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

/// How it ended and what it said, for people.
pub(super) fn complaint(status: ExitStatus, errors: &[u8]) -> String {
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
pub(super) fn one_line(text: &[u8]) -> String {
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
    use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

    use super::{COMPLAINT_CHARS_MAX, Ended, OUTPUT_BYTES_MAX, Programs, Task, complaint, one_line};
    use crate::platform::{Error, Program};

    fn shell(script: &str) -> Ended {
        told(script, &[], None)
    }

    fn told(script: &str, input: &[u8], limit: Option<Duration>) -> Ended {
        let arguments = [OsStr::new("-c"), OsStr::new(script)];
        let path = Path::new("/bin/sh");
        Task { path, arguments: &arguments, environment: &[], input, limit }.run().unwrap()
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
        let ended = shell("grep SigBlk /proc/self/status; echo $LC_ALL; echo ${HOME-none}; pwd; cat");
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).unwrap();
        assert_eq!(text(&ended.output.bytes), "SigBlk:\t0000000000000000\nC\nnone\n/\n");
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
    fn the_child_leads_its_own_session_without_a_terminal() {
        let ended = shell(
            "read -r pid name state parent group session terminal rest < /proc/$$/stat
            [ $pid = $group ] && [ $pid = $session ] && [ $terminal = 0 ]",
        );
        assert!(ended.status.success());
    }

    #[test]
    fn much_input_and_output_pass_each_other() {
        let input = vec![b'x'; 300_000];
        let ended = told("cat", &input, None);
        assert!(*ended.output.bytes == *input && !ended.late);
        // One that does not listen, and one that has gone before all is said.
        assert!(told("exit 0", &input, None).status.success());
        assert_eq!(text(&told("head -c 3", &input, None).output.bytes), "xxx");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_what_it_started() {
        // Without end, and so are its children, which hold the pipes.
        let ended = told("echo begun; sleep infinity & sleep infinity", b"", Some(Duration::from_millis(50)));
        assert!(ended.late);
        assert_eq!(complaint(ended.status, b""), "killed by signal 9");
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
        let task = Task { path: Path::new("/nonexistent"), arguments: &[], environment: &[], input: &[], limit: None };
        assert!(task.run().is_err());
    }
}
