//! A bus of its own and one `stratisd --sim` on it, as processes, and what the kernel tells of the daemon.
//!
//! Waits are for messages, lines and exits; their limits are only reached when something is missing. Knows nothing of
//! what is called.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use dbus::channel::Channel;
use tempfile::TempDir;

use crate::broker;

/// When something that has not come is taken for lost.
pub const LIMIT: Duration = Duration::from_secs(120);

#[allow(clippy::disallowed_methods, reason = "the processes belong to the test; there is no other way to start them")]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// A child that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The programs that are the system bus somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `dbus-daemon`: the reference implementation; Debian, SUSE, RHEL 7.
    Daemon,
    /// `dbus-broker`: Fedora, RHEL 8 and later, Arch.
    Broker,
}

impl Program {
    /// The one that `STRATIS_TEST_BUS` names; the reference without.
    pub fn of_environment() -> Program {
        match std::env::var("STRATIS_TEST_BUS").as_deref() {
            Ok("dbus-broker") => Program::Broker,
            Ok("dbus-daemon") | Err(_) => Program::Daemon,
            Ok(other) => panic!("STRATIS_TEST_BUS is dbus-daemon or dbus-broker, not {other}"),
        }
    }
}

/// What is set otherwise than on a system bus.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Longest message. dbus-broker has only that of the specification.
    pub message_bytes: Option<u32>,
    /// What the bus holds because somebody does not read: dbus-daemon for each that sends, dbus-broker for each user.
    pub held_bytes: Option<u32>,
}

/// A bus of our own, with the limits of a system bus. Everybody may do everything on it.
pub struct Bus {
    /// Where clients connect.
    pub address: String,
    pub program: Program,
    _process: Process,
    _controller: Option<Channel>,
    directory: TempDir,
}

impl Bus {
    /// Starts the one that the environment names.
    pub fn start() -> Bus {
        Bus::with_limits(Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(limits: Limits) -> Bus {
        Bus::of(Program::of_environment(), limits)
    }

    /// Starts one of these.
    pub fn of(program: Program, limits: Limits) -> Bus {
        match program {
            Program::Daemon => Bus::reference(limits),
            Program::Broker => {
                let directory = TempDir::new().unwrap();
                let socket = directory.path().join("socket");
                let (child, controller) = broker::start(&socket, directory.path(), limits);
                Bus {
                    address: format!("unix:path={}", socket.display()),
                    program,
                    _process: Process(child),
                    _controller: Some(controller),
                    directory,
                }
            }
        }
    }

    fn reference(limits: Limits) -> Bus {
        let directory = TempDir::new().unwrap();
        let named = [("max_message_size", limits.message_bytes), ("max_incoming_bytes", limits.held_bytes)];
        let limit = |(name, bytes): (&str, Option<u32>)| Some(format!(r#"<limit name="{name}">{}</limit>"#, bytes?));
        let limits: String = named.into_iter().filter_map(limit).collect();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="mandatory">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
  {limits}
</busconfig>"#,
            path("socket"),
        );
        fs::write(path("bus.conf"), config).unwrap();
        let mut child = command("dbus-daemon")
            .args(["--nofork", "--print-address=1", &format!("--config-file={}", path("bus.conf"))])
            .stdout(Stdio::piped())
            // It tells of every call that it refuses, and here that is often so.
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "the bus daemon did not start");
        Bus {
            address: address.trim().to_owned(),
            program: Program::Daemon,
            _process: Process(child),
            _controller: None,
            directory,
        }
    }

    /// Path of the socket.
    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("socket")
    }

    /// Starts a daemon and waits until it serves. Only errors are in its log.
    pub fn daemon(&self, variables: &[(&str, &str)]) -> Daemon {
        self.start_daemon("error", variables, false)
    }

    /// The same with a log that can be read.
    pub fn logging_daemon(&self, level: &str, variables: &[(&str, &str)]) -> Daemon {
        self.start_daemon(level, variables, true)
    }

    /// One for which each slow step takes an hour if what it is about has this in its name. The log says when it begins with one.
    pub fn daemon_slow_on(&self, part: &str) -> Daemon {
        self.logging_daemon("debug", &[("STRATISD_SIM_SLOW_MS", "3600000"), ("STRATISD_SIM_SLOW_PATH", part)])
    }

    fn start_daemon(&self, level: &str, variables: &[(&str, &str)], read_log: bool) -> Daemon {
        let notify = self.directory.path().join("notify");
        let told = UnixDatagram::bind(&notify).unwrap();
        told.set_read_timeout(Some(LIMIT)).unwrap();
        let mut child = command(env!("CARGO_BIN_EXE_stratisd"))
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
        let length = told.recv(&mut text).expect("the daemon tells that it is ready");
        assert_eq!(&text[..length], b"READY=1");
        Daemon { process: Process(child), log }
    }
}

/// Reads on a thread of its own, so that the daemon never waits for us to read its log.
#[allow(clippy::disallowed_methods, reason = "a test; the thread ends with the daemon")]
fn lines(stderr: std::process::ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // The test may have ended before.
        BufReader::new(stderr).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
    });
    receiver
}

/// The daemon; ends with this.
pub struct Daemon {
    process: Process,
    log: Option<Receiver<String>>,
}

impl Daemon {
    /// The next line of the log that contains this.
    pub fn line_with(&self, part: &str) -> String {
        let log = self.log.as_ref().expect("a logging daemon");
        loop {
            let line = log.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("the log should say `{part}`"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The lines of the log that contain this among those that have been written and not read yet.
    pub fn lines_so_far(&self, part: &str) -> usize {
        self.log.as_ref().expect("a logging daemon").try_iter().filter(|line| line.contains(part)).count()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.status("VmRSS")
    }

    /// The most that it has been.
    pub fn resident_max_kib(&self) -> u64 {
        self.status("VmHWM")
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let fields: HashMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
        fields[field].split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.0.id())).unwrap().count()
    }

    /// Tells it to end.
    pub fn terminate(&self) {
        assert!(command("kill").arg(self.process.0.id().to_string()).status().unwrap().success());
    }

    /// Whether it still runs.
    pub fn is_up(&mut self) -> bool {
        self.process.0.try_wait().unwrap().is_none()
    }
}
