//! Programs: how they are found, and what is done with their output. [`super::processes`] runs
//! them.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    os::{
        fd::BorrowedFd,
        unix::{fs::MetadataExt, fs::PermissionsExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
};

use super::{
    database,
    limits::{self, Activity},
    processes::{ChildEnd, Input, Invocation, PLACES},
};
use crate::{
    base::units::Bytes,
    platform::{Error, Program, ProgramEnd, Result},
};

/// This executable, even after a newer one has replaced it: the daemon starts it as its own child.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";
/// Length limit of an error text of a program.
const COMPLAINT_CHARS_MAX: usize = 400;

/// The programs that were found.
pub(super) struct Programs {
    paths: HashMap<Program, PathBuf>,
}

impl Programs {
    /// Finds every program.
    ///
    /// # Errors
    /// [`Error::Missing`] names all missing programs.
    pub(super) fn find() -> Result<Programs> {
        Programs::find_in(PLACES)
    }

    fn find_in(places: &str) -> Result<Programs> {
        Programs::find_these(&Program::ALL, places)
    }

    fn find_these(programs: &[Program], places: &str) -> Result<Programs> {
        let mut paths = HashMap::new();
        let mut missing = Vec::new();
        for program in programs.iter().copied() {
            match find(program.name(), places) {
                Some(path) => drop(paths.insert(program, path)),
                None => missing.push(program.name()),
            }
        }
        if missing.is_empty() {
            return Ok(Programs { paths });
        }
        Err(Error::Missing(format!(
            "cannot find {} in {places}; install the packages that contain them (xfsprogs, thin-provisioning-tools)",
            missing.join(", ")
        )))
    }

    /// Runs a program to its end and returns its standard output. `namespace`: the mount namespace
    /// to run it in.
    pub(super) fn run(
        &self,
        program: Program,
        arguments: &[&str],
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<String> {
        let failed = |end, what| Error::Program { program, end, what };
        // `find` either found every program or failed.
        let not_found = || {
            failed(
                ProgramEnd::NotRun,
                "it was not found when the daemon started; install it and restart the daemon".to_owned(),
            )
        };
        let path = self.paths.get(&program).ok_or_else(not_found)?;
        let devices: Vec<&str> = arguments.iter().copied().filter(|argument| argument.starts_with("/dev/")).collect();
        let size = devices.iter().map(|device| size_of(Path::new(device))).max().unwrap_or_default();
        let limit = limits::of(Activity::Run(program), size);
        let label = match devices[..] {
            [] => program.name().to_owned(),
            _ => format!("{} on {}", program.name(), devices.join(", ")),
        };
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let input = Input::Bytes(&[]);
        let invocation = Invocation { label, path, arguments: &arguments, environment: &[], input, limit, namespace };
        let ended = invocation.run().map_err(|fault| failed(ProgramEnd::NotRun, format!("cannot run it: {fault}")))?;
        let status = match ended.end {
            ChildEnd::Exited(status) => status,
            ChildEnd::TimedOut => return Err(failed(ProgramEnd::TimedOut, limits::timed_out(limit))),
            ChildEnd::Unkillable => return Err(failed(ProgramEnd::Unkillable, limits::unkillable(limit))),
        };
        if !status.success() {
            let end = match (status.code(), status.signal()) {
                (Some(status), _) => ProgramEnd::Status(status),
                (None, signal) => ProgramEnd::Signal(signal.unwrap_or_default()),
            };
            return Err(failed(end, complaint(status, &ended.errors.bytes)));
        }
        if ended.output.cut {
            let text = one_line(&ended.output.bytes);
            return Err(Error::Unexpected { what: "the output of a program, which is too long", text });
        }
        Ok(String::from_utf8_lossy(&ended.output.bytes).into_owned())
    }
}

/// Runs a program to its end and returns its standard output, for programs that are not the daemon
/// and need no other program.
///
/// # Errors
/// [`Error::Missing`] if the program is not installed; [`Error::Program`] if it fails.
pub fn run_program(program: Program, arguments: &[&str]) -> Result<String> {
    Programs::find_these(&[program], PLACES)?.run(program, arguments, None)
}

/// Size of the block device at a path.
fn size_of(device: &Path) -> Bytes {
    fs::metadata(device).map_or(Bytes::ZERO, |found| database::size(database::number(found.rdev())))
}

/// The first executable file with this name in a colon-separated list of directories.
pub(super) fn find(name: &str, places: &str) -> Option<PathBuf> {
    places.split(':').map(|place| Path::new(place).join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// How a program ended and what it printed, for users.
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

/// The words of a text on one line, truncated to a readable length.
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
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{COMPLAINT_CHARS_MAX, Programs, one_line};
    use crate::platform::{Error, Program, ProgramEnd};

    #[test]
    fn complaints_are_one_readable_line() {
        assert_eq!(one_line(b"  a\n\tb\x1b\x07 c \n\n"), "a b c");
        let long = one_line("ü".repeat(1000).as_bytes());
        assert_eq!(long.chars().count(), COMPLAINT_CHARS_MAX + 2);
        assert_eq!(one_line(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn all_missing_programs_are_named() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let places = format!("{}:{}", first.path().display(), second.path().display());
        for program in Program::ALL {
            let path = second.path().join(program.name());
            fs::write(&path, "#!/bin/sh\necho $0 \"$@\"; [ $# = 2 ]\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Directories and files without execute permission do not count.
        fs::create_dir(first.path().join("mkfs.xfs")).unwrap();
        fs::write(first.path().join("xfs_db"), "").unwrap();
        let programs = Programs::find_in(&places).unwrap();
        let said = programs.run(Program::XfsDb, &["-x", "uuid  a"], None).unwrap();
        assert_eq!(said, format!("{}/xfs_db -x uuid  a\n", second.path().display()));
        let error = programs.run(Program::XfsDb, &["one"], None).unwrap_err();
        let is_status_1 = |what: &str, end| what == "exit status 1" && end == ProgramEnd::Status(1);
        assert!(matches!(&error, Error::Program { what, end, .. } if is_status_1(what, *end)), "{error:?}");

        fs::remove_file(second.path().join("thin_check")).unwrap();
        fs::remove_file(second.path().join("mkfs.xfs")).unwrap();
        let Err(Error::Missing(text)) = Programs::find_in(&places) else { panic!("all found") };
        assert!(text.starts_with("cannot find mkfs.xfs, thin_check in"), "{text}");
    }
}
