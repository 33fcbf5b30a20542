//! The operations: each is a chain of steps ([`Step`](crate::engine::request::Step)) that a client, an event or the daemon's
//! start asks for.
//!
//! Each operation first checks everything that can refuse it. It then claims what it will change,
//! acts, and ends with one durable write, the commit point. The steps after the commit point can be
//! repeated; if they are interrupted, the next set-up completes them.

mod bring_up;
mod cache;
mod candidates;
mod check;
mod create_pool;
mod device_event;
mod devices;
mod discover;
mod encryption;
mod filesystems;
mod grow_filesystems;
mod identify;
mod keys;
mod leftovers;
mod limits;
mod links;
mod locate;
mod metadata;
mod pool_access;
mod pools;
mod read_devices;
mod reencryption;
mod reencryption_job;
mod refresh;
mod snapshot;
mod start;
mod stop;

pub use bring_up::Started;
pub use check::{Depth, check_all, check_now, check_pool};
pub use create_pool::{Created, NewPool, create_pool};
pub use device_event::device_event;
pub use devices::{add_cache_devices, add_data_devices, grow_device, init_cache, set_user_info};
pub use discover::{FirstLook, Labelled, being_set_up, discover, first_look, present_devices};
pub use encryption::{bind, rebind, unbind};
pub use filesystems::{NewFilesystem, create_filesystems, destroy_filesystems, rename_filesystem};
pub use grow_filesystems::{check_filesystems, check_filesystems_now, set_size_limit};
pub use keys::{list_keys, set_key, unset_key};
pub use limits::{set_fs_limit, set_overprovisioning};
pub use links::check as check_links;
pub use metadata::{MetadataCopy, filesystem_metadata, pool_metadata};
pub use pools::{destroy_pool, rename_pool};
pub use reencryption::{decrypt_pool, encrypt_pool, reencrypt_pool};
pub use refresh::refresh;
pub use snapshot::{schedule_revert, snapshot_filesystem};
pub use start::start_pool;
pub use stop::{StopOutcome, stop_pool};

/// How a pool is to be unlocked.
pub use crate::engine::luks_devices::lifecycle::UnlockOptions;
/// What a request for a new pool may contain, in the form that is recorded.
pub use crate::engine::metadata::{IntegritySpec, JOURNAL_UNIT, MetadataVersion, TagSpec};
pub use crate::engine::setup::CacheTier;
/// A passphrase, and the effect of setting it.
pub use crate::platform::keyring::{KeyChange, Secret};
