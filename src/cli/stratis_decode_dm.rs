//! The command line of `stratis-decode-dm` (`docs/spec/tools/utilities.md` §3).

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::{Example, ManualPage};

/// Print the name, the pool or the link of a filesystem, given its device-mapper path
///
/// The path is only parsed and need not exist. The names come from the running stratisd, over the
/// system bus.
#[derive(Debug, Parser)]
#[command(name = "stratis-decode-dm", version)]
pub struct DecodeDm {
    /// What to print
    #[arg(long, value_enum)]
    pub output: DecodedName,
    /// Absolute path of the filesystem's device, /dev/mapper/stratis-1-POOL-thin-fs-FILESYSTEM
    #[arg(value_parser = absolute)]
    pub path: PathBuf,
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DecodedName {
    /// The name of the filesystem
    FilesystemName,
    /// The name of its pool
    PoolName,
    /// The link /dev/stratis/POOL/FILESYSTEM
    Symlink,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("'{text}' must be specified as an absolute path")) }
}

/// The sections of its page beside the options.
pub static PAGE: ManualPage = ManualPage {
    examples: &[Example {
        about: "Print the link of a filesystem, given the UUIDs in its device name:",
        command: "stratis-decode-dm --output symlink /dev/mapper/stratis-1-$POOL-thin-fs-$FILESYSTEM",
    }],
    exit_status: &[
        ("0", "the name was printed"),
        ("1", "the path is not that of a filesystem, or stratisd does not answer or does not know it"),
        ("2", "wrong usage"),
    ],
    files: &[],
    environment: &[("DBUS_SYSTEM_BUS_ADDRESS", "the bus to ask, in place of the system bus")],
    see_also: &["stratisd(8)", "stratis(8)", "dmsetup(8)"],
};
