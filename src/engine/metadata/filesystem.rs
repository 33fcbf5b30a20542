//! The records of filesystems, one JSON file each in the metadata volume
//! (`docs/spec/engine/ondisk-metadata.md` §7).
//!
//! This module handles texts and file names. It must never depend on how files are read and
//! written.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    base::{ids::FsUuid, units::Sectors},
    engine::metadata::{Rest, write_cut},
};

/// Directory of the filesystem records in the metadata volume.
pub const FILESYSTEMS: &str = "filesystems";
/// Largest thin device number.
pub const THIN_ID_MAX: u32 = (1 << 24) - 1;

/// Why a text is not a record, or why records contradict each other.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RecordError {
    #[error("a record in the pool's metadata volume is not as it must be")]
    Unparsable(#[from] serde_json::Error),
    #[error("two filesystems of the pool are recorded with the name `{0}`")]
    DuplicateName(String),
    #[error("two filesystems of the pool are recorded with the UUID {0}")]
    DuplicateUuid(FsUuid),
}

/// The record of a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemRecord {
    /// The recorded name, not checked against the rules for names.
    #[serde(serialize_with = "write_cut")]
    pub name: String,
    /// Its identifier.
    pub uuid: FsUuid,
    /// Its thin device number, at most [`THIN_ID_MAX`].
    #[serde(deserialize_with = "thin_id")]
    pub thin_id: u32,
    /// Size of the thin device.
    pub size: Sectors,
    /// Time of creation, in seconds since 1970.
    pub created: u64,
    /// The filesystem must not grow past this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_size_limit: Option<Sectors>,
    /// The origin, if the filesystem is a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<FsUuid>,
    /// The revert is scheduled: the filesystem replaces its origin at the next set-up of the pool.
    #[serde(default)]
    pub merge: bool,
    /// Other keys, written by a newer daemon.
    #[serde(flatten)]
    pub rest: Rest,
}

impl FilesystemRecord {
    /// Parses a record.
    ///
    /// # Errors
    /// If the text is not JSON, required keys are missing, or values are out of range.
    pub fn parse(json: &[u8]) -> Result<FilesystemRecord, RecordError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// The JSON to store.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain structs with string keys always have a JSON form")
    }
}

/// Name of the file with a filesystem's record, or with a journal entry.
pub fn file_name(filesystem: FsUuid) -> String {
    format!("{}.json", filesystem.simple())
}

/// Whether a file was left by a write that did not finish. Such a file must be removed, never read.
pub fn is_leftover(file_name: &str) -> bool {
    file_name.ends_with(".temp")
}

/// Checks that no two records have the same name or the same UUID.
///
/// # Errors
/// The first name or UUID that occurs twice.
pub fn check_records<'a>(records: impl IntoIterator<Item = &'a FilesystemRecord>) -> Result<(), RecordError> {
    let (mut names, mut uuids) = (BTreeSet::new(), BTreeSet::new());
    for record in records {
        if !uuids.insert(record.uuid) {
            return Err(RecordError::DuplicateUuid(record.uuid));
        }
        if !names.insert(&record.name) {
            return Err(RecordError::DuplicateName(record.name.clone()));
        }
    }
    Ok(())
}

/// Parses a thin device number.
pub(super) fn thin_id<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let id = u32::deserialize(from)?;
    if id <= THIN_ID_MAX { Ok(id) } else { Err(D::Error::custom(format!("thin id {id} has more than 24 bits"))) }
}

#[cfg(test)]
mod tests {
    use support::examples::{FILESYSTEM, OTHER_FILESYSTEM, RECORD};

    use super::{FilesystemRecord, RecordError, Rest, check_records, file_name, is_leftover};
    use crate::base::units::Sectors;

    fn home() -> FilesystemRecord {
        FilesystemRecord {
            name: "home".to_owned(),
            uuid: FILESYSTEM.parse().unwrap(),
            thin_id: 0,
            size: Sectors(2_147_483_648),
            created: 1_700_000_100,
            fs_size_limit: None,
            origin: None,
            merge: false,
            rest: Rest::default(),
        }
    }

    #[test]
    fn is_the_worked_example() {
        assert_eq!(String::from_utf8(home().encode()).unwrap(), RECORD);
        assert_eq!(FilesystemRecord::parse(RECORD.as_bytes()).unwrap(), home());
    }

    #[test]
    fn has_all_keys_in_order() {
        let full = FilesystemRecord {
            fs_size_limit: Some(Sectors(1 << 32)),
            origin: Some(OTHER_FILESYSTEM.parse().unwrap()),
            merge: true,
            ..home()
        };
        let text = RECORD.replace(
            r#""merge":false"#,
            r#""fs_size_limit":4294967296,"origin":"00000000-0000-4000-8000-000000000001","merge":true"#,
        );
        assert_eq!(String::from_utf8(full.encode()).unwrap(), text);
        assert_eq!(FilesystemRecord::parse(text.as_bytes()).unwrap(), full);
    }

    /// When this daemon renamed a filesystem, the keys of a newer daemon were lost.
    #[test]
    fn keeps_unknown_keys_of_a_changed_record() {
        let newer = RECORD.replace(r#""merge":false"#, r#""merge":false,"quota":{"soft":[1,null]},"tag":"x""#);
        let mut record = FilesystemRecord::parse(newer.as_bytes()).unwrap();
        record.name = "renamed".to_owned();
        assert_eq!(String::from_utf8(record.encode()).unwrap(), newer.replace("home", "renamed"));
    }

    #[test]
    fn reads_records_of_older_series() {
        let old = RECORD.replace(r#","merge":false"#, "");
        assert_eq!(FilesystemRecord::parse(old.as_bytes()).unwrap(), home());
    }

    #[test]
    fn refuses_ids_past_24_bits() {
        let with_id = |id: u32| RECORD.replace(r#""thin_id":0"#, &format!(r#""thin_id":{id}"#));
        assert_eq!(FilesystemRecord::parse(with_id(0xff_ffff).as_bytes()).unwrap().thin_id, 0xff_ffff);
        assert!(FilesystemRecord::parse(with_id(0x100_0000).as_bytes()).is_err());
    }

    #[test]
    fn cuts_long_names_between_characters() {
        let long = FilesystemRecord { name: format!("{}☺☺", "n".repeat(253)), ..home() };
        let name = FilesystemRecord::parse(&long.encode()).unwrap().name;
        assert_eq!(name, "n".repeat(253));
    }

    #[test]
    fn names_files_as_other_daemons_do() {
        assert_eq!(file_name(home().uuid), "3f2504e04f8941d39a0c0305e82c3301.json");
        assert!(is_leftover("3f2504e04f8941d39a0c0305e82c3301.temp"));
        assert!(!is_leftover("3f2504e04f8941d39a0c0305e82c3301.json"));
        assert!(!is_leftover("temp"));
    }

    #[test]
    fn no_name_and_no_uuid_comes_twice() {
        let other = FilesystemRecord { name: "var".to_owned(), uuid: OTHER_FILESYSTEM.parse().unwrap(), ..home() };
        check_records([&home(), &other]).unwrap();
        let same_name = FilesystemRecord { name: "home".to_owned(), ..other.clone() };
        assert!(matches!(check_records([&home(), &same_name]), Err(RecordError::DuplicateName(n)) if n == "home"));
        let same_uuid = FilesystemRecord { uuid: home().uuid, ..other };
        assert!(matches!(check_records([&home(), &same_uuid]), Err(RecordError::DuplicateUuid(u)) if u == home().uuid));
    }
}
