//! Processes that end with the test that started them.

use std::{
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, pidfd_open},
};

/// The longest wait for an event. No event should take nearly as long.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A program to start.
#[allow(clippy::disallowed_methods, reason = "the processes belong to the test; there is no other way to start them")]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// A child that is killed when the test ends.
pub struct Process(Child);

impl Process {
    /// Takes over a child.
    pub fn new(child: Child) -> Process {
        Process(child)
    }

    /// The process ID of the child.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    /// Whether the child is still running.
    pub fn is_up(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for the exit of the child.
    pub fn end(&mut self) -> ExitStatus {
        let fd = pidfd_open(rustix::process::Pid::from_child(&self.0), PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(LIMIT).unwrap();
        let ended = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "the process did not exit in time");
        self.0.wait().unwrap()
    }

    /// Kills the child and waits for its exit.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
