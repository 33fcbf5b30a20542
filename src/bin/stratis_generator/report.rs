//! Log lines of the generators. They run before the journal, so their log is the kernel's; standard
//! error is what is left without it.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write},
    process,
};

const KERNEL_LOG: &str = "/dev/kmsg";
/// systemd's variable for the place of its own log lines.
const TARGET: &str = "SYSTEMD_LOG_TARGET";

/// The priorities of syslog(3) that are in use.
#[derive(Clone, Copy)]
pub(super) enum Priority {
    Error = 3,
    Info = 6,
}

/// Logs a line. Whether that succeeds changes nothing: there is nowhere else to say so.
pub(super) fn report(name: &str, level: Priority, text: &str) {
    // The kernel takes a record from one write. A priority without a facility would be the kernel's.
    const DAEMON: u8 = 3 << 3;
    let line = format!("<{}>{name}[{}]: {text}\n", DAEMON | level as u8, process::id());
    let to_terminal = env::var(TARGET).is_ok_and(|target| target == "console");
    let logged = !to_terminal
        && OpenOptions::new().write(true).open(KERNEL_LOG).and_then(|mut log| log.write_all(line.as_bytes())).is_ok();
    if !logged {
        let _ = writeln!(io::stderr(), "{name}: {text}");
    }
}
