//! LUKS2 as values: what a header is to be, what one says, and what is to be changed in it
//! (`docs/spec/engine/encryption.md` §1, 2, 9).
//!
//! Knows containers, keyslots and tokens. What a token means, and which keys open a pool, is decided in the engine.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keyring::Secret;
use crate::base::units::{Bytes, Sectors};

/// Length of a volume key in bytes: two keys of AES-256, as XTS takes them.
pub const VOLUME_KEY_BYTES: usize = 64;
/// Longest passphrase in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 64;
/// A keyslot or token number is below this.
pub const NUMBERS: u32 = 32;

/// Where things lie in a container that is to be made. The cipher is always `aes-xts-plain64` with a random volume key of
/// [`VOLUME_KEY_BYTES`]. There are two copies of the header, then the keyslots, then the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Size of each copy of the header, its binary part of 4 KiB included.
    pub metadata: Bytes,
    /// Size of all keyslots together.
    pub keyslots: Bytes,
    /// Where the data begins.
    pub data_offset: Sectors,
    /// Size of an encryption sector in bytes; `None`: what suits the device.
    pub sector_size: Option<u32>,
}

/// What a header is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// A container with nothing in it yet.
    New,
    /// A container around what lies behind the data offset in the clear now. The header says from the first moment that nothing is
    /// encrypted yet ([`State::Unfinished`] with [`ReencryptionMode::Encrypt`] and nothing done), and only
    /// [`Platform::luks_reencrypt`](super::Platform::luks_reencrypt) begins with it.
    Encrypt,
}

/// How much work it is to find a keyslot's key from a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cost {
    /// As is right for what people remember: the default of the library.
    Guessable,
    /// Little: the passphrase is random and as long as they may be.
    Random,
}

/// A passphrase that gets a keyslot.
#[derive(Debug)]
pub struct NewKeyslot<'a> {
    /// Number of the keyslot; it is free.
    pub number: u32,
    /// What is to open it.
    pub passphrase: &'a Secret,
    /// The work it is to be.
    pub cost: Cost,
}

/// A passphrase, and where it fits.
#[derive(Debug, Clone, Copy)]
pub struct Unlock<'a> {
    /// The passphrase.
    pub passphrase: &'a Secret,
    /// The keyslot to be tried; `None`: each.
    pub keyslot: Option<u32>,
}

/// What an unfinished work does with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReencryptionMode {
    /// Encrypts what is in the clear.
    Encrypt,
    /// Puts a new volume key in place of the old one.
    Reencrypt,
    /// Decrypts what is encrypted.
    Decrypt,
}

/// What a header says of the data behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is encrypted.
    Encrypted,
    /// A work on it has been begun and not completed.
    Unfinished {
        /// Which.
        mode: ReencryptionMode,
        /// So many bytes of it are as they are to be. 0: the data is as it was before, and no part of it was being worked on
        /// either; where just the first part was, it is 1.
        done: Bytes,
    },
    /// It is in the clear: it has been decrypted completely.
    Clear,
}

/// A header, as read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// UUID of the container.
    pub uuid: String,
    /// Where the data begins.
    pub data_offset: Sectors,
    /// Size of an encryption sector in bytes.
    pub sector_size: u32,
    /// What it says of the data.
    pub state: State,
    /// Keyslots that hold a volume key: the one in use, or one that is to be.
    pub keyslots: BTreeSet<u32>,
    /// Those of them that hold a volume key which no data is encrypted with, nor is about to be: left over.
    pub unused: BTreeSet<u32>,
    /// Tokens, each an object with `type` and `keyslots`.
    pub tokens: BTreeMap<u32, Value>,
}

impl Header {
    /// The numbers that no keyslot has, from the lowest on.
    pub fn free_keyslots(&self) -> impl Iterator<Item = u32> {
        (0..NUMBERS).filter(|number| !self.keyslots.contains(number))
    }

    /// The lowest number that no token has.
    pub fn free_token(&self) -> Option<u32> {
        (0..NUMBERS).find(|number| !self.tokens.contains_key(number))
    }
}

/// One change of a header. Each is durable and all or nothing by itself: the header has two copies.
#[derive(Debug)]
pub enum HeaderChange<'a> {
    /// A further passphrase for the volume key in use.
    AddKeyslot(NewKeyslot<'a>),
    /// A passphrase for the volume key that is to take the place of the one in use. The first such change makes that key; those
    /// after it, in the same call, hold the same.
    AddNextKeyslot(NewKeyslot<'a>),
    /// Overwrites a keyslot and takes its number out of all tokens. Destroying one that is not there is no error.
    DestroyKeyslot(u32),
    /// Puts a token in place of any of that number. Its keyslots must be there.
    PutToken(u32, Value),
    /// Removes a token, its keyslots stay; none there is no error.
    RemoveToken(u32),
}

/// How far a work on the data of a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that are as they are to be.
    pub done: Bytes,
    /// Bytes in all.
    pub total: Bytes,
}

/// Which work is to be begun or gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Begin {
    /// Go on with the one that the header says is unfinished.
    Resume,
    /// Put the volume key of one keyslot in place of that of another; the same passphrase opens both. All keyslots of the
    /// old volume key are gone when it is done.
    Reencrypt {
        /// Keyslot of the volume key in use.
        from: u32,
        /// Keyslot made by [`HeaderChange::AddNextKeyslot`].
        to: u32,
    },
    /// Decrypt.
    Decrypt,
}

/// How a work on the data of a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// All of it is done.
    Finished,
    /// It was told to stop; the header says how far it came.
    Interrupted,
}
