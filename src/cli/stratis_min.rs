//! The command line of `stratis-min`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{Example, ManualPage};

/// Manages pools in early boot, where there is no D-Bus
///
/// stratis-min sends one request to stratisd-min, the daemon of early boot, and waits for the
/// answer. When stratisd runs, use stratis instead.
///
/// A pool is named by its UUID, or by its name with --name.
#[derive(Debug, Parser)]
#[command(name = "stratis-min", version)]
pub struct StratisMinLine {
    /// Accepted without effect
    #[arg(long, hide = true, global = true)]
    pub debug: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List, set and remove keys of the kernel keyring that unlock pools
    #[command(subcommand_value_name = "COMMAND")]
    Key {
        /// What to do with a key.
        #[command(subcommand)]
        command: Option<KeyCommand>,
    },
    /// List pools, or work on them
    Pool {
        /// What to do with a pool.
        #[command(subcommand)]
        command: Option<PoolCommand>,
    },
    /// List filesystems, or work on them
    Filesystem {
        /// What to do with a filesystem.
        #[command(subcommand)]
        command: Option<FilesystemCommand>,
    },
    /// Print the state of the daemon as JSON
    Report,
}

/// What to do with a key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Set a key
    Set {
        /// Where the key comes from.
        #[command(flatten)]
        source: KeySource,
        /// The key description, by which pools name the key
        #[arg(value_name = "KEYDESC")]
        key_desc: String,
    },
    /// List the key descriptions of all keys
    List,
    /// Remove a key
    Unset {
        /// The key description
        #[arg(value_name = "KEYDESC")]
        key_desc: String,
    },
}

/// Where a key comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct KeySource {
    /// Ask for the key, twice
    #[arg(long)]
    pub capture_key: bool,
    /// Read the key from this file: all its bytes, including a newline at the end
    #[arg(long, value_name = "PATH")]
    pub keyfile_path: Option<PathBuf>,
}

/// Names a pool.
#[derive(Debug, Args)]
pub struct PoolArgument {
    /// ID is the name of the pool instead of its UUID
    #[arg(long = "name")]
    pub is_name: bool,
    /// The pool
    #[arg(value_name = "ID")]
    pub id: String,
}

