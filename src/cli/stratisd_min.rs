//! The command line of `stratisd-min`.

use clap::Parser;

use super::Level;

/// Manages pools in early boot, where there is no D-Bus
///
/// stratisd-min is the same daemon as stratisd, served over a socket instead of the bus. The
/// initramfs starts it to set up the pool of the root file system, and fstab entries start it
/// before stratisd. The command stratis-min is its client.
///
/// stratisd takes over from it when it starts: it has stratisd-min finish what it has begun, waits
/// for its end, and looks at all devices and pools again. Mounted filesystems are not touched.
#[derive(Debug, Parser)]
#[command(name = "stratisd-min", version)]
pub struct StratisdMinLine {
    /// Work on a simulated machine: any absolute path is a disk, and nothing real is touched
    #[arg(long)]
    pub sim: bool,
    /// Lowest level of messages to write to standard error; default: RUST_LOG, or errors only
    #[arg(long, value_enum)]
    pub log_level: Option<Level>,
}
