//! The interfaces and the possible forms of their members, apart from the code behind them: kinds,
//! revisions, names, and how changes are announced.
//!
//! Facts: `docs/spec/dbus/dbus-api.md` §2, §3.

use std::ops::RangeInclusive;

use crate::{
    bus::{
        manager::StoppedLists,
        properties::{DeviceObject, FilesystemObject},
    },
    view,
};

/// The newest revision of the interfaces. Every object offers all revisions from r0 on.
pub const LAST_REVISION: u8 = 9;

/// Number of revisions.
pub const REVISIONS: usize = LAST_REVISION as usize + 1;

/// All revisions.
pub const ALL: RangeInclusive<u8> = 0..=LAST_REVISION;

/// Common prefix of the daemon's interface names.
const PREFIX: &str = "org.storage.stratis3.";

/// The kinds of interface. Each belongs to one kind of object; the first two belong to the top
/// object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum InterfaceKind {
    Manager,
    Report,
    Pool,
    Filesystem,
    Blockdev,
}

impl InterfaceKind {
    /// Every kind.
    pub const EVERY: [InterfaceKind; 5] = [
        InterfaceKind::Manager,
        InterfaceKind::Report,
        InterfaceKind::Pool,
        InterfaceKind::Filesystem,
        InterfaceKind::Blockdev,
    ];

    /// The word in the interface's name.
    pub fn word(self) -> &'static str {
        match self {
            InterfaceKind::Manager => "Manager",
            InterfaceKind::Report => "Report",
            InterfaceKind::Pool => "pool",
            InterfaceKind::Filesystem => "filesystem",
            InterfaceKind::Blockdev => "blockdev",
        }
    }
}

/// One of the daemon's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Its kind.
    pub kind: InterfaceKind,
    /// Its revision.
    pub revision: u8,
}

impl Interface {
    /// Parses the full name of an interface. `None` if it is not one of the daemon's.
    pub fn parse(name: &str) -> Option<Interface> {
        let (word, revision) = name.strip_prefix(PREFIX)?.split_once(".r")?;
        let kind = InterfaceKind::EVERY.into_iter().find(|kind| kind.word() == word)?;
        // Only the exact spelling counts: `r+1` and `r01` are other names.
        let is_canonical =
            revision.starts_with(|c: char| c.is_ascii_digit()) && (revision.len() == 1 || !revision.starts_with('0'));
        let revision = revision.parse().ok().filter(|number| is_canonical && ALL.contains(number))?;
        Some(Interface { kind, revision })
    }

    /// Its full name.
    pub fn name(self) -> String {
        format!("{PREFIX}{}", self.short())
    }

    /// Its name without the common prefix, for the log.
    pub fn short(self) -> String {
        format!("{}.r{}", self.kind.word(), self.revision)
    }
}

/// An argument: its name, which is informative only, and its type.
pub type Argument = (&'static str, &'static str);

/// How a property's change is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emits {
    /// With the new value.
    Value,
    /// By name only.
    Invalidation,
    /// It never changes.
    Const,
    /// Never announced.
    Nothing,
}

/// The filler of a reply without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filler {
    /// [`Value::filler`](crate::bus::wire::Value::filler).
    Plain,
    /// The same, but with a UUID of zeros for the text: `(false, "000…")`.
    Zeros,
}

/// The subject of a property, in the form that the property's function takes.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum PropertySource<'a> {
    Manager(&'a StoppedLists),
    Pool(&'a view::PoolView),
    Filesystem(&'a FilesystemObject),
    Device(&'a DeviceObject),
}
