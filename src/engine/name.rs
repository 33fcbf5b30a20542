//! Names of pools and filesystems: what is allowed, checked once, carried as a type.
//!
//! The rules are those of `spec/engine/engine-behaviour.md` section 3, in the order of `dbus-api.md` §7.1:
//! a name must be usable unchanged as one component of a link that udev makes.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;

/// A valid name of a pool or filesystem. Cheap to copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// What a text that keeps the rules of names is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A pool or filesystem.
    Name,
    /// What the user says of a device.
    UserInfo,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Subject::Name => "name",
            Subject::UserInfo => "user info",
        })
    }
}

/// Why a text cannot be a name; the text is [`shortened`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum NameError {
    #[error("{} must not be empty", match .0 { Subject::Name => "a name", Subject::UserInfo => "the user info" })]
    Empty(Subject),
    #[error("the {0} {1:?} contains a NUL character; leave it out")]
    Nul(Subject, String),
    #[error("the {0} {1:?} stands for a directory; choose another")]
    Dots(Subject, String),
    #[error("the {0} `{1}` has more than {NAME_BYTES_MAX} bytes; choose a shorter one")]
    TooLong(Subject, String),
    #[error("the {0} {1:?} begins or ends with white space; leave it out")]
    OuterSpace(Subject, String),
    #[error("the {0} {1:?} contains control characters; leave them out")]
    Control(Subject, String),
    #[error(
        "the {0} `{1}` contains the character {2:?}, which {why}; of ASCII use only letters, digits and # + , - . : = @ _",
        why = match .0 { Subject::Name => "udev would change in a link", Subject::UserInfo => "it cannot have, just as names" }
    )]
    Character(Subject, String, char),
    #[error("the {0} `{1}` is a path; it must not contain `/`")]
    Path(Subject, String),
}

/// A text that somebody else has chosen, for quoting in a sentence: of a long one its beginning and its end.
pub fn shortened(text: &str) -> Cow<'_, str> {
    const ENDS: usize = 40;
    let end_of_head = text.char_indices().nth(ENDS).map(|(at, _)| at);
    let start_of_tail = text.char_indices().rev().nth(ENDS - 1).map(|(at, _)| at);
    match end_of_head.zip(start_of_tail) {
        Some((head, tail)) if head < tail => Cow::Owned(format!("{}…{}", &text[..head], &text[tail..])),
        _ => Cow::Borrowed(text),
    }
}

/// Checks that a text keeps the rules of names.
///
/// # Errors
/// The first rule that `text` breaks.
pub fn check(subject: Subject, text: &str) -> Result<(), NameError> {
    let quoted = || shortened(text).into_owned();
    if text.is_empty() {
        return Err(NameError::Empty(subject));
    }
    if text.contains('\0') {
        return Err(NameError::Nul(subject, quoted()));
    }
    if text == "." || text == ".." {
        return Err(NameError::Dots(subject, quoted()));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(subject, quoted()));
    }
    if text.trim() != text {
        return Err(NameError::OuterSpace(subject, quoted()));
    }
    if text.chars().any(char::is_control) {
        return Err(NameError::Control(subject, quoted()));
    }
    if text.contains('/') {
        return Err(NameError::Path(subject, quoted()));
    }
    let allowed = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "#+,-.:=@_".contains(c);
    match text.chars().find(|c| !allowed(*c)) {
        Some(bad) => Err(NameError::Character(subject, quoted(), bad)),
        None => Ok(()),
    }
}

impl Name {
    /// Checks `text` and makes a name of it.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: &str) -> Result<Name, NameError> {
        check(Subject::Name, text).map(|()| Name(text.into()))
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
    use super::{Name, NameError, Subject, check, shortened};

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
            ("", |e| matches!(e, NameError::Empty(_))),
            ("a\0", |e| matches!(e, NameError::Nul(..))),
            (".", |e| matches!(e, NameError::Dots(..))),
            ("..", |e| matches!(e, NameError::Dots(..))),
            (&"n".repeat(256), |e| matches!(e, NameError::TooLong(..))),
            (" x", |e| matches!(e, NameError::OuterSpace(..))),
            ("x\u{a0}", |e| matches!(e, NameError::OuterSpace(..))),
            ("a\tb", |e| matches!(e, NameError::Control(..))),
            ("a\u{85}b", |e| matches!(e, NameError::Control(..))),
            ("a b", |e| matches!(e, NameError::Character(.., ' '))),
            ("dollar$", |e| matches!(e, NameError::Character(.., '$'))),
            ("a/b", |e| matches!(e, NameError::Path(..))),
            ("/foo", |e| matches!(e, NameError::Path(..))),
            ("foo/", |e| matches!(e, NameError::Path(..))),
        ];
        for (text, expected) in cases {
            let error = Name::new(text).expect_err(text);
            assert!(expected(&error), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_was_refused_and_quotes_no_more_than_a_line() {
        let says = |subject, text: &str| check(subject, text).expect_err(text).to_string();
        assert_eq!(says(Subject::UserInfo, ""), "the user info must not be empty");
        assert_eq!(says(Subject::Name, ""), "a name must not be empty");
        assert!(says(Subject::Name, "a b").contains("which udev would change in a link; of ASCII use only letters"));
        assert!(
            says(Subject::UserInfo, "a b").contains("which it cannot have, just as names; of ASCII use only letters")
        );
        for text in ["n".repeat(100_000), "☺/".repeat(100), format!("{}\0", "n".repeat(100_000))] {
            let said = says(Subject::Name, &text);
            assert!(said.chars().count() < 240, "{said}");
        }
    }

    #[test]
    fn of_long_texts_both_ends_are_quoted() {
        let of_80 = format!("{}{}", "a".repeat(40), "b".repeat(40));
        assert_eq!(shortened(&of_80), of_80);
        assert_eq!(shortened("☺"), "☺");
        assert_eq!(shortened(""), "");
        let of_81 = format!("{}x{}", "ä".repeat(40), "☺".repeat(40));
        assert_eq!(shortened(&of_81), of_81.replace('x', "…"));
        assert_eq!(shortened(&"n".repeat(100_000)).chars().count(), 81);
    }
}
