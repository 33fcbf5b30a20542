//! The bindings of one header, and which token numbers are taken in it.

use std::{collections::BTreeSet, fmt};

use super::{Kind, Mechanism};
use crate::platform::luks::NUMBERS;

/// A way to unlock: a token, a keyslot, and what its passphrase is to be had from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its token.
    pub token: u32,
    /// The keyslot of the volume key in use.
    pub keyslot: u32,
    /// While the volume key is being replaced: the keyslot of the one that takes its place. The same passphrase opens both.
    pub next: Option<u32>,
    /// What its passphrase is to be had from.
    pub mechanism: Mechanism,
}

impl Binding {
    /// Of which kind it is.
    pub fn kind(&self) -> Kind {
        self.mechanism.kind()
    }
}

/// As in messages: `key description k`, `Clevis (tang, {…})`.
impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mechanism {
            Mechanism::Keyring(description) => write!(f, "key description {description}"),
            Mechanism::Clevis { pin, config, .. } => write!(f, "Clevis ({pin}, {config})"),
        }
    }
}

/// What one header says of the ways to unlock what lies behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bindings {
    /// By token number.
    list: Vec<Binding>,
    /// Numbers of all tokens, those of others too.
    taken: BTreeSet<u32>,
}

impl Bindings {
    /// These, in a header whose tokens have these numbers.
    pub(super) fn new(mut list: Vec<Binding>, taken: BTreeSet<u32>) -> Bindings {
        list.sort_by_key(|binding| binding.token);
        Bindings { list, taken }
    }

    /// Only those of which the kind is one that is to stay.
    pub(super) fn of_kinds(&self, stays: impl Fn(Kind) -> bool) -> Bindings {
        let list = self.list.iter().filter(|binding| stays(binding.kind())).cloned().collect();
        Bindings { list, taken: self.taken.clone() }
    }

    /// Only those of a kind.
    pub fn of_kind(&self, kind: Kind) -> Bindings {
        self.of_kinds(|other| other == kind)
    }

    /// Only those whose passphrase is to be had from there.
    pub fn of_mechanism(&self, mechanism: &Mechanism) -> Bindings {
        let list = self.list.iter().filter(|binding| binding.mechanism == *mechanism).cloned().collect();
        Bindings { list, taken: self.taken.clone() }
    }

    /// All, by token number.
    pub fn iter(&self) -> std::slice::Iter<'_, Binding> {
        self.list.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The one with this token.
    pub fn get(&self, token: u32) -> Option<&Binding> {
        self.list.iter().find(|binding| binding.token == token)
    }

    /// "The" binding of a kind, where no token is named.
    pub fn lowest(&self, kind: Kind) -> Option<&Binding> {
        self.list.iter().find(|binding| binding.kind() == kind)
    }

    /// Whether a token of that number is there, a binding or somebody else's.
    pub fn is_taken(&self, token: u32) -> bool {
        self.taken.contains(&token)
    }

    /// The lowest number that no token has.
    pub fn free_token(&self) -> Option<u32> {
        (0..NUMBERS).find(|number| !self.is_taken(*number))
    }
}
