//! Identifiers of pools, devices and filesystems. Each has its own type, so that they cannot be
//! mixed up.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a UUID; give 32 hexadecimal digits, with or without hyphens")]
pub struct NotAUuid {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a random (version 4) identifier from 16 random bytes.
            pub fn from_random(bytes: [u8; 16]) -> $name {
                $name(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }

            /// The form of device names, signature blocks and the bus: 32 lower-case hexadecimal
            /// digits.
            pub fn simple(&self) -> String {
                self.0.simple().to_string()
            }

            /// The form of JSON and messages: 36 characters with hyphens.
            pub fn hyphenated(&self) -> String {
                self.0.hyphenated().to_string()
            }

            /// The 16 bytes, most significant first.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> $name {
                $name(uuid)
            }
        }

        impl FromStr for $name {
            type Err = NotAUuid;

            /// Accepts either form, also with `urn:uuid:` or braces.
            fn from_str(text: &str) -> Result<$name, NotAUuid> {
                Uuid::parse_str(text).map($name).map_err(|_| NotAUuid { text: text.chars().take(80).collect() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

id!(
    /// Identifies a pool.
    PoolUuid
);
id!(
    /// Identifies a block device of a pool.
    DevUuid
);
id!(
    /// Identifies a filesystem; also the UUID of the XFS in it.
    FsUuid
);
