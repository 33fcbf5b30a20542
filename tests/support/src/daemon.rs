//! A `stratisd --sim` process on a private bus, and what the kernel reports about it.
//!
//! The functions wait for messages, lines and exits. They reach a time limit only if something is
//! missing.

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{ChildStderr, Stdio},
    sync::mpsc::{Receiver, channel},
};

use nix::sys::signal::Signal;

use crate::{
    bus::{Bus, LIMIT},
    processes::{Process, command},
};

/// The daemon that cargo built with the running test. It lies beside the folder `deps` of the test.
fn program() -> PathBuf {
    let test = env::current_exe().expect("the kernel knows the path of the test");
    let program = test.parent().and_then(|deps| deps.parent()).expect("the test is below target/").join("stratisd");
    assert!(program.exists(), "cannot find {}: only tests of the package stratisd have a daemon", program.display());
    program
}

impl Bus {
    /// Starts a daemon and waits until it serves. Its log contains only errors.
    pub fn daemon(&self, variables: &[(&str, &str)]) -> Daemon {
        self.start_daemon("error", variables, false)
    }

    /// Starts a daemon whose log the test can read.
    pub fn logging_daemon(&self, level: &str, variables: &[(&str, &str)]) -> Daemon {
        self.start_daemon(level, variables, true)
    }

    /// Starts a daemon on which each slow step on a path that contains `part` takes an hour. The
    /// log says when such a step begins.
    pub fn daemon_slow_on(&self, part: &str) -> Daemon {
        self.logging_daemon("debug", &[("STRATISD_SIM_SLOW_MS", "3600000"), ("STRATISD_SIM_SLOW_PATH", part)])
    }

    fn start_daemon(&self, level: &str, variables: &[(&str, &str)], read_log: bool) -> Daemon {
        let notify = self.directory().join("notify");
        let told = UnixDatagram::bind(&notify).unwrap();
        told.set_read_timeout(Some(LIMIT)).unwrap();
        let mut child = command(&program().to_string_lossy())
            .args(["--sim", "--log-level", level])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("RUST_LOG")
            .envs(variables.iter().copied())
            .stderr(if read_log { Stdio::piped() } else { Stdio::inherit() })
            .spawn()
            .unwrap();
        let log = child.stderr.take().map(lines);
        let mut text = [0; 64];
        let length = told.recv(&mut text).expect("the daemon reports that it is ready");
        assert_eq!(&text[..length], b"READY=1");
        Daemon { process: Process::new(child), log }
    }
}

/// Reads the log on a thread of its own, so that the daemon never waits for the test to read it.
#[allow(clippy::disallowed_methods, reason = "a test; the thread ends with the daemon")]
fn lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // The test may have ended already.
        BufReader::new(stderr).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
    });
    receiver
}

/// A daemon that is killed when the test ends.
pub struct Daemon {
    process: Process,
    log: Option<Receiver<String>>,
}

impl Daemon {
    /// Waits for the next line of the log that contains `part`.
    pub fn line_with(&self, part: &str) -> String {
        let log = self.log.as_ref().expect("a logging daemon");
        loop {
            let line = log.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("the log should say `{part}`"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The number of lines that contain `part` among those that the daemon has written and the test
    /// has not read yet.
    pub fn lines_so_far(&self, part: &str) -> usize {
        self.log.as_ref().expect("a logging daemon").try_iter().filter(|line| line.contains(part)).count()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.status("VmRSS")
    }

    /// The peak of the resident memory in KiB.
    pub fn resident_max_kib(&self) -> u64 {
        self.status("VmHWM")
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let fields: HashMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
        fields[field].split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The number of open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// Asks the daemon to stop.
    pub fn terminate(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Whether the daemon is still running.
    pub fn is_up(&mut self) -> bool {
        self.process.is_up()
    }
}
