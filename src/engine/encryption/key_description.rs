//! Key descriptions: the names of passphrases in the kernel keyring
//! (`docs/spec/engine/encryption.md` §3).

use std::fmt;

use crate::{
    base::name::shortened,
    platform::keyring::{KEY_PREFIX, NAME_BYTES_MAX},
};

/// Length of the longest key description, in bytes: what the kernel's limit leaves after the
/// prefix.
const DESCRIPTION_BYTES_MAX: usize = NAME_BYTES_MAX - KEY_PREFIX.len();

/// A text that cannot be a key description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum KeyDescriptionError {
    #[error(
        "the key description {0:?} contains `;`, which separates fields in the kernel's list of keys; choose another"
    )]
    Separator(String),
    #[error("the key description {0:?} contains a NUL character; leave it out")]
    Nul(String),
    #[error(
        "the key description has {0} bytes, and the kernel has room for {DESCRIPTION_BYTES_MAX}; choose a shorter one"
    )]
    TooLong(usize),
}

/// The name that a user gives to a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyDescription(String);

impl KeyDescription {
    /// Checks a key description.
    ///
    /// # Errors
    /// If the text is too long for the kernel, or contains a character that separates fields in the
    /// kernel's own listing of keys, or one that ends the kernel's strings.
    pub fn new(text: &str) -> Result<KeyDescription, KeyDescriptionError> {
        let quoted = || shortened(text).into_owned();
        if text.contains(';') {
            return Err(KeyDescriptionError::Separator(quoted()));
        }
        if text.contains('\0') {
            return Err(KeyDescriptionError::Nul(quoted()));
        }
        if text.len() > DESCRIPTION_BYTES_MAX {
            return Err(KeyDescriptionError::TooLong(text.len()));
        }
        Ok(KeyDescription(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key description in the name of a key in the kernel or in a token; `None` if the name
    /// does not have Stratis' prefix. This does not check the characters: other daemons have
    /// allowed some that this daemon refuses, and their bindings must be found.
    pub(in crate::engine) fn from_kernel(name: &str) -> Option<KeyDescription> {
        let text = name.strip_prefix(KEY_PREFIX).filter(|text| !text.is_empty() && !text.contains('\0'))?;
        Some(KeyDescription(text.to_owned()))
    }

    /// The name of the key in the kernel keyring.
    pub(in crate::engine) fn in_kernel(&self) -> String {
        format!("{KEY_PREFIX}{}", self.0)
    }
}

impl fmt::Display for KeyDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_those_that_the_kernel_takes() {
        use KeyDescriptionError::{Nul, Separator, TooLong};
        for good in ["", "k", " a key/with\nall: sorts ", "ключ"] {
            assert_eq!(KeyDescription::new(good).unwrap().as_str(), good);
        }
        let longest = "x".repeat(DESCRIPTION_BYTES_MAX);
        assert_eq!(KeyDescription::new(&longest).unwrap().in_kernel().len(), 4095);
        assert_eq!(KeyDescription::new(&format!("{longest}x")), Err(TooLong(DESCRIPTION_BYTES_MAX + 1)));
        assert_eq!(KeyDescription::new("a;b"), Err(Separator("a;b".to_owned())));
        assert_eq!(KeyDescription::new("a\0b"), Err(Nul("a\0b".to_owned())));
        let said = TooLong(5000).to_string();
        assert_eq!(said, "the key description has 5000 bytes, and the kernel has room for 4081; choose a shorter one");
    }
}
