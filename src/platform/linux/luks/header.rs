//! Interprets the JSON of a LUKS2 header by its published format, so that its state is known
//! without a key derivation.
//!
//! This module knows nothing of where the JSON comes from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::{
    base::units::{Bytes, SECTOR, Sectors},
    platform::luks::{DataEncryption, Header, ReencryptionMode},
};

/// Encryption sector size if the header gives none.
const SECTOR_BYTES: u32 = 512;

/// The JSON of a header and the size of its device.
pub(super) struct Metadata<'a> {
    json: &'a Value,
    /// Size of the whole device.
    size: Sectors,
}

/// A range of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataSegment {
    /// Encryption of the range, with the new volume key for a hot zone; `None` for plaintext.
    pub(super) crypt: Option<Crypt>,
    /// Start of the range on the device.
    pub(super) offset: Sectors,
    pub(super) length: Sectors,
    /// A hot zone: a re-encryption job was cut short in it.
    pub(super) hot: bool,
}

/// Encryption parameters of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crypt {
    pub(super) cipher: String,
    /// In sectors of 512 bytes.
    pub(super) iv_offset: u64,
    pub(super) sector_size: u32,
    /// Digest of its volume key.
    pub(super) digest: u32,
}

fn object<'a>(json: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    json.get(name).and_then(Value::as_object)
}

/// Members of an object whose names are numbers, sorted by number.
fn numbered<'a>(json: &'a Value, name: &str) -> Result<BTreeMap<u32, &'a Value>, String> {
    let members = object(json, name).ok_or_else(|| format!("the header has no {name}"))?;
    let number = |key: &String| key.parse::<u32>().map_err(|_| format!("{name} has a member {key:?}"));
    members.iter().map(|(key, value)| Ok((number(key)?, value))).collect()
}

/// Large numbers are written as strings.
fn number(json: &Value, name: &str) -> Option<u64> {
    json.get(name)?.as_str()?.parse().ok()
}

/// A number of bytes that is a multiple of the sector size.
fn sectors(json: &Value, name: &str) -> Option<Sectors> {
    let bytes = number(json, name)?;
    (bytes % SECTOR == 0).then_some(Sectors(bytes / SECTOR))
}

fn text<'a>(json: &'a Value, name: &str) -> Option<&'a str> {
    json.get(name)?.as_str()
}

fn lists(json: &Value, name: &str, wanted: u32) -> bool {
    let list = json.get(name).and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(|item| item.as_str().and_then(|item| item.parse().ok()) == Some(wanted)))
}

fn has_flag(segment: &Value, wanted: &str) -> bool {
    let flags = segment.get("flags").and_then(Value::as_array);
    flags.is_some_and(|flags| flags.iter().any(|flag| flag.as_str() == Some(wanted)))
}

