//! Names of pools and filesystems: the rules, checked once and carried as a type.
//!
//! The rules are those of `docs/spec/engine/engine-behaviour.md` section 3, in the order of
//! `dbus-api.md` §7.1: a name must be usable unchanged as one component of a link that udev makes.
//!
//! The existing daemon accepts names that udev changes ([`udev_keeps`]). This daemon refuses them
//! for new names ([`Name::chosen`]), but pools and filesystems that already have such a name stay
//! usable. The links of these use udev's encoding for labels (`\x2c` for a comma). No name contains
//! a backslash, so no two names share a link.

use std::{
    borrow::{Borrow, Cow},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Length of the longest name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;

/// A valid name of a pool or filesystem. Cheap to copy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// The purpose of a text that follows the rules for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPurpose {
    /// The name that a pool or filesystem already has.
    Name,
    /// A new name for a pool or filesystem.
    NewName,
    /// The user's text about a device.
    UserInfo,
}

impl fmt::Display for TextPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TextPurpose::Name | TextPurpose::NewName => "name",
            TextPurpose::UserInfo => "user info",
        })
    }
}

/// Why a text cannot be a name. The text is [`shortened`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum NameError {
    #[error("{} must not be empty", match .0 { TextPurpose::UserInfo => "the user info", _ => "a name" })]
    Empty(TextPurpose),
    #[error("the {0} {1:?} contains a NUL character; leave it out")]
    Nul(TextPurpose, String),
    #[error("the {0} {1:?} stands for a directory; choose another")]
    Dots(TextPurpose, String),
    #[error("the {0} `{1}` has more than {NAME_BYTES_MAX} bytes; choose a shorter one")]
    TooLong(TextPurpose, String),
    #[error("the {0} {1:?} begins or ends with white space; leave it out")]
    OuterSpace(TextPurpose, String),
    #[error("the {0} {1:?} contains control characters; leave them out")]
    Control(TextPurpose, String),
    #[error(
        "the {0} `{1}` contains the character {2:?}, which {why}; of ASCII use only letters, digits and {marks}",
        why = match .0 { TextPurpose::UserInfo => "it cannot have, just as names", _ => "udev would change in a link" },
        marks = match .0 { TextPurpose::NewName => "# + - . : = @ _", _ => "# + , - . : = @ _" }
    )]
    Character(TextPurpose, String, char),
    #[error("the {0} `{1}` is a path; it must not contain `/`")]
    Path(TextPurpose, String),
}

/// A text from outside, for quoting in a sentence. A long text is reduced to its beginning
/// and its end.
pub fn shortened(text: &str) -> Cow<'_, str> {
    const ENDS: usize = 40;
    let end_of_head = text.char_indices().nth(ENDS).map(|(at, _)| at);
    let start_of_tail = text.char_indices().rev().nth(ENDS - 1).map(|(at, _)| at);
    match end_of_head.zip(start_of_tail) {
        Some((head, tail)) if head < tail => Cow::Owned(format!("{}…{}", &text[..head], &text[tail..])),
        _ => Cow::Borrowed(text),
    }
}

/// Checks that a text follows the rules for names.
///
/// # Errors
/// The first rule that `text` breaks.
pub fn check(purpose: TextPurpose, text: &str) -> Result<(), NameError> {
    let quoted = || shortened(text).into_owned();
    if text.is_empty() {
        return Err(NameError::Empty(purpose));
    }
    if text.contains('\0') {
        return Err(NameError::Nul(purpose, quoted()));
    }
    if text == "." || text == ".." {
        return Err(NameError::Dots(purpose, quoted()));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(purpose, quoted()));
    }
    if text.trim() != text {
        return Err(NameError::OuterSpace(purpose, quoted()));
    }
    if text.chars().any(char::is_control) {
        return Err(NameError::Control(purpose, quoted()));
    }
    if text.contains('/') {
        return Err(NameError::Path(purpose, quoted()));
    }
    let recordable = |c: char| c == ',' || !c.is_ascii() || udev_keeps(c);
    let allowed = |c: &char| if purpose == TextPurpose::NewName { udev_keeps(*c) } else { recordable(*c) };
    match text.chars().find(|c| !allowed(c)) {
        Some(bad) => Err(NameError::Character(purpose, quoted(), bad)),
        None => Ok(()),
    }
}

/// Whether udev leaves a character of a link unchanged. It does for printable ASCII from its list,
/// and for all of Unicode except the 66 noncharacters. The scenario `names` of the machine tests
/// asks udev itself about every code point.
pub fn udev_keeps(c: char) -> bool {
    match c {
        '\0'..='\x7f' => c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c),
        '\u{fdd0}'..='\u{fdef}' => false,
        _ => u32::from(c) & 0xfffe != 0xfffe,
    }
}

