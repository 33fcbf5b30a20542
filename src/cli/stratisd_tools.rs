//! The command line of `stratisd-tools` and of the names under which its commands are called
//! (`docs/spec/tools/utilities.md` §1.2, 4 to 6).

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::{Example, ManualPage};

/// Examine the metadata of pools, and find what could keep stratisd from working
///
/// A command can also be called by its own name, through a link to this program:
/// stratis-dumpmetadata, stratis-checkmetadata, stratis-printmetadata, stratis-legacy-pool,
/// stratis-doctor.
#[derive(Debug, Parser)]
#[command(name = "stratisd-tools", version, arg_required_else_help = true)]
pub struct Tools {
    /// What to do
    #[command(subcommand)]
    pub command: Tool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Show the pool metadata on a device
    #[command(name = "stratis-dumpmetadata", visible_alias = "dumpmetadata")]
    Dump(DumpMetadata),
    /// Check pool metadata against itself
    #[command(name = "stratis-checkmetadata", visible_alias = "checkmetadata")]
    Check(CheckMetadata),
    /// Show how a pool uses its devices
    #[command(name = "stratis-printmetadata", visible_alias = "printmetadata")]
    Print(PrintMetadata),
    /// Create a pool of version 1, for tests
    #[command(name = "stratis-legacy-pool", visible_alias = "legacy-pool")]
    LegacyPool(LegacyPool),
    /// Find what would keep this system from booting or from starting its pools
    #[command(name = "doctor", visible_alias = "stratis-doctor")]
    Doctor(Doctor),
}

/// Show what a device holds of a pool
///
/// The device is only read. For an encrypted pool of version 1 the device is the opened LUKS2
/// mapping.
#[derive(Debug, Parser)]
#[command(name = "stratis-dumpmetadata", display_name = "stratis-dumpmetadata", version)]
pub struct DumpMetadata {
    /// Also show the bytes of the signature blocks
    #[arg(short = 'b', long)]
    pub print_bytes: bool,
    /// Show only this: the pool metadata, as JSON
    #[arg(long, value_enum)]
    pub only: Option<DumpPart>,
    /// Block device, or an image of one
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
}

/// A part of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DumpPart {
    /// The pool metadata
    Pool,
}

/// Check pool metadata of version 2 against itself
///
/// Prints every finding, and nothing if the metadata is sound.
#[derive(Debug, Parser)]
#[command(name = "stratis-checkmetadata", display_name = "stratis-checkmetadata", version)]
pub struct CheckMetadata {
    /// Pool metadata as `stratis-dumpmetadata --only pool` prints it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Show how a pool uses its devices
#[derive(Debug, Parser)]
#[command(name = "stratis-printmetadata", display_name = "stratis-printmetadata", version)]
pub struct PrintMetadata {
    /// Pool metadata as `stratis-dumpmetadata --only pool` prints it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Create a pool of version 1, as stratisd did up to version 3.7, for tests only
///
/// This erases the devices. The pool stays set up; stratisd takes it over.
#[derive(Debug, Parser)]
#[command(name = "stratis-legacy-pool", display_name = "stratis-legacy-pool", version)]
pub struct LegacyPool {
    /// Description of the key in the kernel keyring that encrypts the pool
    #[arg(long, value_name = "KD")]
    pub key_desc: Option<String>,
    /// What Clevis binds the pool to
    #[arg(
        long,
        value_enum,
        requires_if("nbde", "tang_url"),
        requires_if("tang", "tang_url"),
        requires_if("nbde", "trust"),
        requires_if("tang", "trust")
    )]
    pub clevis: Option<ClevisPin>,
    /// Address of the Tang server
    #[arg(long, value_name = "URL", requires = "clevis")]
    pub tang_url: Option<String>,
    /// Thumbprint of the key of the Tang server
    #[arg(long, value_name = "T", requires = "tang_url", group = "trust")]
    pub thumbprint: Option<String>,
    /// Trust the keys that the Tang server sends
    #[arg(long, requires = "tang_url", group = "trust")]
    pub trust_url: bool,
    /// Name of the pool
    #[arg(value_name = "POOL")]
    pub pool: String,
    /// Its block devices
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,
}

/// What Clevis binds a pool to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClevisPin {
    /// A Tang server
    Nbde,
    /// A Tang server
    Tang,
    /// The TPM
    Tpm2,
}

/// Find what would keep this system from booting or from starting its pools
///
/// The doctor changes nothing and needs no running daemon. It lists what it cannot examine; as root
/// it can examine everything. docs/doctor.md describes the checks and the output for scripts.
#[derive(Debug, Parser)]
#[command(name = "stratis-doctor", display_name = "stratis-doctor", version)]
pub struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// Examine the system whose root is in this folder. Checks that need the running system (the
    /// daemon, keys, servers, states of units) are left out
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Examine this device or image instead of the devices of the system; may be given several
    /// times
    #[arg(long, value_name = "DEV")]
    pub device: Vec<PathBuf>,
}

const RUST_LOG: (&str, &str) = ("RUST_LOG", "lowest level of messages to write to standard error; default: error");

/// The sections of the page of `stratisd-tools` beside the options.
pub static PAGE: ManualPage = ManualPage {
    examples: &[
        Example { about: "Find out why a pool does not start:", command: "stratisd-tools doctor" },
        Example {
            about: "Check the metadata of a pool:",
            command: "stratisd-tools dumpmetadata --only pool /dev/sdb > pool.json\n\
                      stratisd-tools checkmetadata pool.json",
        },
    ],
    exit_status: &[
        ("0", "success"),
        ("1", "the command failed or found something; standard error says what"),
        ("2", "wrong usage"),
    ],
    files: &[],
    environment: &[RUST_LOG],
    see_also: &["stratisd(8)", "stratis-dumpmetadata(8)", "stratis-doctor(8)"],
};

/// The sections of the page of `stratis-dumpmetadata` beside the options.
pub static DUMP_PAGE: ManualPage = ManualPage {
    examples: &[Example {
        about: "Print the metadata of the pool of a disk, as JSON:",
        command: "stratis-dumpmetadata --only pool /dev/sdb",
    }],
    exit_status: &[
        ("0", "the dump is complete"),
        ("1", "the device cannot be read or belongs to no pool; standard error says why"),
        ("2", "wrong usage"),
    ],
    files: &[],
    environment: &[RUST_LOG],
    see_also: &["stratisd(8)", "stratisd-tools(8)"],
};

/// The sections of the page of `stratis-doctor` beside the options.
pub static DOCTOR_PAGE: ManualPage = ManualPage {
    examples: &[
        Example { about: "Examine this system:", command: "stratis-doctor" },
        Example {
            about: "Examine a system that does not boot, from another one:",
            command: "stratis-doctor --root /mnt --device /dev/sdb --device /dev/sdc",
        },
    ],
    exit_status: &[
        ("0", "nothing was found"),
        ("1", "there are warnings"),
        ("2", "there are problems: the system will not boot, or a pool will not start; or wrong usage"),
        ("3", "nothing was found, but something could not be examined"),
    ],
    files: &[],
    environment: &[RUST_LOG],
    see_also: &["stratisd(8)", "stratisd-tools(8)", "systemctl(1)", "lsinitramfs(8)"],
};
