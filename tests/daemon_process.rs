//! The daemon as a process: command line, start, threads, and every way in which it ends. The tests
//! run `stratisd --sim` on a private bus. A socket plays the service manager, so every wait is for
//! an event; time limits only make a test with a lost event fail.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::net::UnixDatagram,
    process::{ChildStderr, Stdio},
};

use dbus::{Message, channel::Channel};
use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use stratisd::{
    bus_front_end::{BUS_READER, BusFrontEnd, TREE_WRITER},
    daemon::{front_end::FrontEnd, thread_table::SIGNALS},
};
use support::{
    bus::{Bus, LIMIT},
    processes::{Process, command},
};

const STRATISD: &str = env!("CARGO_BIN_EXE_stratisd");

/// A private bus, on which the tests start daemons.
struct Rig(Bus);

impl Rig {
    fn start() -> Rig {
        Rig(Bus::start())
    }

    fn client(&self) -> Channel {
        let mut channel = Channel::open_private(&self.0.address).unwrap();
        channel.register().unwrap();
        channel
    }

    /// Starts a daemon on this bus. `name` is used in file names.
    fn daemon(&self, name: &str, arguments: &[&str], slow_ms: u64) -> Daemon {
        self.daemon_with(name, arguments, &[("STRATISD_SIM_SLOW_MS", &slow_ms.to_string())])
    }

    fn daemon_with(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Daemon {
        let path = self.0.directory().join(name);
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(LIMIT)).unwrap();
        let mut child = command(STRATISD)
            .arg("--sim")
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.0.address)
            .env("NOTIFY_SOCKET", &path)
            .envs(variables.iter().copied())
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Daemon { process: Process::new(child), told, stderr }
    }

    /// Starts a daemon and waits until it is ready.
    fn ready(&self, arguments: &[&str], slow_ms: u64) -> Daemon {
        let daemon = self.daemon("notify", arguments, slow_ms);
        assert_eq!(daemon.next_state(), "READY=1");
        daemon
    }
}

struct Daemon {
    process: Process,
    told: UnixDatagram,
    stderr: BufReader<ChildStderr>,
}

impl Daemon {
    fn next_state(&self) -> String {
        let mut text = [0; 64];
        let length = self.told.recv(&mut text).expect("the daemon did not report its state");
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// Waits for a line of the daemon's log with all these words.
    fn wait_for_line(&mut self, words: &[&str]) {
        let mut line = String::new();
        while !words.iter().all(|word| line.contains(word)) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "the daemon should say {words:?}");
        }
    }

    /// The notifications that the daemon has sent and the test has not read.
    fn unread_states(&self) -> Vec<String> {
        self.told.set_nonblocking(true).unwrap();
        let mut text = [0; 64];
        let states = std::iter::from_fn(|| self.told.recv(&mut text).ok().map(|length| text[..length].to_vec()));
        let states = states.map(|text| String::from_utf8(text).unwrap()).collect();
        self.told.set_nonblocking(false).unwrap();
        states
    }

    /// Waits until the daemon exits. Returns its exit status and the rest of standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.process.end();
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (status.code(), rest)
    }
}

#[track_caller]
fn says(arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let output = command(STRATISD).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.contains(stdout) && stdout.is_empty() == out.is_empty(), "{out}");
    assert!(err.contains(stderr) && stderr.is_empty() == err.is_empty(), "{err}");
}

#[test]
fn the_command_line_is_parsed_as_documented() {
    let version = format!("stratisd {} (interface level 3.9.2)\n", env!("CARGO_PKG_VERSION"));
    says(&["--version"], 0, &version, "");
    says(&["-V"], 0, &version, "");
    says(&["--help"], 0, "--log-level <LOG_LEVEL>", "");
    says(&["-h"], 0, "--sim", "");
    for wrong in [&["--log-level", "off"][..], &["--log-level"], &["--no-such-option"], &["argument"]] {
        says(wrong, 2, "", "error:");
    }
    says(&["--sim-disk-size", "5"], 2, "", "--sim");
    says(&["--sim", "--sim-disk-size", "large"], 2, "", "--sim-disk-size");
}

