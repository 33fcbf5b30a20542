//! What interfaces there are, and what a member of one can be, apart from who carries it out:
//! kinds, revisions, names, how changes are announced.
//!
//! Facts: `docs/spec/dbus/dbus-api.md` §2, §3.

use std::ops::RangeInclusive;

use crate::{
    bus::properties::{DeviceObject, FilesystemObject},
    view,
};

/// The newest revision of the interfaces. Every object offers all from r0 on.
pub const LAST_REVISION: u8 = 9;

/// How many revisions there are.
pub const REVISIONS: usize = LAST_REVISION as usize + 1;

/// All revisions.
pub const ALL: RangeInclusive<u8> = 0..=LAST_REVISION;

/// What the names of all our interfaces begin with.
const PREFIX: &str = "org.storage.stratis3.";

/// The kinds of interface; each belongs to one kind of object, the first two to the top object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Manager,
    Report,
    Pool,
    Filesystem,
    Blockdev,
}

impl Kind {
    /// Every kind.
    pub const EVERY: [Kind; 5] = [Kind::Manager, Kind::Report, Kind::Pool, Kind::Filesystem, Kind::Blockdev];

    /// The word in the interface's name.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Manager => "Manager",
            Kind::Report => "Report",
            Kind::Pool => "pool",
            Kind::Filesystem => "filesystem",
            Kind::Blockdev => "blockdev",
        }
    }
}

/// One of our interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Of which kind.
    pub kind: Kind,
    /// In which revision.
    pub revision: u8,
}

impl Interface {
    /// The interface of that full name, if it is one of ours.
    pub fn parse(name: &str) -> Option<Interface> {
        let (word, revision) = name.strip_prefix(PREFIX)?.split_once(".r")?;
        let kind = Kind::EVERY.into_iter().find(|kind| kind.word() == word)?;
        // Exactly as we write them: `r+1` and `r01` are others.
        let is_canonical =
            revision.starts_with(|c: char| c.is_ascii_digit()) && (revision.len() == 1 || !revision.starts_with('0'));
        let revision = revision.parse().ok().filter(|number| is_canonical && ALL.contains(number))?;
        Some(Interface { kind, revision })
    }

    /// Its full name.
    pub fn name(self) -> String {
        format!("{PREFIX}{}", self.short())
    }

    /// Its name without what all have in common, for the log.
    pub fn short(self) -> String {
        format!("{}.r{}", self.kind.word(), self.revision)
    }
}

/// An argument: its name, which is informative only, and its type.
pub type Argument = (&'static str, &'static str);

/// How a property's change is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emits {
    /// With its new value.
    Value,
    /// By its name.
    Invalidation,
    /// It never changes.
    Const,
    /// Not at all.
    Nothing,
}

/// What a reply is filled with when there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filler {
    /// [`Value::filler`](crate::bus::wire::Value::filler).
    Plain,
    /// The same with a UUID of zeros for the text: `(false, "000…")`.
    Zeros,
}

/// What a property belongs to, as the functions that compute it want it.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Subject<'a> {
    Manager(&'a view::View),
    Pool(&'a view::Pool),
    Filesystem(&'a FilesystemObject),
    Device(&'a DeviceObject),
}
