//! What is kept of an object in bytes.

use super::{
    schema::REVISIONS,
    wire::{Body, Marshaller},
};

/// An object's entry in GetManagedObjects: path and `a{sa{sv}}`. It is at the same time the body of its
/// InterfacesAdded signal, and contains the answers to GetAll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Filled up with zeros to a multiple of 8, where the next one may begin.
    pub(super) bytes: Box<[u8]>,
    pub(super) length: usize,
    /// Where the `{sv}` entries of each revision lie.
    pub(super) properties: [(u32, u32); REVISIONS],
}

/// Signature of [`Entry::added`].
pub const ADDED_SIGNATURE: &str = "oa{sa{sv}}";

impl Entry {
    /// The arguments of InterfacesAdded, of signature [`ADDED_SIGNATURE`].
    pub fn added(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The same up to where another entry may begin.
    pub fn filled_up(&self) -> &[u8] {
        &self.bytes
    }

    /// The answer to GetAll for a revision.
    pub fn all(&self, revision: u8) -> Body {
        let mut m = Marshaller::default();
        if let Some((start, end)) = self.properties.get(usize::from(revision)) {
            m.array("{sv}", |m| m.marshalled(&self.bytes[*start as usize..*end as usize]));
        }
        Body { signature: "a{sv}".into(), bytes: m.finish() }
    }
}
