//! The command line of `stratisd-min`.

use clap::Parser;

use super::{Example, Level, ManualPage};

/// Manages pools in early boot, where there is no D-Bus
///
/// stratisd-min is the same daemon as stratisd, served over a socket instead of the bus. The
/// initramfs starts it to set up the pool of the root file system, and fstab entries start it
/// before stratisd. The command stratis-min is its client.
///
/// stratisd takes over when it starts: it tells stratisd-min to end, waits until stratisd-min has
/// finished the requests that it has begun, and examines all devices and pools again. Mounted
/// filesystems are not affected. With --replace, stratisd-min takes over from another one in the
/// same way.
#[derive(Debug, Parser)]
#[command(name = "stratisd-min", version)]
pub struct StratisdMinLine {
    /// Work on a simulated machine: any absolute path is a disk, and nothing real is touched
    #[arg(long)]
    pub sim: bool,
    /// If another stratisd-min runs, take over from it, as stratisd does, instead of failing
    #[arg(long)]
    pub replace: bool,
    /// Lowest level of messages to write to standard error; default: RUST_LOG, or errors only
    #[arg(long, value_enum)]
    pub log_level: Option<Level>,
}

/// The sections of its page beside the options.
pub static PAGE: ManualPage = ManualPage {
    examples: &[Example {
        about: "Start it by hand and list pools:",
        command: "/usr/libexec/stratisd-min --log-level info &\nstratis-min pool",
    }],
    exit_status: &[
        ("0", "a signal or stratisd stopped the daemon"),
        ("1", "the daemon could not start or continue; standard error says why"),
        ("2", "wrong usage"),
    ],
    files: &[
        ("/run/stratisd/stratisd-min-jsonrpc", "socket for stratis-min"),
        ("/run/stratisd-min.pid", "process id; locked while the daemon runs"),
        ("/dev/stratis/POOL/FILESYSTEM", "link to the device of a filesystem, made by udev"),
    ],
    environment: &[
        ("RUST_LOG", "levels of messages if --log-level is not given, such as \"info\""),
        ("RUST_BACKTRACE", "if \"1\", a panic prints a backtrace"),
        ("STRATISD_SIM_RUN_DIR", "with --sim: the directory in place of /run"),
    ],
    see_also: &["stratis-min(8)", "stratisd(8)", "bootup(7)"],
};
