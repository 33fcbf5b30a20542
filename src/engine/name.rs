//! Names of pools and filesystems: what is allowed, checked once, carried as a type.
//!
//! The rules are those of `spec/engine/engine-behaviour.md` section 3, in the order of `dbus-api.md` §7.1:
//! a name must be usable unchanged as one component of a link that udev makes.

use std::{
    borrow::Borrow,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;

/// A valid name of a pool or filesystem. Cheap to copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("the name {0:?} contains a NUL character; leave it out")]
    Nul(String),
    #[error("the name {0:?} stands for a directory; choose another")]
    Dots(String),
    #[error("the name `{0}` has more than {NAME_BYTES_MAX} bytes; choose a shorter one")]
    TooLong(String),
    #[error("the name {0:?} begins or ends with white space; leave it out")]
    OuterSpace(String),
    #[error("the name {0:?} contains control characters; leave them out")]
    Control(String),
    #[error(
        "the name `{0}` contains the character {1:?}, which udev would change in a link; \
         of ASCII use only letters, digits and # + , - . : = @ _"
    )]
    Character(String, char),
    #[error("the name `{0}` is a path; a name must not contain `/`")]
    Path(String),
}

impl Name {
    /// Checks `text` and makes a name of it.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: &str) -> Result<Name, NameError> {
        let owned = || text.to_owned();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.contains('\0') {
            return Err(NameError::Nul(owned()));
        }
        if text == "." || text == ".." {
            return Err(NameError::Dots(owned()));
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(owned()));
        }
        if text.trim() != text {
            return Err(NameError::OuterSpace(owned()));
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Control(owned()));
        }
        if text.contains('/') {
            return Err(NameError::Path(owned()));
        }
        let allowed = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "#+,-.:=@_".contains(c);
        match text.chars().find(|c| !allowed(*c)) {
            Some(bad) => Err(NameError::Character(owned(), bad)),
            None => Ok(Name(text.into())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The link through which users reach the filesystem of this name in a pool
    /// (`spec/tools/system-integration.md` §1.1).
    pub fn link_in(&self, pool: &Name) -> PathBuf {
        Path::new("/dev/stratis").join(pool.as_str()).join(self.as_str())
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Name, NameError};

    #[test]
    fn accepts_what_udev_keeps() {
        for good in ["a", "p1", "a,b", "x=y@z", "#1", "ünïcode☺", "...", "a:b.c-d_e+f", &"n".repeat(255)] {
            assert_eq!(Name::new(good).map(|n| n.as_str().to_owned()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn refuses_each_rule() {
        type Case<'a> = (&'a str, fn(&NameError) -> bool);
        let cases: [Case<'_>; 14] = [
            ("", |e| matches!(e, NameError::Empty)),
            ("a\0", |e| matches!(e, NameError::Nul(_))),
            (".", |e| matches!(e, NameError::Dots(_))),
            ("..", |e| matches!(e, NameError::Dots(_))),
            (&"n".repeat(256), |e| matches!(e, NameError::TooLong(_))),
            (" x", |e| matches!(e, NameError::OuterSpace(_))),
            ("x\u{a0}", |e| matches!(e, NameError::OuterSpace(_))),
            ("a\tb", |e| matches!(e, NameError::Control(_))),
            ("a\u{85}b", |e| matches!(e, NameError::Control(_))),
            ("a b", |e| matches!(e, NameError::Character(_, ' '))),
            ("dollar$", |e| matches!(e, NameError::Character(_, '$'))),
            ("a/b", |e| matches!(e, NameError::Path(_))),
            ("/foo", |e| matches!(e, NameError::Path(_))),
            ("foo/", |e| matches!(e, NameError::Path(_))),
        ];
        for (text, expected) in cases {
            let error = Name::new(text).expect_err(text);
            assert!(expected(&error), "{text:?} gave {error:?}");
        }
    }
}