impl Name {
    /// Checks the existing name of a pool or filesystem and makes a `Name` of it.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: &str) -> Result<Name, NameError> {
        check(TextPurpose::Name, text).map(|()| Name(text.into()))
    }

    /// Checks a new name of a pool or filesystem and makes a `Name` of it.
    ///
    /// # Errors
    /// The first rule that `text` breaks. This refuses names that udev would change in a link, too.
    pub fn chosen(text: &str) -> Result<Name, NameError> {
        check(TextPurpose::NewName, text).map(|()| Name(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a component of a link. Each byte that udev would change is written as `\xNN`. No
    /// two names have the same link text.
    pub fn link_text(&self) -> Cow<'_, str> {
        self.spelled(|byte| format!("\\x{byte:02x}"))
    }

    /// The name as udev changes it by itself. Two names may have the same result.
    fn replaced(&self) -> Cow<'_, str> {
        self.spelled(|_| "_".to_owned())
    }

    fn spelled(&self, spell: impl Fn(u8) -> String) -> Cow<'_, str> {
        if self.0.chars().all(udev_keeps) {
            return Cow::Borrowed(&self.0);
        }
        let mut text = String::new();
        for c in self.0.chars() {
            if udev_keeps(c) {
                text.push(c);
            } else {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| text.push_str(&spell(byte)));
            }
        }
        Cow::Owned(text)
    }

    /// The link by which users reach the filesystem with this name in a pool
    /// (`docs/spec/tools/system-integration.md` §1.1).
    pub fn link_in(&self, pool: &Name) -> PathBuf {
        Path::new("/dev/stratis").join(&*pool.link_text()).join(&*self.link_text())
    }

    /// The link that udev made under the existing daemon for the filesystem with this name; `None`
    /// if it equals ours.
    pub fn former_link_in(&self, pool: &Name) -> Option<PathBuf> {
        let link = Path::new("/dev/stratis").join(&*pool.replaced()).join(&*self.replaced());
        (link != self.link_in(pool)).then_some(link)
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
    use super::{Name, NameError, TextPurpose, check, shortened};

    #[test]
    fn accepts_what_udev_keeps() {
        for good in ["a", "p1", "a,b", "x=y@z", "#1", "ünïcode☺", "...", "a:b.c-d_e+f", &"n".repeat(255)] {
            assert_eq!(Name::new(good).map(|n| n.as_str().to_owned()), Ok(good.to_owned()));
        }
    }

    /// The links of a pool named `a,b` were under `/dev/stratis/a_b`, in the directory of a pool
    /// named `a_b`.
    #[test]
    fn names_that_udev_changes_are_not_given() {
        for text in ["a,b", ",", "x\u{fdd0}", "\u{fdef}", "\u{fffe}y", "\u{1ffff}", "\u{10fffe}"] {
            let error = Name::chosen(text).expect_err(text);
            assert!(matches!(error, NameError::Character(TextPurpose::NewName, ..)), "{text:?} gave {error:?}");
            assert!(error.to_string().ends_with("letters, digits and # + - . : = @ _"), "{error}");
            assert!(Name::new(text).is_ok(), "{text:?}: what has such a name keeps it");
        }
        for good in ["a", "x=y@z", "#1", "ünïcode☺", "\u{fdcf}", "\u{fdf0}", "\u{fffd}", "\u{10fffd}"] {
            assert!(Name::chosen(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn no_two_names_have_one_link() {
        let name = |text| Name::new(text).unwrap();
        let link = |pool, filesystem| name(filesystem).link_in(&name(pool)).to_str().unwrap().to_owned();
        let former = |pool, filesystem| {
            name(filesystem).former_link_in(&name(pool)).map(|path| path.to_str().unwrap().to_owned())
        };
        assert_eq!((link("p", "ü:f"), former("p", "ü:f")), ("/dev/stratis/p/ü:f".to_owned(), None));
        assert_eq!(link("a,b", "f"), "/dev/stratis/a\\x2cb/f");
        assert_eq!(former("a,b", "f").as_deref(), Some("/dev/stratis/a_b/f"));
        assert_eq!(link("p", "\u{fffe}"), "/dev/stratis/p/\\xef\\xbf\\xbe");
        assert_eq!(former("p", "\u{fffe}").as_deref(), Some("/dev/stratis/p/___"));
        assert_eq!((link("a_b", "f"), former("a_b", "f")), ("/dev/stratis/a_b/f".to_owned(), None));
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
    fn a_refusal_quotes_at_most_a_line() {
        let says = |purpose, text: &str| check(purpose, text).expect_err(text).to_string();
        assert_eq!(says(TextPurpose::UserInfo, ""), "the user info must not be empty");
        assert_eq!(says(TextPurpose::Name, ""), "a name must not be empty");
        assert!(
            says(TextPurpose::Name, "a b").contains("which udev would change in a link; of ASCII use only letters")
        );
        assert!(
            says(TextPurpose::UserInfo, "a b")
                .contains("which it cannot have, just as names; of ASCII use only letters")
        );
        for text in ["n".repeat(100_000), "☺/".repeat(100), format!("{}\0", "n".repeat(100_000))] {
            let said = says(TextPurpose::Name, &text);
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
