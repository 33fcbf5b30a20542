//! A private bus: `dbus-daemon`, or `dbus-broker` if the test or the environment asks for it.
//!
//! This module knows nothing of the daemon and uses no type of the crate `stratisd`, because unit
//! tests use it.

mod broker;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use dbus::channel::Channel;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::processes::{Process, command};

pub use crate::processes::LIMIT;

/// The implementations of a message bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `dbus-daemon`: the reference implementation; Debian, SUSE, RHEL 7.
    Daemon,
    /// `dbus-broker`: Fedora, RHEL 8 and later, Arch.
    Broker,
}

impl Program {
    /// The implementation that `STRATIS_TEST_BUS` names, or the reference implementation.
    pub fn of_environment() -> Program {
        match std::env::var("STRATIS_TEST_BUS").as_deref() {
            Ok("dbus-broker") => Program::Broker,
            Ok("dbus-daemon") | Err(_) => Program::Daemon,
            Ok(other) => panic!("STRATIS_TEST_BUS is dbus-daemon or dbus-broker, not {other}"),
        }
    }
}

/// Limits that differ from those of a system bus.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Longest message. dbus-broker knows only the limit of the specification.
    pub message_bytes: Option<u32>,
    /// Bytes that the bus holds for receivers that do not read. dbus-daemon counts them for each
    /// sender, dbus-broker for each user.
    pub held_bytes: Option<u32>,
}

/// A private bus with the limits of a system bus. Everybody may do everything on it.
pub struct Bus {
    /// The address for clients.
    pub address: String,
    /// Its implementation.
    pub program: Program,
    process: Process,
    _controller: Option<Channel>,
    directory: TempDir,
}

impl Bus {
    /// Starts the implementation that the environment names.
    pub fn start() -> Bus {
        Bus::with_limits(Limits::default())
    }

    /// Starts the implementation that the environment names, with other limits.
    pub fn with_limits(limits: Limits) -> Bus {
        Bus::of(Program::of_environment(), limits)
    }

    /// Starts this implementation.
    pub fn of(program: Program, limits: Limits) -> Bus {
        match program {
            Program::Daemon => Bus::reference(limits, None),
            Program::Broker => {
                let directory = TempDir::new().unwrap();
                let socket = directory.path().join("socket");
                let (child, controller) = broker::start(&socket, directory.path(), limits);
                Bus {
                    address: format!("unix:path={}", socket.display()),
                    program,
                    process: Process::new(child),
                    _controller: Some(controller),
                    directory,
                }
            }
        }
    }

    /// Starts `dbus-daemon` with a policy file, as a package installs one.
    pub fn with_policy(policy: &str) -> Bus {
        Bus::reference(Limits::default(), Some(policy))
    }

    fn reference(limits: Limits, policy: Option<&str>) -> Bus {
        let directory = TempDir::new().unwrap();
        let named = [("max_message_size", limits.message_bytes), ("max_incoming_bytes", limits.held_bytes)];
        let limit = |(name, bytes): (&str, Option<u32>)| Some(format!(r#"<limit name="{name}">{}</limit>"#, bytes?));
        let limits: String = named.into_iter().filter_map(limit).collect();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let include = policy.map(|policy| {
            fs::write(path("policy.conf"), policy).unwrap();
            format!("<include>{}</include>", path("policy.conf"))
        });
        let config = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  {}
  <policy context="mandatory">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
  {limits}
</busconfig>"#,
            path("socket"),
            include.unwrap_or_default(),
        );
        fs::write(path("bus.conf"), config).unwrap();
        let mut child = command("dbus-daemon")
            .args(["--nofork", "--print-address=1", &format!("--config-file={}", path("bus.conf"))])
            .stdout(Stdio::piped())
            // It reports every refused call, and these tests make many such calls.
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "the bus daemon did not start");
        Bus {
            address: address.trim().to_owned(),
            program: Program::Daemon,
            process: Process::new(child),
            _controller: None,
            directory,
        }
    }

    /// Path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// A folder that is removed with the bus.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Sends a signal to the bus.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills the bus.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}