impl<'a> Metadata<'a> {
    pub(super) fn new(json: &'a Value, size: Sectors) -> Metadata<'a> {
        Metadata { json, size }
    }

    /// The header as a platform value.
    ///
    /// # Errors
    /// A description of what is malformed.
    pub(super) fn header(&self, uuid: String) -> Result<Header, String> {
        let segments = self.segments()?;
        let first = segments.first().ok_or("the header has no segment")?;
        let tokens = numbered(self.json, "tokens")?;
        Ok(Header {
            uuid,
            data_offset: first.offset,
            sector_size: self.sector_size(&segments)?,
            state: self.state(&segments)?,
            keyslots: self.keyslots()?,
            unused: self.unused()?,
            tokens: tokens.into_iter().map(|(number, token)| (number, token.clone())).collect(),
        })
    }

    /// The state of the data.
    pub(super) fn state(&self, segments: &[DataSegment]) -> Result<DataEncryption, String> {
        let Some(mode) = self.mode()? else {
            let encrypted = segments.iter().filter(|segment| segment.crypt.is_some()).count();
            return match encrypted {
                0 => Ok(DataEncryption::Clear),
                count if count == segments.len() => Ok(DataEncryption::Encrypted),
                _ => Err("the data is partly encrypted, but the header names no re-encryption job".to_owned()),
            };
        };
        let new = self.final_digest()?;
        let is_done = |segment: &&DataSegment| {
            let digest = segment.crypt.as_ref().map(|crypt| crypt.digest);
            !segment.hot && digest == new
        };
        let done = Sectors::checked_sum(segments.iter().filter(is_done).map(|segment| segment.length));
        let mut done = done.ok_or("the segments are too large")?.bytes();
        if segments.iter().any(|segment| segment.hot) {
            // The first hot zone, cut short, no longer has its original data.
            done = done.max(Bytes(1));
        }
        Ok(DataEncryption::Unfinished { mode, done })
    }

    /// The mode of the unfinished re-encryption job.
    fn mode(&self) -> Result<Option<ReencryptionMode>, String> {
        let keyslots = numbered(self.json, "keyslots")?;
        let Some(keyslot) = keyslots.values().find(|keyslot| text(keyslot, "type") == Some("reencrypt")) else {
            return Ok(None);
        };
        match text(keyslot, "mode") {
            Some("encrypt") => Ok(Some(ReencryptionMode::Encrypt)),
            Some("reencrypt") => Ok(Some(ReencryptionMode::Reencrypt)),
            Some("decrypt") => Ok(Some(ReencryptionMode::Decrypt)),
            other => Err(format!("unknown re-encryption mode {other:?}")),
        }
    }

    /// The segments that describe the present state, in their order.
    pub(super) fn segments(&self) -> Result<Vec<DataSegment>, String> {
        let mut segments = Vec::new();
        for (number, segment) in numbered(self.json, "segments")? {
            if self.backup(segment) {
                continue;
            }
            let bad = || format!("segment {number} is malformed");
            let offset = sectors(segment, "offset").ok_or_else(bad)?;
            let length = match text(segment, "size") {
                Some("dynamic") => self.size.saturating_sub(offset),
                _ => sectors(segment, "size").ok_or_else(bad)?,
            };
            let crypt = match text(segment, "type") {
                Some("linear") => None,
                Some("crypt") => Some(self.crypt(number, segment)?),
                _ => return Err(bad()),
            };
            let hot = has_flag(segment, "in-reencryption");
            segments.push(DataSegment { crypt, offset, length, hot });
        }
        Ok(segments)
    }

    /// Whether a segment describes the previous or the final state instead of the present one.
    fn backup(&self, segment: &Value) -> bool {
        ["backup-previous", "backup-final", "backup-moved-segment"].iter().any(|flag| has_flag(segment, flag))
    }

    fn crypt(&self, number: u32, segment: &Value) -> Result<Crypt, String> {
        let bad = |what| format!("segment {number} has no {what}");
        let digests: Vec<u32> = self.digests_of("segments", number)?;
        // A hot zone has both digests; the new one counts.
        let digest = match digests[..] {
            [] => return Err(bad("digest")),
            [digest] => digest,
            _ => self
                .final_digest()?
                .filter(|new| digests.contains(new))
                .ok_or_else(|| bad("digest of the new volume key"))?,
        };
        Ok(Crypt {
            cipher: text(segment, "encryption").ok_or_else(|| bad("encryption"))?.to_owned(),
            iv_offset: self::number(segment, "iv_tweak").ok_or_else(|| bad("iv_tweak"))?,
            sector_size: sector_size(segment).ok_or_else(|| bad("sector_size"))?,
            digest,
        })
    }

    /// Digests that refer to the segment or keyslot with this number.
    fn digests_of(&self, what: &str, wanted: u32) -> Result<Vec<u32>, String> {
        let digests = numbered(self.json, "digests")?;
        Ok(digests.into_iter().filter(|(_, digest)| lists(digest, what, wanted)).map(|(number, _)| number).collect())
    }

    fn digest_of_segment_with(&self, flag: &str) -> Result<Option<u32>, String> {
        let segments = numbered(self.json, "segments")?;
        let Some((number, segment)) = segments.into_iter().find(|(_, segment)| has_flag(segment, flag)) else {
            return Ok(None);
        };
        if text(segment, "type") == Some("linear") {
            return Ok(None);
        }
        self.digests_of("segments", number)?
            .first()
            .copied()
            .map(Some)
            .ok_or_else(|| format!("segment {number} has no digest"))
    }

    /// Digest of the volume key that all data will have; `None` if it will be plaintext.
    pub(super) fn final_digest(&self) -> Result<Option<u32>, String> {
        self.digest_of_segment_with("backup-final")
    }

    /// Digest of the volume key before the re-encryption job; `None` if the data was plaintext.
    pub(super) fn previous_digest(&self) -> Result<Option<u32>, String> {
        self.digest_of_segment_with("backup-previous")
    }

    /// Digest of a keyslot's volume key.
    pub(super) fn digest_of_keyslot(&self, keyslot: u32) -> Result<Option<u32>, String> {
        Ok(self.digests_of("keyslots", keyslot)?.first().copied())
    }

    /// Keyslots that hold a volume key.
    pub(super) fn keyslots(&self) -> Result<BTreeSet<u32>, String> {
        let keyslots = numbered(self.json, "keyslots")?;
        let holds_key = |keyslot: &&Value| text(keyslot, "type") != Some("reencrypt");
        Ok(keyslots.into_iter().filter(|(_, keyslot)| holds_key(keyslot)).map(|(number, _)| number).collect())
    }

    /// The keyslots among them whose key encrypts no segment, now or at the end.
    fn unused(&self) -> Result<BTreeSet<u32>, String> {
        let digests = numbered(self.json, "digests")?;
        let segments = numbered(self.json, "segments")?;
        let is_used = |digest: &Value| segments.keys().any(|segment| lists(digest, "segments", *segment));
        let used: Vec<&Value> = digests.into_values().filter(|digest| is_used(digest)).collect();
        let keyslots = self.keyslots()?.into_iter();
        Ok(keyslots.filter(|keyslot| !used.iter().any(|digest| lists(digest, "keyslots", *keyslot))).collect())
    }

    /// Most memory that a key derivation takes, for this keyslot or for any.
    pub(super) fn memory(&self, keyslot: Option<u32>) -> Result<Bytes, String> {
        let keyslots = numbered(self.json, "keyslots")?;
        let tried = keyslots.into_iter().filter(|(number, _)| keyslot.is_none_or(|only| only == *number));
        // The value is in KiB. Cheap derivations have no such member.
        let memory = tried.filter_map(|(_, keyslot)| keyslot.get("kdf")?.get("memory")?.as_u64()).max();
        Ok(Bytes(u128::from(memory.unwrap_or(0)) * 1024))
    }

    /// Encryption sector size: the planned one, or the present one.
    fn sector_size(&self, segments: &[DataSegment]) -> Result<u32, String> {
        let all = numbered(self.json, "segments")?;
        let planned = all.values().find(|segment| has_flag(segment, "backup-final")).and_then(|one| sector_size(one));
        let present = || segments.iter().find_map(|segment| Some(segment.crypt.as_ref()?.sector_size));
        Ok(planned.or_else(present).unwrap_or(SECTOR_BYTES))
    }
}

fn sector_size(segment: &Value) -> Option<u32> {
    segment.get("sector_size")?.as_u64().and_then(|size| u32::try_from(size).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SIZE: Sectors = Sectors(116 << 11);

    fn segment(kind: &str, offset_mib: u64, size_mib: Option<u64>, flags: &[&str]) -> Value {
        let mut segment = json!({
            "type": kind,
            "offset": (offset_mib << 20).to_string(),
            "size": size_mib.map_or("dynamic".to_owned(), |size| (size << 20).to_string()),
            "flags": flags,
        });
        if kind == "crypt" {
            segment["iv_tweak"] = json!("0");
            segment["encryption"] = json!("aes-xts-plain64");
            segment["sector_size"] = json!(4096);
        }
        segment
    }

    fn metadata(mode: Option<&str>, segments: &[Value], digests: Value) -> Value {
        let mut keyslots = json!({
            "0": {"type": "luks2", "key_size": 64, "kdf": {"type": "argon2id", "memory": 1024, "time": 4, "cpus": 2}},
            "3": {"type": "luks2", "key_size": 64, "kdf": {"type": "pbkdf2", "iterations": 1000}},
        });
        if let Some(mode) = mode {
            keyslots["1"] = json!({"type": "reencrypt", "mode": mode, "direction": "forward"});
        }
        let segments: Map<String, Value> =
            segments.iter().enumerate().map(|(number, segment)| (number.to_string(), segment.clone())).collect();
        json!({"keyslots": keyslots, "tokens": {"7": {"type": "clevis", "keyslots": ["3"], "jwe": {}}},
            "segments": segments, "digests": digests, "config": {}})
    }

    fn header(json: &Value) -> Result<Header, String> {
        Metadata::new(json, SIZE).header("uuid".to_owned())
    }

    #[test]
    fn a_header_without_a_job_is_read() {
        let digests = json!({"0": {"keyslots": ["0", "3"], "segments": ["0"]}});
        let json = metadata(None, &[segment("crypt", 16, None, &[])], digests);
        let header = header(&json).unwrap();
        assert_eq!(header.state, DataEncryption::Encrypted);
        assert_eq!((header.data_offset, header.sector_size), (Sectors(32768), 4096));
        assert_eq!(header.keyslots, BTreeSet::from([0, 3]));
        assert_eq!(header.tokens[&7]["keyslots"][0], "3");
        let json = Metadata::new(&json, SIZE);
        assert_eq!(json.memory(None).unwrap(), Bytes(1 << 20));
        assert_eq!(json.memory(Some(3)).unwrap(), Bytes(0));
        assert_eq!((json.digest_of_keyslot(3).unwrap(), json.digest_of_keyslot(5).unwrap()), (Some(0), None));
        let clear = metadata(None, &[segment("linear", 16, None, &[])], json!({}));
        assert_eq!(self::header(&clear).unwrap().state, DataEncryption::Clear);
    }

    fn state(json: &Value) -> (ReencryptionMode, u128) {
        match header(json).unwrap().state {
            DataEncryption::Unfinished { mode, done } => (mode, done.0 >> 20),
            state => panic!("{state:?}"),
        }
    }

    #[test]
    fn the_progress_of_each_mode_is_read() {
        let previous = segment("linear", 16, None, &["backup-previous"]);
        let last = segment("crypt", 16, None, &["backup-final"]);
        let begun = [segment("linear", 16, None, &[]), previous.clone(), last.clone()];
        let digests = json!({"0": {"keyslots": ["0"], "segments": ["2"]}});
        assert_eq!(state(&metadata(Some("encrypt"), &begun, digests)), (ReencryptionMode::Encrypt, 0));
        // In the middle of a step: the hot zone does not count.
        let hot = segment("crypt", 46, Some(10), &["in-reencryption"]);
        let some = [segment("crypt", 16, Some(30), &[]), hot, segment("linear", 56, None, &[]), previous, last];
        let digests = json!({"0": {"keyslots": ["0"], "segments": ["0", "1", "4"]}});
        let json = metadata(Some("encrypt"), &some, digests);
        assert_eq!(state(&json), (ReencryptionMode::Encrypt, 30));
        assert_eq!(header(&json).unwrap().sector_size, 4096);

        let previous = segment("crypt", 16, None, &["backup-previous"]);
        let last = segment("crypt", 16, None, &["backup-final"]);
        let hot = segment("crypt", 46, Some(10), &["in-reencryption"]);
        let (new, old) = (segment("crypt", 16, Some(30), &[]), segment("crypt", 56, None, &[]));
        let digests = json!({"0": {"keyslots": ["0"], "segments": ["1", "2", "3"]},
            "1": {"keyslots": ["3"], "segments": ["0", "1", "4"]}});
        let json = metadata(Some("reencrypt"), &[new, hot, old, previous.clone(), last.clone()], digests);
        assert_eq!(state(&json), (ReencryptionMode::Reencrypt, 30));
        let whole = Metadata::new(&json, SIZE);
        assert_eq!((whole.previous_digest().unwrap(), whole.final_digest().unwrap()), (Some(0), Some(1)));
        let digests: Vec<u32> = whole.segments().unwrap().into_iter().map(|one| one.crypt.unwrap().digest).collect();
        assert_eq!(digests, [1, 1, 0]);
        // All data is done, but the end is not recorded yet.
        let digests =
            json!({"0": {"keyslots": ["0"], "segments": ["1"]}, "1": {"keyslots": ["3"], "segments": ["0", "2"]}});
        let json = metadata(Some("reencrypt"), &[segment("crypt", 16, None, &[]), previous.clone(), last], digests);
        assert_eq!(state(&json), (ReencryptionMode::Reencrypt, 100));

        let last = segment("linear", 16, None, &["backup-final"]);
        let some = [segment("linear", 16, Some(30), &[]), segment("crypt", 46, None, &[]), previous, last];
        let digests = json!({"0": {"keyslots": ["0"], "segments": ["1", "2"]}});
        assert_eq!(state(&metadata(Some("decrypt"), &some, digests)), (ReencryptionMode::Decrypt, 30));
    }

    #[test]
    fn malformed_headers_are_refused() {
        let good =
            metadata(None, &[segment("crypt", 16, None, &[])], json!({"0": {"keyslots": ["0"], "segments": ["0"]}}));
        assert!(header(&good).is_ok());
        let with = |place: &str, value: Value| {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = value;
            bad
        };
        for bad in [
            Value::Null,
            json!([]),
            with("/segments", json!({})),
            with("/segments", json!({"x": {}})),
            with("/segments/0/type", json!("spiral")),
            with("/segments/0/offset", json!(16)),
            with("/segments/0/offset", json!("513")),
            with("/segments/0/size", json!("-1")),
            with("/segments/0/sector_size", json!("4096")),
            with("/digests/0/segments", json!([])),
            with("/tokens", json!([])),
            with("/keyslots/3/type", json!("reencrypt")),
        ] {
            assert!(header(&bad).is_err(), "{bad}");
        }
    }
}
