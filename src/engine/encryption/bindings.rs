//! The bindings of one LUKS2 header, and the token numbers that are taken in it.

use std::{collections::BTreeSet, fmt};

use super::{Kind, Mechanism};
use crate::platform::luks::NUMBERS;

/// A way to unlock: a token, a keyslot, and the source of the passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Its token.
    pub token: u32,
    /// The keyslot of the volume key in use.
    pub keyslot: u32,
    /// While the volume key is being replaced: the keyslot of the new volume key. The same
    /// passphrase opens both keyslots.
    pub next: Option<u32>,
    /// The source of the passphrase.
    pub mechanism: Mechanism,
}

impl Binding {
    /// The kind of the binding.
    pub fn kind(&self) -> Kind {
        self.mechanism.kind()
    }
}

/// The form used in messages: `key description k`, `Clevis (tang, {…})`.
impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mechanism {
            Mechanism::Keyring(description) => write!(f, "key description {description}"),
            Mechanism::Clevis { pin, config, .. } => write!(f, "Clevis ({pin}, {config})"),
        }
    }
}

/// All bindings of one header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Sorted by token number.
    list: Vec<Binding>,
    /// Numbers of all tokens, including those that are not Stratis'.
    taken: BTreeSet<u32>,
}

impl Bindings {
    /// Makes the bindings of a header whose tokens have the numbers `taken`.
    pub(super) fn new(mut list: Vec<Binding>, taken: BTreeSet<u32>) -> Bindings {
        list.sort_by_key(|binding| binding.token);
        Bindings { list, taken }
    }

    /// The bindings whose kind `stays` accepts.
    pub(super) fn of_kinds(&self, stays: impl Fn(Kind) -> bool) -> Bindings {
        let list = self.list.iter().filter(|binding| stays(binding.kind())).cloned().collect();
        Bindings { list, taken: self.taken.clone() }
    }

    /// The bindings of one kind.
    pub fn of_kind(&self, kind: Kind) -> Bindings {
        self.of_kinds(|other| other == kind)
    }

    /// The bindings with this mechanism.
    pub fn of_mechanism(&self, mechanism: &Mechanism) -> Bindings {
        let list = self.list.iter().filter(|binding| binding.mechanism == *mechanism).cloned().collect();
        Bindings { list, taken: self.taken.clone() }
    }

    /// All bindings, by token number.
    pub fn iter(&self) -> std::slice::Iter<'_, Binding> {
        self.list.iter()
    }

    /// The number of bindings.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The binding with this token.
    pub fn get(&self, token: u32) -> Option<&Binding> {
        self.list.iter().find(|binding| binding.token == token)
    }

    /// The binding of a kind that a request means if it names no token.
    pub fn lowest(&self, kind: Kind) -> Option<&Binding> {
        self.list.iter().find(|binding| binding.kind() == kind)
    }

    /// Whether a token with that number exists. It need not be a binding.
    pub fn is_taken(&self, token: u32) -> bool {
        self.taken.contains(&token)
    }

    /// The lowest token number that is free.
    pub fn free_token(&self) -> Option<u32> {
        (0..NUMBERS).find(|number| !self.is_taken(*number))
    }
}
