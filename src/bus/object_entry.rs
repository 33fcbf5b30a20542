//! An object's entry, as the bytes that the tree keeps.

use super::{
    schema::REVISIONS,
    wire::{Body, Marshaller},
};

/// An object's entry in GetManagedObjects: path and `a{sa{sv}}`. The same bytes are the body of its
/// InterfacesAdded signal and contain the answers to GetAll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Padded with zeros to a multiple of 8, where the next entry may begin.
    pub(super) bytes: Box<[u8]>,
    pub(super) length: usize,
    /// The range of the `{sv}` entries of each revision.
    pub(super) properties: [(u32, u32); REVISIONS],
}

/// Signature of [`ObjectEntry::added`].
pub const ADDED_SIGNATURE: &str = "oa{sa{sv}}";

impl ObjectEntry {
    /// The arguments of InterfacesAdded. Their signature is [`ADDED_SIGNATURE`].
    pub fn added(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The entry with its padding, so that another entry may follow.
    pub fn filled_up(&self) -> &[u8] {
        &self.bytes
    }

    /// The answer to GetAll of a revision.
    pub fn all(&self, revision: u8) -> Body {
        let mut m = Marshaller::default();
        if let Some((start, end)) = self.properties.get(usize::from(revision)) {
            m.array("{sv}", |m| m.marshalled(&self.bytes[*start as usize..*end as usize]));
        }
        m.finish_body("a{sv}")
    }
}
