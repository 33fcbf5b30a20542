//! The command line of `stratisd`.

use clap::Parser;

use super::{Example, Level, ManualPage};

/// Manages pools of block devices and serves them on the system bus
///
/// stratisd joins block devices into pools and provides filesystems on them. The stratis command
/// and other programs use it over D-Bus as org.storage.stratis3. systemd starts it as
/// stratisd.service.
///
/// Filesystems stay mounted and usable while the daemon does not run. It may be stopped, killed and
/// replaced at any time; a pool that fills up meanwhile gets no space until the daemon runs again.
#[derive(Debug, Parser)]
#[command(name = "stratisd", version)]
pub struct StratisdLine {
    /// Work on a simulated machine: any absolute path is a disk, and nothing real is touched
    #[arg(long)]
    pub sim: bool,
    /// Lowest level of messages to write to standard error; default: RUST_LOG, or errors only
    #[arg(long, value_enum)]
    pub log_level: Option<Level>,
    /// Size of each simulated disk (also: STRATISD_SIM_DISK_GIB)
    #[arg(long, value_name = "GIB", requires = "sim")]
    pub sim_disk_size: Option<u64>,
    /// Delay of each step of the simulated machine (also: STRATISD_SIM_SLOW_MS)
    #[arg(long, value_name = "MILLISECONDS", requires = "sim")]
    pub sim_slow: Option<u64>,
    /// Random seed of the simulated machine (also: STRATISD_SIM_SEED)
    #[arg(long, value_name = "NUMBER", requires = "sim")]
    pub sim_seed: Option<u64>,
}

/// The sections of its page beside the options.
pub static PAGE: ManualPage = ManualPage {
    examples: &[
        Example { about: "Start the daemon now and at every boot:", command: "systemctl enable --now stratisd" },
        Example {
            about: "Create a pool on two disks, with a filesystem. This erases the disks:",
            command: "stratis pool create p1 /dev/sdb /dev/sdc\nstratis filesystem create p1 home\n\
                      mount /dev/stratis/p1/home /mnt",
        },
        Example {
            about: "Run it on simulated disks, with its log on the terminal:",
            command: "stratisd --sim --log-level info",
        },
    ],
    exit_status: &[
        ("0", "a signal stopped the daemon"),
        ("1", "the daemon could not start or continue; standard error says why"),
        ("2", "wrong usage"),
    ],
    files: &[
        ("/dev/stratis/POOL/FILESYSTEM", "link to the device of a filesystem, made by udev"),
        ("/run/stratisd", "private mounts of the daemon"),
    ],
    environment: &[
        ("RUST_LOG", "levels of messages if --log-level is not given, such as \"info\""),
        ("RUST_BACKTRACE", "if \"1\", a panic prints a backtrace"),
        ("DBUS_SYSTEM_BUS_ADDRESS", "the bus to serve, in place of the system bus"),
        ("STRATISD_DBUS_MAX_MESSAGE_SIZE", "largest message in bytes, if the limit of the bus is not 32 MiB"),
        ("STRATISD_SIM_DISK_GIB", "as --sim-disk-size"),
        ("STRATISD_SIM_SLOW_MS", "as --sim-slow"),
        ("STRATISD_SIM_SEED", "as --sim-seed"),
        ("STRATISD_SIM_RUN_DIR", "with --sim: the directory of locks in place of /run; without it there are none"),
    ],
    see_also: &[
        "stratis(8)",
        "stratisd-min(8)",
        "systemctl(1)",
        "journalctl(1)",
        "mkfs.xfs(8)",
        "cryptsetup(8)",
        "clevis(1)",
    ],
};
