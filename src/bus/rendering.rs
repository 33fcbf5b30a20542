//! Objects as bytes. Each property is computed once and marshalled for every revision that has it.

use std::sync::Arc;

use super::{
    object_entry::ObjectEntry,
    schema::{ALL, Interface, InterfaceKind, PropertySource, REVISIONS},
    table,
    tree::Object,
    wire::{Body, Marshaller},
};

/// An object's entry. The first thread that asks builds it; other threads wait for that.
pub fn entry(object: &Object) -> &Arc<ObjectEntry> {
    object.kept(|| build(&object.path, object.state.kind(), object.state.subject()))
}

fn build(path: &str, kind: InterfaceKind, subject: PropertySource<'_>) -> ObjectEntry {
    // Each value is computed and marshalled once and copied to the revisions that have it.
    let values: Vec<_> = table::properties(kind)
        .filter_map(|row| {
            let value = table::value(row, subject)?;
            let mut m = Marshaller::default();
            m.str(row.name);
            m.property(&value);
            Some((row, m.finish()))
        })
        .collect();
    let mut properties = [(0, 0); REVISIONS];
    let mut m = Marshaller::default();
    m.str(path);
    m.array("{sa{sv}}", |m| {
        for (revision, place) in ALL.zip(&mut properties) {
            let interface = Interface { kind, revision };
            m.align(8);
            m.str(&interface.name());
            m.array("{sv}", |m| {
                let start = m.position();
                values.iter().filter(|(row, _)| row.is_in(interface)).for_each(|(_, bytes)| m.marshalled(bytes));
                *place = (start as u32, m.position() as u32);
            });
        }
    });
    let length = m.position();
    m.align(8);
    ObjectEntry { bytes: m.finish().into(), length, properties }
}

/// The answer to GetAll for an interface whose object has no [`ObjectEntry`].
pub fn all_properties(interface: Interface, subject: PropertySource<'_>) -> Body {
    let mut m = Marshaller::default();
    m.array("{sv}", |m| {
        for row in table::properties(interface.kind).filter(|row| row.is_in(interface)) {
            if let Some(value) = table::value(row, subject) {
                m.align(8);
                m.str(row.name);
                m.property(&value);
            }
        }
    });
    m.finish_body("a{sv}")
}
