//! A process that holds keys leaves no trace of them on disks. Knows nothing of the keys.

use std::io;

use nix::sys::prctl;
use rustix::process::{Resource, Rlimit, setrlimit};

/// From now on this process leaves no core dump, nor may others of the same user look into its memory. The limit is
/// inherited by all programs that it starts, the rest is not. To be called before any secret is read.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
pub(super) fn no_core_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(prctl::set_dumpable(false)?)
}
