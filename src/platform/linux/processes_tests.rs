//! Processes: what they inherit, what is kept of their output, and how they are killed.

use std::{ffi::OsStr, fs, path::Path, time::Duration};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::*;
use crate::platform::linux::programs::complaint;

fn shell(script: &str) -> Finished {
    run(script, &[], None)
}

fn run(script: &str, input: &[u8], limit: Option<Duration>) -> Finished {
    let arguments = [OsStr::new("-c"), OsStr::new(script)];
    invocation(Path::new("/bin/sh"), &arguments, input, limit).run().unwrap()
}

fn invocation<'a>(
    path: &'a Path,
    arguments: &'a [&'a OsStr],
    input: &'a [u8],
    limit: Option<Duration>,
) -> Invocation<'a> {
    let (label, input) = ("test".to_owned(), Input::Bytes(input));
    Invocation { label, path, arguments, environment: &[], input, limit, namespace: None }
}

fn status(ended: &Finished) -> ExitStatus {
    match ended.end {
        ChildEnd::Exited(status) => status,
        other => panic!("{other:?}"),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn output_and_errors_are_kept_apart() {
    let ended = shell("echo out; echo err >&2; exit 3");
    assert_eq!((text(&ended.output.bytes), text(&ended.errors.bytes)), ("out\n", "err\n"));
    assert_eq!(complaint(status(&ended), &ended.errors.bytes), "exit status 3: err");
}

#[test]
fn long_output_is_read_whole_and_kept_truncated() {
    let ended = shell("yes | head -c 3000000 >&2; yes | head -c 3000000");
    assert!(status(&ended).success());
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
fn a_death_by_signal_is_reported() {
    let ended = shell("kill -9 $$");
    assert_eq!(complaint(status(&ended), &ended.errors.bytes), "killed by signal 9");
}

#[test]
fn the_child_inherits_no_signals_or_environment() {
    // SIGUSR1 and SIGINT are blocked in the parent and must not be in the child.
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
    // The file is not close-on-exec, as a careless library would open it.
    let file = fs::File::open("/dev/null").unwrap();
    let careless = rustix::io::dup(&file).unwrap();
    assert!(!rustix::io::fcntl_getfd(&careless).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    // The shell has closed the descriptor of its directory listing by the time it tests each entry.
    let ended = shell("for fd in /proc/$$/fd/*; do [ ! -e $fd ] || echo ${fd##*/}; done");
    assert_eq!(text(&ended.output.bytes), "0\n1\n2\n");
}

#[test]
fn a_child_has_a_session_without_terminal() {
    let ended = shell(
        "read -r pid name state parent group session terminal rest < /proc/$$/stat
        [ $pid = $group ] && [ $pid = $session ] && [ $terminal = 0 ]",
    );
    assert!(status(&ended).success());
}

#[test]
fn much_input_and_output_pass_each_other() {
    let input = vec![b'x'; 300_000];
    let ended = run("cat", &input, None);
    assert!(*ended.output.bytes == *input && status(&ended).success());
    // One program does not read its input; another exits before it has read all of it.
    assert!(status(&run("exit 0", &input, None)).success());
    assert_eq!(text(&run("head -c 3", &input, None).output.bytes), "xxx");
}

#[test]
fn a_timeout_kills_the_whole_process_group() {
    // The shell and its children, which hold the pipes, run without end.
    let ended = run("echo begun; sleep infinity & sleep infinity", b"", Some(Duration::from_millis(50)));
    assert_eq!((ended.end, text(&ended.output.bytes)), (ChildEnd::TimedOut, "begun\n"));
}

/// Such a child would hold a pipe open and block the caller indefinitely.
#[test]
fn children_of_a_program_end_with_it() {
    let ended = shell("sleep infinity & echo $!");
    assert!(status(&ended).success());
    let stat = format!("/proc/{}/stat", text(&ended.output.bytes).trim());
    // The child has been killed. The loop ends when the child is gone or a zombie.
    while fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z")) {
        std::thread::yield_now();
    }
}

#[test]
fn the_first_answer_ends_parallel_programs() {
    let scripts = ["sleep infinity", "echo second; exit 3", "sleep infinity"];
    let arguments = scripts.map(|script| [OsStr::new("-c"), OsStr::new(script)]);
    let invocations =
        || arguments.iter().map(|arguments| invocation(Path::new("/bin/sh"), arguments, &[], None)).collect();
    let mut seen = Vec::new();
    run_all(invocations(), |number, ended| {
        let ended = ended.unwrap();
        seen.push((number, status(&ended).code(), text(&ended.output.bytes).to_owned()));
        true
    });
    assert_eq!(seen, [(1, Some(3), "second\n".to_owned())]);
    // A program that cannot be started is reported and does not stop the others.
    let nothing: [&OsStr; 0] = [];
    let mut list: Vec<Invocation<'_>> = vec![invocation(Path::new("/nonexistent"), &nothing, &[], None)];
    list.push(invocation(Path::new("/bin/sh"), &arguments[1], &[], None));
    let mut seen = Vec::new();
    run_all(list, |number, ended| {
        seen.push((number, ended.is_ok()));
        false
    });
    assert_eq!(seen, [(0, false), (1, true)]);
}

#[test]
fn running_programs_are_listed() {
    let arguments = [OsStr::new("-c"), OsStr::new("read line")];
    let mut invocation = Invocation {
        label: "a test that waits".to_owned(),
        ..invocation(Path::new("/bin/sh"), &arguments, b"x", None)
    };
    let is_listed = || running().iter().any(|program| program.label == "a test that waits" && !program.is_stuck);
    let process = invocation.start().unwrap();
    assert!(is_listed());
    drop(process);
    assert!(!is_listed());
}

/// A child that waited for a device in the kernel used to block its worker for ever.
#[test]
fn an_unkillable_child_is_reaped_later() {
    let arguments = [OsStr::new("-c"), OsStr::new("sleep infinity")];
    let mut process = invocation(Path::new("/bin/sh"), &arguments, &[], None).start().unwrap();
    let pid = process.child.as_ref().unwrap().id();
    // The parent never sees the child exit, however often the parent kills it.
    let (silent, _open) = io::pipe().unwrap();
    process.end = Some(silent.into());
    process.kill();
    process.killed = Some(Instant::now() - KILLED);
    drop(process);
    assert!(CHILDREN.lock()[&pid].stuck.is_some());
    // The child is in fact dead, so the next listing reaps it.
    while running().iter().any(|program| program.process == pid) {
        std::thread::yield_now();
    }
    assert!(!CHILDREN.lock().contains_key(&pid));
}

#[test]
fn a_missing_program_is_an_error() {
    assert!(invocation(Path::new("/nonexistent"), &[], &[], None).run().is_err());
}
