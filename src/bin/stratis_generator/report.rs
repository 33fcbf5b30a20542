//! Log lines of the generators. Generators run before the journal, so they write to the kernel log,
//! or to standard error if that fails.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    process,
};

const KERNEL_LOG: &str = "/dev/kmsg";
/// The variable that tells systemd where to log.
const TARGET: &str = "SYSTEMD_LOG_TARGET";

/// The priorities of syslog(3) that are in use.
#[derive(Clone, Copy)]
pub(super) enum Priority {
    Error = 3,
    Info = 6,
}

/// Logs a line. An error is ignored, since there is no place left to report it.
pub(super) fn report(name: &str, level: Priority, text: &str) {
    // Each write is one record. Without a facility the record would count as the kernel's.
    const DAEMON: u8 = 3 << 3;
    let line = format!("<{}>{name}[{}]: {text}\n", DAEMON | level as u8, process::id());
    let to_terminal = env::var(TARGET).is_ok_and(|target| target == "console");
    let logged = !to_terminal
        && OpenOptions::new().write(true).open(KERNEL_LOG).and_then(|mut log| log.write_all(line.as_bytes())).is_ok();
    if !logged {
        let _ = writeln!(io::stderr(), "{name}: {text}");
    }
}
