//! The journal in the metadata volume: filesystems that are being created, destroyed or reverted,
//! one JSON file for each entry.
//!
//! Only this daemon uses the journal. It is a directory next to that of the records, which other
//! daemons ignore. It closes the gap between two stores that cannot be written atomically: the
//! records, and the thin devices in the thin metadata.
//!
//! - [`Journal::Create`] is written before thin devices are made and removed after their records
//!   are saved. After a crash, thin devices of the entry without a record are deleted: the creation
//!   has not happened.
//! - [`Journal::Destroy`] is written after the device-mapper devices were removed and before the
//!   first record is removed. The destruction is decided when the last record is removed: from then
//!   on no daemon sets up any of the filesystems, so nobody can use them. After a crash a decided
//!   destruction is completed; each step can be repeated. Otherwise the records that are already
//!   removed are written again.
//! - [`Journal::Revert`] is written when the thin device that replaces another is up, and before
//!   the first record is changed. From then on the revert is decided, in the same way.
//!
//! Another daemon may have run in between. It ignores the entries, and sets up what is recorded. So
//! a filesystem that is recorded is kept, and so is a snapshot whose scheduled revert was
//! cancelled. Older versions of this daemon decided a destruction by writing the entry. What such an
//! entry names is destroyed unless its record differs from the one at the time of the decision.
//!
//! This module handles texts and file names. It must never depend on how files are read and
//! written.

use serde::{Deserialize, Serialize};

use crate::{
    base::ids::FsUuid,
    engine::metadata::filesystem::{self, FilesystemRecord, RecordError, thin_id},
};

/// Directory of the journal in the metadata volume.
pub const PENDING: &str = "pending";

/// A thin device that is being created or destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The filesystem on it.
    pub uuid: FsUuid,
    /// Its thin device number.
    #[serde(deserialize_with = "thin_id")]
    pub thin_id: u32,
    /// For a destruction: the new origin of this filesystem's snapshots.
    #[serde(rename = "heir", default, skip_serializing_if = "Option::is_none")]
    pub new_origin: Option<FsUuid>,
    /// For a destruction: its record, before it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<FilesystemRecord>,
    /// For a destruction: it is decided by the removal of the records, not by the entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_removal: bool,
}

impl Pending {
    /// Whether `record` is the record of this filesystem and has not been changed since. The origin
    /// does not count, because it is passed on when another filesystem is destroyed.
    fn is_recorded_as(&self, record: &FilesystemRecord) -> bool {
        let is_as = |was: &FilesystemRecord| FilesystemRecord { origin: was.origin, ..record.clone() } == *was;
        self.uuid == record.uuid && self.was.as_ref().is_none_or(is_as)
    }
}

/// A snapshot that replaces its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revert {
    /// The origin, whose name and identity stay.
    pub origin: FsUuid,
    /// The former thin device of the origin, which is deleted.
    #[serde(deserialize_with = "thin_id")]
    pub replaced: u32,
    /// The snapshot, which ceases to exist as such.
    pub snapshot: FsUuid,
    /// The thin device of the snapshot, which becomes that of the origin.
    #[serde(deserialize_with = "thin_id")]
    pub thin_id: u32,
}

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Journal {
    /// These filesystems are being created.
    Create(Vec<Pending>),
    /// These filesystems are being destroyed.
    Destroy(Vec<Pending>),
    /// This revert is being carried out.
    Revert(Revert),
}

impl Journal {
    /// Parses an entry.
    ///
    /// # Errors
    /// If the text is not JSON, required keys are missing, or values are out of range.
    pub fn parse(json: &[u8]) -> Result<Journal, RecordError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// The JSON to store.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain structs with string keys always have a JSON form")
    }

    /// The thin devices that the entry creates or destroys.
    pub fn pending(&self) -> &[Pending] {
        match self {
            Journal::Create(pending) | Journal::Destroy(pending) => pending,
            Journal::Revert(_) => &[],
        }
    }

    /// Whether the destruction of the filesystem with this record was decided by the entry itself.
    pub fn destroys(&self, record: &FilesystemRecord) -> bool {
        let is_gone = |gone: &Pending| !gone.by_removal && gone.is_recorded_as(record);
        matches!(self, Journal::Destroy(pending) if pending.iter().any(is_gone))
    }

    /// Whether the entry is a destruction that was interrupted before it was decided: one of the
    /// filesystems is still recorded.
    pub fn is_undecided(&self, records: &[FilesystemRecord]) -> bool {
        let is_kept = |kept: &Pending| kept.by_removal && records.iter().any(|record| record.uuid == kept.uuid);
        matches!(self, Journal::Destroy(pending) if pending.iter().any(is_kept))
    }

    /// Name of the entry's file: that of the first filesystem that the entry creates or destroys,
    /// which is in no other entry. `None`: the entry has none, so there is nothing to write.
    pub fn file(&self) -> Option<String> {
        let first = match self {
            Journal::Create(pending) | Journal::Destroy(pending) => pending.first()?.uuid,
            Journal::Revert(revert) => revert.snapshot,
        };
        Some(filesystem::file_name(first))
    }
}

#[cfg(test)]
mod tests {
    use super::{FilesystemRecord, Journal, Pending, Revert};
    use crate::{base::units::Sectors, engine::metadata::Rest};

    const HOME: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    const OTHER: &str = "00000000-0000-4000-8000-000000000001";

