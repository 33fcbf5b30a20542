//! The child process that calls libcryptsetup: its process attributes and its connection to the
//! daemon.
//!
//! The child makes its memory unreadable for other processes, reads one request, serves it,
//! answers, and exits. The library's log goes to standard error. If the daemon has ended, the child
//! stops by itself: before a key derivation it exits, and a re-encryption job stops where the next
//! one can resume. Termination signals have the same effect.

use std::{env, io, process::ExitCode};

use nix::sys::prctl;

use super::{calls, connection::DaemonConnection, fault::LuksFault, wire::CHILD};
use crate::platform::linux::{orphans, secrecy};

/// The child yields to all other processes. Key derivation loads all processors for seconds, and a
/// re-encryption job for hours; other requests need little processor time, but need it soon.
const NICENESS: i32 = 10;

/// Serves one request if this program was started as a LUKS2 child, otherwise returns `None`. Every
/// program that uses [`Linux`](super::super::Linux) must call this before it reads arguments or
/// starts threads.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != CHILD || arguments.next().is_some() {
        return None;
    }
    Some(match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    })
}

fn serve() -> io::Result<()> {
    prepare_process()?;
    let mut connection = DaemonConnection::open()?;
    // A new daemon waits until the children of its predecessor have exited.
    let _marked = orphans::mark();
    let Some((request, secrets)) = connection.request()? else { return Ok(()) };
    match calls::serve(&request, &secrets, &mut connection) {
        Ok((answer, secret)) => connection.say(&answer, secret.as_slice()),
        Err(LuksFault::Alone) => Ok(()),
        Err(LuksFault::Connection(fault)) => Err(fault),
        Err(fault) => connection.say(&fault.into_answer(), &[]),
    }
}

/// Keeps the secrets of this process in its memory, and gives other processes precedence.
fn prepare_process() -> io::Result<()> {
    // Not before exec, which would make the memory readable again.
    secrecy::no_core_dumps()?;
    // If this fails, the daemon has already logged it at its start.
    let _ = secrecy::lock_memory();
    // If this fails, the pages of freed keys are unlocked early.
    let _ = secrecy::keep_memory_locked();
    let _ = prctl::set_name(c"stratisd-luks");
    // The library's threads inherit it.
    let _ = rustix::process::nice(NICENESS);
    Ok(())
}