#[test]
fn a_signal_ends_the_daemon_cleanly() {
    let bus = Rig::start();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let daemon = bus.ready(&[], 0);
        daemon.process.signal(signal);
        assert_eq!(daemon.next_state(), "STOPPING=1");
        assert_eq!(daemon.end(), (Some(0), String::new()));
        fs::remove_file(bus.0.directory().join("notify")).unwrap();
    }
}

#[test]
fn the_log_has_the_requested_level() {
    let bus = Rig::start();
    let daemon = bus.ready(&["--log-level", "info"], 0);
    daemon.process.signal(Signal::SIGTERM);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0));
    assert!(log.contains("INFO") && log.contains("stopping: SIGTERM") && !log.contains("DEBUG"), "{log}");
}

#[test]
fn all_threads_are_in_the_table_and_end() {
    let bus = Rig::start();
    let daemon = bus.ready(&["--log-level", "debug"], 0);
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap().count();
    daemon.process.signal(Signal::SIGTERM);
    let (_, log) = daemon.end();
    let ended: Vec<&str> =
        log.lines().filter_map(|line| line.split_once(" thread ")?.1.strip_suffix(" ended: Returned")).collect();
    assert_eq!(ended.len() + 1, threads, "all but the main thread: {log}");
    let names = || BusFrontEnd::THREADS.with_the_daemons().map(|row| row.name);
    for name in names() {
        assert!(ended.iter().any(|thread| is_named(thread, name)), "{name}: {ended:?}");
    }
    for thread in &ended {
        assert!(names().any(|name| is_named(thread, name)), "{thread} is not in the table");
    }
    let place = |name: &str| ended.iter().position(|ended| *ended == name);
    assert!(place(BUS_READER) < place(TREE_WRITER), "{ended:?}");
    assert_eq!(place(SIGNALS), Some(ended.len() - 1), "{ended:?}");
}

#[test]
fn sigpipe_is_ignored() {
    let bus = Rig::start();
    let daemon = bus.ready(&[], 0);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    let sigpipe = 1 << (Signal::SIGPIPE as u32 - 1);
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & sigpipe, sigpipe);
}

#[test]
fn a_missing_bus_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let output = command(STRATISD)
        .arg("--sim")
        .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}/none", directory.path().display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("stratisd: cannot reach the system bus"));
}

#[test]
fn a_dead_thread_ends_the_daemon() {
    let mut bus = Rig::start();
    let daemon = bus.ready(&[], 0);
    // The bus ends, so the reader thread ends.
    bus.0.kill();
    let (code, stderr) = daemon.end();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("stratisd: thread bus-reader ended: the connection to the bus was lost"), "{stderr}");
}

#[test]
fn a_second_daemon_cannot_take_the_name() {
    let bus = Rig::start();
    let first = bus.ready(&[], 0);
    let (code, stderr) = bus.daemon("second", &[], 0).end();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("org.storage.stratis3"), "{stderr}");
    first.process.signal(Signal::SIGINT);
    assert_eq!(first.end().0, Some(0));
}

/// Whether a thread has this name, which comes from the table of threads.
fn is_named(thread: &str, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(family) => thread.starts_with(family),
        None => thread == name,
    }
}

/// Requests the creation of a pool, and returns when its first step runs.
fn begin_create_pool(client: &Channel, daemon: &mut Daemon) -> u32 {
    let none: Vec<((bool, u32), &str)> = Vec::new();
    let no_clevis: Vec<((bool, u32), &str, &str)> = Vec::new();
    let call = Message::new_method_call(
        "org.storage.stratis3",
        "/org/storage/stratis3",
        "org.storage.stratis3.Manager.r9",
        "CreatePool",
    )
    .unwrap()
    .append3("p", vec!["/dev/a", "/dev/b"], none)
    .append3(no_clevis, (false, 0u64), (false, ""))
    .append1((false, false));
    let serial = client.send(call).unwrap();
    client.flush();
    let mut line = String::new();
    while !line.contains("a step") {
        line.clear();
        assert!(daemon.stderr.read_line(&mut line).unwrap() > 0, "the daemon did not start the request");
    }
    serial
}