    fn pending() -> Vec<Pending> {
        vec![
            Pending { uuid: HOME.parse().unwrap(), thin_id: 7, new_origin: None, was: None, by_removal: false },
            Pending {
                uuid: OTHER.parse().unwrap(),
                thin_id: 0xff_ffff,
                new_origin: Some(HOME.parse().unwrap()),
                was: None,
                by_removal: false,
            },
        ]
    }

    /// This daemon processes the entries of its older versions.
    #[test]
    fn is_written_as_it_always_was() {
        let list =
            format!(r#"[{{"uuid":"{HOME}","thin_id":7}},{{"uuid":"{OTHER}","thin_id":16777215,"heir":"{HOME}"}}]"#);
        let (origin, snapshot) = (HOME.parse().unwrap(), OTHER.parse().unwrap());
        let cases = [
            (Journal::Create(pending()), format!(r#"{{"create":{list}}}"#), HOME),
            (Journal::Destroy(pending()), format!(r#"{{"destroy":{list}}}"#), HOME),
            (
                Journal::Revert(Revert { origin, replaced: 3, snapshot, thin_id: 4 }),
                format!(r#"{{"revert":{{"origin":"{HOME}","replaced":3,"snapshot":"{OTHER}","thin_id":4}}}}"#),
                OTHER,
            ),
        ];
        for (entry, text, file) in cases {
            assert_eq!(String::from_utf8(entry.encode()).unwrap(), text);
            assert_eq!(Journal::parse(text.as_bytes()).unwrap(), entry);
            assert_eq!(entry.file(), Some(format!("{}.json", file.replace('-', ""))));
        }
        assert_eq!(Journal::Create(vec![]).file(), None);
    }

    #[test]
    fn refuses_ids_past_24_bits() {
        let create = |id: u32| format!(r#"{{"create":[{{"uuid":"{HOME}","thin_id":{id}}}]}}"#);
        let revert = |replaced: u32, id: u32| {
            format!(r#"{{"revert":{{"origin":"{HOME}","replaced":{replaced},"snapshot":"{OTHER}","thin_id":{id}}}}}"#)
        };
        for good in [create(0xff_ffff), revert(0xff_ffff, 0xff_ffff)] {
            Journal::parse(good.as_bytes()).unwrap();
        }
        for bad in [create(0x100_0000), revert(0x100_0000, 1), revert(1, 0x100_0000)] {
            assert!(Journal::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    fn record(uuid: &str) -> FilesystemRecord {
        FilesystemRecord {
            name: "home".to_owned(),
            uuid: uuid.parse().unwrap(),
            thin_id: 7,
            size: Sectors(8192),
            created: 5,
            fs_size_limit: None,
            origin: None,
            merge: false,
            rest: Rest::default(),
        }
    }

    /// Another daemon that ran in between had set the filesystem up, and it had been used.
    #[test]
    fn what_has_been_changed_since_is_not_destroyed() {
        let was = record(HOME);
        let pending =
            Pending { uuid: was.uuid, thin_id: 7, new_origin: None, was: Some(was.clone()), by_removal: false };
        let text = serde_json::to_string(&pending).unwrap();
        assert_eq!(serde_json::from_str::<Pending>(&text).unwrap(), pending, "{text}");
        let entry = Journal::Destroy(vec![pending]);
        assert!(entry.destroys(&was));
        assert!(entry.destroys(&FilesystemRecord { origin: Some(OTHER.parse().unwrap()), ..was.clone() }));
        assert!(!entry.destroys(&FilesystemRecord { name: "renamed".to_owned(), ..was.clone() }));
        assert!(!entry.destroys(&FilesystemRecord { size: Sectors(16384), ..was.clone() }));
        assert!(!entry.destroys(&FilesystemRecord { fs_size_limit: Some(Sectors(1 << 20)), ..was.clone() }));
        assert!(!entry.destroys(&FilesystemRecord { thin_id: 8, ..was }));
    }

    /// Another daemon that ran in between had mounted the filesystem, and it had been written to.
    #[test]
    fn what_is_recorded_is_not_destroyed() {
        let [home, other] = [HOME, OTHER].map(record);
        let pending = [&home, &other].map(|was| Pending {
            uuid: was.uuid,
            thin_id: was.thin_id,
            new_origin: None,
            was: Some(was.clone()),
            by_removal: true,
        });
        let entry = Journal::Destroy(pending.to_vec());
        let text = entry.encode();
        assert!(String::from_utf8_lossy(&text).contains(r#""by_removal":true"#));
        assert_eq!(Journal::parse(&text).unwrap(), entry);
        assert!(!entry.destroys(&home) && !entry.destroys(&other));
        assert!(entry.is_undecided(&[home.clone(), other.clone()]) && entry.is_undecided(&[other]));
        assert!(!entry.is_undecided(&[]));
        let by_entry = Pending { by_removal: false, ..pending[0].clone() };
        assert!(!Journal::Destroy(vec![by_entry]).is_undecided(std::slice::from_ref(&home)));
        assert!(!Journal::Create(vec![pending[0].clone()]).is_undecided(&[home]));
    }

    #[test]
    fn only_a_destruction_destroys() {
        let [home, other] = [HOME, OTHER].map(|uuid| uuid.parse().unwrap());
        let destroys = |entry: Journal| [entry.destroys(&record(HOME)), entry.destroys(&record(OTHER))];
        assert_eq!(destroys(Journal::Destroy(pending())), [true, true]);
        assert_eq!(destroys(Journal::Create(pending())), [false, false]);
        let revert = Journal::Revert(Revert { origin: home, replaced: 3, snapshot: other, thin_id: 4 });
        assert!(revert.pending().is_empty());
        assert_eq!(destroys(revert), [false, false]);
    }
}
