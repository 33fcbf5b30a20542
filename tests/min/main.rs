//! `stratisd-min` and `stratis-min` as processes, on simulated machines with private runtime
//! directories: the bytes of every request and answer, every command with its output and exit
//! status, hostile clients, and the hand-over to `stratisd`. A socket plays the service manager, so
//! every wait is for an event.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]

mod commands;
mod hand_over;
mod hostile;
mod wire;

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{ChildStderr, Stdio},
};

use support::processes::{LIMIT, Process, command};

const STRATISD_MIN: &str = env!("CARGO_BIN_EXE_stratisd-min");
const STRATIS_MIN: &str = env!("CARGO_BIN_EXE_stratis-min");
const STRATISD: &str = env!("CARGO_BIN_EXE_stratisd");
/// In place of /run.
const RUN_DIRECTORY: &str = "STRATISD_SIM_RUN_DIR";

/// A runtime directory, and the level of the logs.
struct Rig(tempfile::TempDir, &'static str);

/// A daemon, the socket on which it reports its state, and its log.
struct Daemon {
    process: Process,
    told: UnixDatagram,
    stderr: BufReader<ChildStderr>,
}

impl Rig {
    fn new() -> Rig {
        Rig(tempfile::tempdir().unwrap(), "info")
    }

    /// With a log that names each request. The rest of the log is not read, so there must be few
    /// requests.
    fn with_requests_in_the_log() -> Rig {
        Rig(tempfile::tempdir().unwrap(), "debug")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("stratisd/stratisd-min-jsonrpc")
    }

    /// Starts a program as a daemon on a simulated machine. `name` is used in file names.
    fn start(&self, program: &str, name: &str, variables: &[(&str, &str)]) -> Daemon {
        self.start_with(program, &[], name, variables)
    }

    fn start_with(&self, program: &str, arguments: &[&str], name: &str, variables: &[(&str, &str)]) -> Daemon {
        let path = self.path(name);
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(LIMIT)).unwrap();
        let mut child = command(program)
            .args(["--sim", "--log-level", self.1])
            .args(arguments)
            .env(RUN_DIRECTORY, self.0.path())
            .env("NOTIFY_SOCKET", &path)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Daemon { process: Process::new(child), told, stderr }
    }

    /// Starts `stratisd-min` and waits until it is ready.
    fn ready(&self) -> Daemon {
        self.ready_with(&[])
    }

    fn ready_with(&self, variables: &[(&str, &str)]) -> Daemon {
        let daemon = self.start(STRATISD_MIN, "notify-min", variables);
        assert_eq!(daemon.next_state(), "READY=1");
        daemon
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// The answer to a request, up to the end of the connection.
    fn ask(&self, request: &str) -> String {
        read_all(&self.sent(request, &[]))
    }

    fn sent(&self, request: &str, descriptors: &[BorrowedFd<'_>]) -> UnixStream {
        let stream = self.connect();
        send(&stream, request.as_bytes(), descriptors);
        stream
    }

    fn ask_with_key(&self, request: &str, key: &[u8]) -> String {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(key).unwrap();
        read_all(&self.sent(request, &[reader.as_fd()]))
    }

    /// Runs `stratis-min`: exit status, standard output, standard error.
    fn run(&self, arguments: &[&str], input: &str) -> (i32, String, String) {
        let mut child = command(STRATIS_MIN)
            .args(arguments)
            .env(RUN_DIRECTORY, self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

impl Daemon {
    /// The next state that it reports, other than that it needs more time.
    fn next_state(&self) -> String {
        loop {
            let mut text = [0; 64];
            let length = self.told.recv(&mut text).expect("the daemon did not report its state");
            let state = String::from_utf8(text[..length].to_vec()).unwrap();
            if !state.starts_with("EXTEND_TIMEOUT_USEC=") {
                return state;
            }
        }
    }

    /// Waits for a line of its log with all these words.
    fn wait_for_line(&mut self, words: &[&str]) {
        let mut line = String::new();
        while !words.iter().all(|word| line.contains(word)) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "the daemon should say {words:?}");
        }
    }

    /// Waits until it exits. Returns its status and the rest of its log.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.process.end();
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (status.code(), rest)
    }
}

fn read_all(mut stream: &UnixStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8(answer).unwrap()
}

fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = sendmsg(stream, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// The libraries that a program loads.
fn libraries(program: &Path) -> String {
    let output = command("ldd").arg(program).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn early_programs_do_not_load_libdbus() {
    assert!(libraries(Path::new(STRATISD)).contains("libdbus"), "the check does not find libdbus");
    for program in [STRATISD_MIN, STRATIS_MIN] {
        let libraries = libraries(Path::new(program));
        assert!(libraries.contains("libc.so") && !libraries.contains("libdbus"), "{program}: {libraries}");
    }
}

#[test]
fn the_watchdog_hears_of_its_threads() {
    let rig = Rig::new();
    let daemon = rig.ready_with(&[("WATCHDOG_USEC", "200000")]);
    (0..3).for_each(|_| assert_eq!(daemon.next_state(), "WATCHDOG=1"));
    // A thread is not stuck because a client does not read.
    let _silent = rig.connect();
    (0..3).for_each(|_| assert_eq!(daemon.next_state(), "WATCHDOG=1"));
    daemon.process.signal(nix::sys::signal::Signal::SIGTERM);
    while daemon.next_state() != "STOPPING=1" {}
    assert_eq!(daemon.end().0, Some(0));
}