/// Waits for the reply to the creation of the pool.
fn wait_for_answer(client: &Channel, serial: u32) {
    let reply = loop {
        let message = client.blocking_pop_message(LIMIT).unwrap().expect("no reply arrived in time");
        if message.get_reply_serial() == Some(serial) {
            break message;
        }
    };
    type Created<'a> = (bool, (dbus::Path<'a>, Vec<dbus::Path<'a>>));
    let (created, code, text): (Created<'_>, u16, String) = reply.read3().unwrap();
    assert_eq!((created.0, code, text.as_str()), (true, 0, "Ok"));
}

#[test]
fn started_requests_are_answered_before_exit() {
    let bus = Rig::start();
    // The steps are slow, so that the request is running when the signal arrives. The result does
    // not depend on that.
    let mut daemon = bus.ready(&["--log-level", "trace"], 20);
    let client = bus.client();
    let serial = begin_create_pool(&client, &mut daemon);
    daemon.process.signal(Signal::SIGINT);
    wait_for_answer(&client, serial);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
}

/// Formerly a second SIGINT ended the daemon in the middle of its requests. systemd and a daemon
/// that takes over send one each.
#[test]
fn further_signals_do_not_cut_a_stop_short() {
    let bus = Rig::start();
    let mut daemon = bus.ready(&["--log-level", "trace"], 20);
    let client = bus.client();
    let serial = begin_create_pool(&client, &mut daemon);
    daemon.process.signal(Signal::SIGINT);
    assert_eq!(daemon.next_state(), "STOPPING=1");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGINT] {
        daemon.process.signal(signal);
    }
    wait_for_answer(&client, serial);
    let (code, log) = daemon.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the daemon is already stopping"), "{log}");
}

/// Threads of a daemon that ptrace(2) stops, as if they were stuck.
struct Held(Vec<Pid>);

impl Held {
    /// Stops the threads with this name, which comes from the table of threads.
    fn of(daemon: &Daemon, name: &str) -> Held {
        let mut held = Held(Vec::new());
        for task in fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap() {
            let path = task.unwrap().path();
            let comm = fs::read_to_string(path.join("comm")).unwrap();
            if is_named(comm.trim_end(), name) {
                let thread = Pid::from_raw(path.file_name().unwrap().to_str().unwrap().parse().unwrap());
                ptrace::seize(thread, ptrace::Options::empty()).unwrap();
                ptrace::interrupt(thread).unwrap();
                let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
                assert!(matches!(stopped, WaitStatus::PtraceEvent(of, ..) if of == thread), "{stopped:?}");
                held.0.push(thread);
            }
        }
        assert!(!held.0.is_empty(), "there is no thread {name}");
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for thread in &self.0 {
            // The thread may have ended.
            let _ = ptrace::detach(*thread, None);
        }
    }
}

/// Formerly nothing reported a daemon with a stuck thread.
#[test]
fn the_watchdog_hears_only_while_all_threads_run() {
    const TOLD: &str = "WATCHDOG=1";
    let bus = Rig::start();
    let variables = [("WATCHDOG_USEC", "200000")];
    let mut daemon = bus.daemon_with("notify", &["--log-level", "info"], &variables);
    assert_eq!(daemon.next_state(), "READY=1");
    (0..3).for_each(|_| assert_eq!(daemon.next_state(), TOLD));
    for name in BusFrontEnd::THREADS.with_the_daemons().map(|row| row.name) {
        let held = Held::of(&daemon, name);
        daemon.wait_for_line(&[name, "has not answered"]);
        // Discard notifications sent before. None may follow until the next log line.
        daemon.unread_states();
        daemon.wait_for_line(&[name, "has not answered"]);
        assert_eq!(daemon.unread_states(), Vec::<String>::new(), "while {name} is stuck");
        drop(held);
        daemon.wait_for_line(&["all threads respond again"]);
        assert_eq!(daemon.next_state(), TOLD);
    }
    daemon.process.signal(Signal::SIGTERM);
    while daemon.next_state() != "STOPPING=1" {}
    assert_eq!(daemon.end().0, Some(0));
}
