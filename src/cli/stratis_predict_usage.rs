//! The command line of `stratis-predict-usage` (`docs/spec/tools/utilities.md` §2).

use clap::{Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use super::{Example, ManualPage};

/// Predict how much space a pool or a filesystem will use
///
/// Prints one line of JSON in which every value is a number of bytes, written as a string. The
/// prediction for a pool is what stratisd would plan on devices of these sizes. The prediction for
/// a filesystem is the measured space of a new XFS whose size is the next power of two. Newer
/// versions of mkfs.xfs make a log of at least 64 MiB, so an XFS of less than 128 GiB may take up
/// to 64 MiB more. The prediction for a pool with more than 100 filesystems includes the
/// metadata that its raised limit takes.
#[derive(Debug, Parser)]
#[command(name = "stratis-predict-usage", version)]
pub struct PredictUsage {
    /// Lowest level of messages to write to standard error
    #[arg(long, value_enum, default_value_t = Verbosity::Off)]
    pub log_level: Verbosity,
    /// What to predict
    #[command(subcommand)]
    pub what: Predicted,
}

/// What to predict.
#[derive(Debug, Subcommand)]
pub enum Predicted {
    /// Predict the space of a new pool
    Pool(PoolArguments),
    /// Predict the space of new filesystems
    Filesystem(FilesystemArguments),
}

/// The arguments for a pool.
#[derive(Debug, Args)]
pub struct PoolArguments {
    /// The pool will be encrypted. This changes nothing: space for encryption is always reserved
    #[arg(long)]
    pub encrypted: bool,
    /// The pool will not be overprovisioned: each filesystem counts with its whole size
    #[arg(long)]
    pub no_overprovision: bool,
    /// Size of a device, in bytes; once for each device
    #[arg(long, value_name = "device-size", required = true)]
    pub device_size: Vec<u128>,
    /// Size of a filesystem, in bytes; once for each filesystem
    #[arg(long, value_name = "filesystem-size")]
    pub filesystem_size: Vec<u128>,
    /// Tag bits for each integrity block
    #[arg(long, value_enum, value_name = "tag-spec", default_value_t = TagBits::B512)]
    pub integrity_tag_spec: TagBits,
    /// Size of the integrity journal on each device, in bytes; a multiple of 4096
    #[arg(long, value_name = "journal-size", default_value_t = 134_217_728)]
    pub integrity_journal_size: u64,
    /// Reserve no space for an integrity superblock
    #[arg(long)]
    pub no_integrity_superblock: bool,
}

/// The arguments for filesystems.
#[derive(Debug, Args)]
pub struct FilesystemArguments {
    /// The pool is not overprovisioned: each filesystem counts with its whole size
    #[arg(long)]
    pub no_overprovision: bool,
    /// Size of a filesystem, in bytes, from 512 MiB up to, but not including, 32 PiB; once for each
    /// filesystem
    #[arg(long, value_name = "filesystem-size", required = true)]
    pub filesystem_size: Vec<u128>,
}

/// Tag bits for each integrity block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum TagBits {
    #[value(name = "0b")]
    B0,
    #[value(name = "32b")]
    B32,
    #[value(name = "512b")]
    B512,
}

/// The lowest level of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Verbosity {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Verbosity> for LevelFilter {
    fn from(level: Verbosity) -> LevelFilter {
        match level {
            Verbosity::Off => LevelFilter::Off,
            Verbosity::Error => LevelFilter::Error,
            Verbosity::Warn => LevelFilter::Warn,
            Verbosity::Info => LevelFilter::Info,
            Verbosity::Debug => LevelFilter::Debug,
            Verbosity::Trace => LevelFilter::Trace,
        }
    }
}

/// The sections of its page beside the options.
pub static PAGE: ManualPage = ManualPage {
    examples: &[
        Example {
            about: "Predict the space of a pool on two disks of 1 TiB:",
            command: "stratis-predict-usage pool --device-size 1099511627776 --device-size 1099511627776",
        },
        Example {
            about: "Predict how much space a disk of 10 GiB has left beside a filesystem of 1 GiB:",
            command: "stratis-predict-usage pool --device-size 10737418240 --filesystem-size 1073741824",
        },
        Example {
            about: "Predict the space of a filesystem of 1 GiB:",
            command: "stratis-predict-usage filesystem --filesystem-size 1073741824",
        },
    ],
    exit_status: &[
        ("0", "the prediction was printed"),
        ("1", "such a pool or filesystem is impossible, or thin_metadata_size is not installed"),
        ("2", "wrong usage"),
    ],
    files: &[],
    environment: &[],
    see_also: &["stratisd(8)", "stratis(8)", "thin_metadata_size(8)"],
};
