//! Every call of the platform on a real machine: the kernel, udev and programs of Debian, on disks
//! that may be overwritten.
//!
//! This is not a `cargo test`: it changes disks and needs the first thread of a process (for its
//! mount namespace). `make test-machine ONLY=platform` builds it and runs it in a throw-away
//! machine. Words after it select the checks whose names start with them. The word `encryption`
//! selects the checks of LUKS2 and Clevis, `simulation` those that the simulation must pass as
//! well. `old-pool NAME [key=DESCRIPTION] [tang=URL] DISK...` makes a pool of metadata version 1.
//! The program prints a line for each check and exits with failure if any check fails.

// This is a test, but `allow-unwrap-in-tests` does not recognize it.
#![allow(clippy::unwrap_used)]

mod clevis;
mod devices;
mod filesystems;
mod luks;
mod mapper;
mod mounts;
mod old_pool;
mod simulated;

use std::{
    env,
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use stratisd::{
    base::units::Sectors,
    platform::{
        BlockDevice, DeviceEvent, DeviceEvents, DeviceNumber, Platform,
        dm::{Line, Visibility},
        linux::Linux,
    },
};

/// The longest wait for something that must happen. Nothing should take nearly as long.
const LIMIT: Duration = Duration::from_secs(60);
/// The pool UUID in the names of all devices made here. No such device is left after a check that
/// passed.
const POOL: &str = "0123456789abcdef0123456789abcdef";

/// The machine under test.
struct Machine {
    linux: Linux,
    /// Scratch disks, at least three.
    disks: Vec<PathBuf>,
}

type Check = (&'static str, fn(&Machine));

const CHECKS: &[&[Check]] = &[devices::CHECKS, mapper::CHECKS, mounts::CHECKS, filesystems::CHECKS];
/// The checks of the word `encryption`. They take long.
const OF_ENCRYPTION: &[&[Check]] = &[luks::CHECKS, clevis::CHECKS];
/// The checks of the word `simulation`, which the simulation must pass as well.
const OF_SIMULATION: &[&[Check]] = &[simulated::CHECKS];

fn main() -> ExitCode {
    if let Some(status) = stratisd::platform::linux::run_as_child() {
        return status;
    }
    if env::var("STRATISD_MACHINE").as_deref() != Ok("1") {
        eprintln!(
            "refusing to overwrite disks outside a throw-away machine; see make test-machine (STRATISD_MACHINE=1)"
        );
        return ExitCode::from(2);
    }
    let disks: Vec<PathBuf> =
        env::var("MACHINE_DISKS").unwrap_or_default().split_whitespace().map(PathBuf::from).collect();
    assert!(disks.len() >= 3, "need three disks, MACHINE_DISKS names {disks:?}");
    if let [order, arguments @ ..] = &env::args().skip(1).collect::<Vec<_>>()[..] {
        if order == "luks-work" {
            luks::killed::work_as_daemon(arguments);
            return ExitCode::SUCCESS;
        }
    }
    let linux = Linux::start().expect("cannot start the platform");
    if let [order, name, words @ ..] = &env::args().skip(1).collect::<Vec<_>>()[..] {
        if order == "old-pool" {
            old_pool::make(linux, name, words);
            return ExitCode::SUCCESS;
        }
    }
    let machine = Machine { linux, disks };
    // Prefixes of the names of the wanted checks. Without any, all checks run.
    let mut wanted: Vec<String> = env::args().skip(1).collect();
    let of_order = match wanted.first().map(String::as_str) {
        Some("encryption") => Some(OF_ENCRYPTION),
        Some("simulation") => Some(OF_SIMULATION),
        _ => None,
    };
    if of_order.is_some() {
        wanted.remove(0);
    }
    let checks = of_order.unwrap_or(CHECKS);
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, check) in checks.iter().copied().flatten() {
        if !wanted.is_empty() && !wanted.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let before = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| check(&machine))) {
            Ok(()) => {
                println!("ok      {name} ({} ms)", before.elapsed().as_millis());
                passed += 1;
            }
            Err(_) => {
                println!("FAILED  {name}");
                failed.push(name);
                machine.clear();
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Machine {
    /// A scratch disk as udev describes it.
    fn disk(&self, index: usize) -> BlockDevice {
        self.linux.find_device(&self.disks[index]).unwrap()
    }

    /// Removes what a failed check has left behind, so that later checks can run.
    fn clear(&self) {
        let _ = self.linux.unmount("files");
        let left = || -> Vec<String> {
            let listed = self.linux.dm_list().unwrap().into_iter();
            listed.map(|listed| listed.name).filter(|name| name.contains(POOL)).collect()
        };
        let mut before = usize::MAX;
        // Upper devices must go first. So as long as a round removes a device, another round may
        // remove more.
        while left().len() < before {
            before = left().len();
            for name in left() {
                let _ = self.linux.dm_remove(&name);
            }
        }
    }

    /// Name of a private device of the test pool.
    fn private(&self, role: &str) -> String {
        format!("stratis-1-private-{POOL}-{role}")
    }

    /// Creates a private linear device on the start of a disk.
    fn linear(&self, role: &str, disk: usize, start: u64, length: u64) -> (String, DeviceNumber) {
        let name = self.private(role);
        let table = [Line::linear(Sectors(0), Sectors(length), self.disk(disk).number, Sectors(start))];
        let number = self.linux.dm_create(&name, &name, &table, Visibility::Private).unwrap();
        (name, number)
    }
}

/// Waits until a descriptor is readable. Returns `false` after `limit`.
fn readable(fd: impl AsFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(limit).unwrap())).unwrap() > 0
}

/// Reads device events up to the first wanted one.
fn event_where(events: &mut dyn DeviceEvents, wanted: impl Fn(&DeviceEvent) -> bool) -> DeviceEvent {
    loop {
        while let Some(event) = events.next().unwrap() {
            if wanted(&event) {
                return event;
            }
        }
        assert!(readable(events.fd(), LIMIT), "no udev event arrived in time");
    }
}

/// Runs a command on the machine and returns its output.
fn command(program: &str, arguments: &[&str]) -> String {
    // Only for commands that a user of the machine would type, not for the engine's programs.
    #[allow(clippy::disallowed_methods)]
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a command as a user would, in the root mount namespace.
fn outside(program: &str, arguments: &[&str]) -> String {
    let mut all = vec!["--target", "1", "--mount", "--", program];
    all.extend(arguments);
    command("nsenter", &all)
}
