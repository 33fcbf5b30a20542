//! LUKS2 as plain values: how to format a header, what a header says, and how to change it
//! (`docs/spec/engine/encryption.md` §1, 2, 9).
//!
//! This module knows LUKS devices, keyslots and tokens. The engine decides what a token means and
//! which keys unlock a pool.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keyring::Secret;
use crate::base::units::{Bytes, Sectors};

/// Length of a volume key in bytes: two keys of AES-256, as XTS takes them.
pub const VOLUME_KEY_BYTES: usize = 64;
/// Longest passphrase in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 64;
/// Keyslot and token numbers are below this.
pub const NUMBERS: u32 = 32;

/// Layout of a new LUKS device. The cipher is always `aes-xts-plain64` with a random volume key of
/// [`VOLUME_KEY_BYTES`]. Two copies of the header come first, then the keyslots, then the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderLayout {
    /// Size of each copy of the header, including its binary part of 4 KiB.
    pub metadata: Bytes,
    /// Size of the area of all keyslots.
    pub keyslots: Bytes,
    /// Start of the data.
    pub data_offset: Sectors,
    /// Encryption sector size in bytes; `None` to let the library choose what suits the device.
    pub sector_size: Option<u32>,
}

/// What a header is formatted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FormatPurpose {
    /// A LUKS device without data.
    New,
    /// A LUKS device over plaintext data that already lies behind the data offset. The header says
    /// from the start that nothing is encrypted yet ([`DataEncryption::Unfinished`] with
    /// [`ReencryptionMode::Encrypt`] and 0 bytes done). Only
    /// [`Platform::luks_reencrypt`](super::Platform::luks_reencrypt) starts to encrypt.
    Encrypt,
}

/// Cost of deriving a keyslot's key from a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cost {
    /// For passphrases that people remember: the library's default.
    Guessable,
    /// Low: the passphrase is random and of the longest size.
    Random,
}

/// A passphrase for a new keyslot.
#[derive(Debug)]
pub struct NewKeyslot<'a> {
    /// Number of the keyslot, which must be free.
    pub number: u32,
    /// The passphrase.
    pub passphrase: &'a Secret,
    /// Cost of the key derivation.
    pub cost: Cost,
}

/// A passphrase and the keyslot to try it on.
#[derive(Debug, Clone, Copy)]
pub struct Unlock<'a> {
    /// The passphrase.
    pub passphrase: &'a Secret,
    /// The keyslot to try; `None` for all.
    pub keyslot: Option<u32>,
}

/// What a re-encryption job does with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReencryptionMode {
    /// Encrypts plaintext.
    Encrypt,
    /// Replaces the volume key.
    Reencrypt,
    /// Decrypts to plaintext.
    Decrypt,
}

/// What a header says about the data behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataEncryption {
    /// The data is encrypted.
    Encrypted,
    /// A re-encryption job was started and not completed.
    Unfinished {
        /// Its mode.
        mode: ReencryptionMode,
        /// Number of bytes that the job has finished. 0 means that the job has not touched the
        /// data. If only its first hot zone was being rewritten, this is 1.
        done: Bytes,
    },
    /// The data is plaintext: it has been decrypted completely.
    Clear,
}

/// A header, as read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// UUID of the LUKS device.
    pub uuid: String,
    /// Start of the data.
    pub data_offset: Sectors,
    /// Encryption sector size in bytes.
    pub sector_size: u32,
    /// What the header says about the data.
    pub state: DataEncryption,
    /// Keyslots that hold a volume key, either the current one or its successor.
    pub keyslots: BTreeSet<u32>,
    /// The keyslots among them whose volume key neither encrypts data nor is about to: leftovers.
    pub unused: BTreeSet<u32>,
    /// Tokens: objects with `type` and `keyslots`.
    pub tokens: BTreeMap<u32, Value>,
}

impl Header {
    /// The free keyslot numbers, lowest first.
    pub fn free_keyslots(&self) -> impl Iterator<Item = u32> {
        (0..NUMBERS).filter(|number| !self.keyslots.contains(number))
    }

    /// The lowest free token number.
    pub fn free_token(&self) -> Option<u32> {
        (0..NUMBERS).find(|number| !self.tokens.contains_key(number))
    }
}

/// One change of a header. Each is durable and atomic by itself, because the header has two copies.
#[derive(Debug)]
pub enum HeaderChange<'a> {
    /// Adds a passphrase for the current volume key.
    AddKeyslot(NewKeyslot<'a>),
    /// Adds a passphrase for the next volume key, which will replace the current one. The first
    /// such change of a call generates that key; later ones in the same call use it too.
    AddNextKeyslot(NewKeyslot<'a>),
    /// Wipes a keyslot and removes its number from all tokens. Succeeds if there is none.
    DestroyKeyslot(u32),
    /// Writes or replaces a token. Its keyslots must exist.
    PutToken(u32, Value),
    /// Removes a token and keeps its keyslots. Succeeds if there is none.
    RemoveToken(u32),
}

/// Progress of a re-encryption job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes finished.
    pub done: Bytes,
    /// Bytes in all.
    pub total: Bytes,
}

/// Which re-encryption job to start or resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Begin {
    /// Resume the job that the header names.
    Resume,
    /// Replace the volume key of one keyslot by that of another; the same passphrase opens both.
    /// When the job completes, no keyslot holds the old volume key.
    Reencrypt {
        /// Keyslot of the current volume key.
        from: u32,
        /// Keyslot made by [`HeaderChange::AddNextKeyslot`].
        to: u32,
    },
    /// Decrypt.
    Decrypt,
}

/// How a re-encryption job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReencryptionEnd {
    /// It is complete.
    Finished,
    /// The job was stopped. The header says how far it came.
    Interrupted,
}
