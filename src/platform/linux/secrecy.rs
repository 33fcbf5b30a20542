//! A process that holds keys leaves no trace of them on disks. Knows nothing of the keys.

use std::io;

use nix::sys::prctl;
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Rlimit, setrlimit},
};

/// From now on this process leaves no core dump, nor may others of the same user look into its memory. The limit is
/// inherited by all programs that it starts, the rest is not. To be called before any secret is read.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(super) fn no_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(prctl::set_dumpable(false)?)
}

/// From now on no memory of this process goes to swap: not the keys, nor what libraries copy of them. Nothing of it is
/// inherited by programs that it starts. Memory that is not used yet is not taken before it is.
///
/// # Errors
/// When the limit of locked memory (`LimitMEMLOCK`) does not allow it.
pub(super) fn lock_memory() -> io::Result<()> {
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}