/// What to do with a pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Start a stopped pool
    Start {
        /// Unlock an encrypted pool by the binding in this token slot, or by any that works
        #[arg(long, value_name = "any|NUMBER")]
        token_slot: Option<String>,
        /// Ask for the passphrase
        #[arg(long)]
        prompt: bool,
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// Stop a pool; it stays stopped until it is started
    Stop {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// Create a pool; this erases the devices
    Create {
        /// Encrypt the pool, and unlock it by this key
        #[arg(long, value_name = "KEYDESC[:SLOT]")]
        key_descs: Vec<String>,
        /// Encrypt the pool, and unlock it by Clevis: "pin=tang tang_url=URL thumbprint=T|trust_url"
        /// or "pin=tpm2", and token_slot=NUMBER
        #[arg(long, value_name = "SPECIFICATION")]
        clevis_infos: Vec<String>,
        /// The name of the pool
        #[arg(value_name = "NAME")]
        name: String,
        /// Its devices
        #[arg(value_name = "DEVICE", required = true)]
        devices: Vec<PathBuf>,
    },
    /// Destroy a pool without filesystems
    Destroy {
        /// The name of the pool
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Rename a pool
    Rename {
        /// Its name
        #[arg(value_name = "CURRENT")]
        current: String,
        /// Its new name
        #[arg(value_name = "NEW")]
        new: String,
    },
    /// Add a cache to a pool
    InitCache {
        /// The name of the pool
        #[arg(value_name = "NAME")]
        name: String,
        /// The devices of the cache
        #[arg(value_name = "DEVICE", required = true)]
        devices: Vec<PathBuf>,
    },
    /// Add data devices to a pool
    AddData {
        /// The name of the pool
        #[arg(value_name = "NAME")]
        name: String,
        /// The devices
        #[arg(value_name = "DEVICE", required = true)]
        devices: Vec<PathBuf>,
    },
    /// Add devices to the cache of a pool
    AddCache {
        /// The name of the pool
        #[arg(value_name = "NAME")]
        name: String,
        /// The devices
        #[arg(value_name = "DEVICE", required = true)]
        devices: Vec<PathBuf>,
    },
    /// Print whether a pool, running or stopped, is encrypted: true or false
    IsEncrypted {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// Print whether a pool is stopped: true or false
    IsStopped {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// Print whether a key or passphrase unlocks a pool: true or false
    HasPassphrase {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// Print whether Clevis unlocks a pool: true or false
    IsBound {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// Add a way to unlock an encrypted pool
    #[command(subcommand)]
    Bind(BindCommand),
    /// Remove a way to unlock an encrypted pool
    #[command(subcommand)]
    Unbind(UnbindCommand),
    /// Replace a way to unlock an encrypted pool
    #[command(subcommand)]
    Rebind(RebindCommand),
}

/// A binding to add.
#[derive(Debug, Subcommand)]
pub enum BindCommand {
    /// By a key of the kernel keyring
    Keyring {
        /// The token slot: legacy for the first of its kind; default: any free one
        #[arg(long, value_name = "legacy|NUMBER")]
        token_slot: Option<String>,
        /// The key description
        #[arg(long, value_name = "KEYDESC")]
        key_desc: String,
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
    /// By a Tang server
    #[command(alias = "tang")]
    Nbde {
        /// The token slot: legacy for the first of its kind; default: any free one
        #[arg(long, value_name = "legacy|NUMBER")]
        token_slot: Option<String>,
        /// Trust the server if its key has this thumbprint
        #[arg(long, value_name = "THUMBPRINT", conflicts_with = "trust_url")]
        thumbprint: Option<String>,
        /// Trust the server without checking its key
        #[arg(long)]
        trust_url: bool,
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
        /// The server
        #[arg(value_name = "URL")]
        url: String,
    },
    /// By the TPM of this machine
    Tpm2 {
        /// The token slot: legacy for the first of its kind; default: any free one
        #[arg(long, value_name = "legacy|NUMBER")]
        token_slot: Option<String>,
        /// The pool.
        #[command(flatten)]
        pool: PoolArgument,
    },
}

/// A binding to remove.
#[derive(Debug, Subcommand)]
pub enum UnbindCommand {
    /// One to a key of the kernel keyring
    Keyring(BindingArgument),
    /// One of Clevis
    Clevis(BindingArgument),
}

/// A binding to replace.
#[derive(Debug, Subcommand)]
pub enum RebindCommand {
    /// One to a key of the kernel keyring
    Keyring {
        /// The new key description
        #[arg(long, value_name = "KEYDESC")]
        key_desc: String,
        /// The binding.
        #[command(flatten)]
        binding: BindingArgument,
    },
    /// One of Clevis, by the same servers or TPM
    Clevis(BindingArgument),
}

/// Names a binding of a pool.
#[derive(Debug, Args)]
pub struct BindingArgument {
    /// Its token slot; default: the only one of its kind
    #[arg(long, value_name = "NUMBER")]
    pub token_slot: Option<u32>,
    /// The pool.
    #[command(flatten)]
    pub pool: PoolArgument,
}

/// What to do with a filesystem.
#[derive(Debug, Subcommand)]
pub enum FilesystemCommand {
    /// Create a filesystem
    Create(FilesystemArgument),
    /// Destroy a filesystem
    Destroy(FilesystemArgument),
    /// Rename a filesystem
    Rename {
        /// The filesystem.
        #[command(flatten)]
        filesystem: FilesystemArgument,
        /// Its new name
        #[arg(value_name = "NEW")]
        new: String,
    },
    /// Print the UUID of the filesystem of which this one is a snapshot, or None
    Origin(FilesystemArgument),
}

/// Names a filesystem.
#[derive(Debug, Args)]
pub struct FilesystemArgument {
    /// The name of its pool
    #[arg(value_name = "POOL")]
    pub pool: String,
    /// Its name
    #[arg(value_name = "FILESYSTEM")]
    pub name: String,
}

/// The sections of its page beside the options.
pub static PAGE: ManualPage = ManualPage {
    examples: &[
        Example { about: "List pools:", command: "stratis-min pool" },
        Example {
            about: "Start an encrypted pool with any binding that works, or with a passphrase from a prompt:",
            command: "stratis-min pool start --name --token-slot any p1\n\
                      stratis-min pool start --name --token-slot any --prompt p1",
        },
        Example { about: "Ask whether a pool is stopped:", command: "stratis-min pool is-stopped --name p1" },
    ],
    exit_status: &[
        ("0", "the request was carried out"),
        ("1", "the request was refused or failed; standard error says why"),
        ("2", "wrong usage"),
    ],
    files: &[("/run/stratisd/stratisd-min-jsonrpc", "the socket of stratisd-min")],
    environment: &[("STRATISD_SIM_RUN_DIR", "the directory in place of /run, for stratisd-min --sim")],
    see_also: &["stratisd-min(8)", "stratis(8)"],
};
