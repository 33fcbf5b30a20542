//! The bindings of a pool, collected from its headers: one header in version 2, one below each
//! member in version 1. The headers of the members must agree (`docs/spec/engine/encryption.md`
//! §7.3).

use serde_json::Value;

use super::{Binding, Bindings, EncryptionError, Kind, Mechanism, Result};
use crate::{engine::metadata::MetadataVersion, view};

/// Whether the devices of a pool agree on a kind of binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// No device has one.
    Absent,
    /// All devices have the same.
    Consistent,
    /// Some devices have one, and others have none or a different one.
    Inconsistent,
}

/// How an encrypted pool can be unlocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    version: MetadataVersion,
    keyring: Agreement,
    clevis: Agreement,
    /// The bindings on which all devices agree. Keyslots and encrypted passphrases are those of the
    /// first device.
    bindings: Bindings,
}

impl Info {
    /// The bindings of a version 2 pool, from its header.
    pub fn of_pool(bindings: Bindings) -> Info {
        let agreement = |kind| match bindings.lowest(kind) {
            Some(_) => Agreement::Consistent,
            None => Agreement::Absent,
        };
        let (keyring, clevis) = (agreement(Kind::Keyring), agreement(Kind::Clevis));
        Info { version: MetadataVersion::V2, keyring, clevis, bindings }
    }

    /// The bindings of a version 1 pool, from the headers of its devices. An item is `None` for a
    /// device that is not encrypted. Returns `None` if no device is.
    ///
    /// # Errors
    /// If some devices are encrypted and some are not.
    pub fn of_devices<'a>(devices: impl IntoIterator<Item = Option<&'a Bindings>>) -> Result<Option<Info>> {
        let devices: Vec<Option<&Bindings>> = devices.into_iter().collect();
        let encrypted: Vec<&Bindings> = devices.iter().copied().flatten().collect();
        let Some(first) = encrypted.first() else { return Ok(None) };
        if encrypted.len() < devices.len() {
            return Err(EncryptionError::Mixed);
        }
        let agreement = |kind| {
            let binding = first.lowest(kind);
            match encrypted.iter().all(|other| is_same(binding, other.lowest(kind))) {
                false => Agreement::Inconsistent,
                true if binding.is_some() => Agreement::Consistent,
                true => Agreement::Absent,
            }
        };
        let (keyring, clevis) = (agreement(Kind::Keyring), agreement(Kind::Clevis));
        let agreed = |kind| {
            matches!(
                (kind, keyring, clevis),
                (Kind::Keyring, Agreement::Consistent, _) | (Kind::Clevis, _, Agreement::Consistent)
            )
        };
        let bindings = first.of_kinds(agreed);
        Ok(Some(Info { version: MetadataVersion::V1, keyring, clevis, bindings }))
    }

    /// The metadata version of the pool, which decides which bindings it may have.
    pub fn version(&self) -> MetadataVersion {
        self.version
    }

    /// Whether the devices agree on a kind of binding.
    pub fn agreement(&self, kind: Kind) -> Agreement {
        match kind {
            Kind::Keyring => self.keyring,
            Kind::Clevis => self.clevis,
        }
    }

    /// Whether the devices agree on all bindings. Otherwise the pool is restricted.
    pub fn is_consistent(&self) -> bool {
        self.check().is_ok()
    }

    /// The bindings of the pool.
    ///
    /// # Errors
    /// If the devices do not agree on them.
    pub fn agreed(&self) -> Result<&Bindings> {
        self.check().map(|()| &self.bindings)
    }

    fn check(&self) -> Result<()> {
        match Kind::BOTH.into_iter().find(|kind| self.agreement(*kind) == Agreement::Inconsistent) {
            Some(kind) => Err(EncryptionError::Inconsistent(kind)),
            None => Ok(()),
        }
    }

    /// The bindings as clients see them.
    pub fn view(&self) -> view::EncryptionView {
        let mut view = view::EncryptionView {
            keys: Vec::new(),
            clevis: Vec::new(),
            keys_agree: self.keyring != Agreement::Inconsistent,
            clevis_agree: self.clevis != Agreement::Inconsistent,
        };
        for Binding { token, mechanism, .. } in self.bindings.iter() {
            match mechanism {
                Mechanism::Keyring(description) => view.keys.push((*token, description.as_str().to_owned())),
                Mechanism::Clevis { pin, config, .. } => view.clevis.push((*token, pin.clone(), config.to_string())),
            }
        }
        view
    }
}

/// A configuration as shown, without the keys of servers.
fn without_thumbprints(config: &Value) -> Value {
    match config {
        Value::Object(members) => {
            let members = members.iter().filter(|(name, _)| *name != "thp");
            Value::Object(members.map(|(name, value)| (name.clone(), without_thumbprints(value))).collect())
        }
        Value::Array(list) => list.iter().map(without_thumbprints).collect(),
        other => other.clone(),
    }
}

/// Whether the bindings of two devices are equal. The passphrases differ and do not count.
fn is_same(one: Option<&Binding>, other: Option<&Binding>) -> bool {
    match (one.map(|binding| &binding.mechanism), other.map(|binding| &binding.mechanism)) {
        (None, None) => true,
        (Some(Mechanism::Keyring(one)), Some(Mechanism::Keyring(other))) => one == other,
        (Some(Mechanism::Clevis { pin, config, .. }), Some(Mechanism::Clevis { pin: p, config: c, .. })) => {
            // The keys of servers may have changed between the rebind of one device and that of the
            // next.
            (pin, without_thumbprints(config)) == (p, without_thumbprints(c))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::encryption::KeyDescription;

    fn key(token: u32, description: &str) -> Binding {
        let mechanism = Mechanism::Keyring(KeyDescription::new(description).unwrap());
        Binding { token, keyslot: token + 10, next: None, mechanism }
    }

    fn tang(token: u32, url: &str, jwe: &str) -> Binding {
        let config = json!({ "url": url, "thp": "t" });
        let mechanism = Mechanism::Clevis { jwe: json!(jwe), pin: "tang".to_owned(), config };
        Binding { token, keyslot: token, next: None, mechanism }
    }

    fn bindings(list: &[Binding]) -> Bindings {
        Bindings::new(list.to_vec(), list.iter().map(|binding| binding.token).collect())
    }

    fn check(devices: &[&[Binding]], keyring: Agreement, clevis: Agreement) -> Info {
        let devices: Vec<Bindings> = devices.iter().map(|list| bindings(list)).collect();
        let info = Info::of_devices(devices.iter().map(Some)).unwrap().unwrap();
        assert_eq!((info.agreement(Kind::Keyring), info.agreement(Kind::Clevis)), (keyring, clevis));
        assert_eq!(info.is_consistent(), keyring != Agreement::Inconsistent && clevis != Agreement::Inconsistent);
        assert_eq!(info.agreed().is_ok(), info.is_consistent());
        info
    }

    #[test]
    fn agreement_is_judged_for_each_kind() {
        use Agreement::{Absent, Consistent, Inconsistent};
        let (k, t) = (|| key(1, "k"), || tang(2, "http://a", "x"));
        check(&[&[k()], &[k()]], Consistent, Absent);
        check(&[&[t()]], Absent, Consistent);
        // Each device has its own encrypted passphrase.
        check(&[&[k(), t()], &[k(), tang(2, "http://a", "y")]], Consistent, Consistent);
        check(&[&[k()], &[key(1, "other")]], Inconsistent, Absent);
        check(&[&[k(), t()], &[k()]], Consistent, Inconsistent);
        check(&[&[k()], &[k(), t()]], Consistent, Inconsistent);
        check(&[&[k(), t()], &[k(), tang(2, "http://b", "x")], &[k(), t()]], Consistent, Inconsistent);
        check(&[&[k()], &[t()]], Inconsistent, Inconsistent);
    }

    #[test]
    fn disagreeing_bindings_are_not_shown() {
        let (one, other) = ([key(1, "k"), tang(2, "http://a", "x")], [key(1, "k"), tang(2, "http://b", "x")]);
        let info = check(&[&one, &other], Agreement::Consistent, Agreement::Inconsistent);
        let view = info.view();
        assert_eq!((view.keys, view.clevis), (vec![(1, "k".to_owned())], vec![]));
        assert!(view.keys_agree && !view.clevis_agree);
        assert_eq!(
            info.agreed().unwrap_err().to_string().split(';').next().unwrap(),
            "the devices of the pool do not agree on its binding to Clevis"
        );
    }

    #[test]
    fn a_partly_encrypted_pool_is_refused() {
        let some = bindings(&[key(1, "k")]);
        assert!(matches!(Info::of_devices([Some(&some), None]), Err(EncryptionError::Mixed)));
        assert!(matches!(Info::of_devices([None, Some(&some)]), Err(EncryptionError::Mixed)));
        assert_eq!(Info::of_devices([None, None]).unwrap(), None);
        assert_eq!(Info::of_devices([]).unwrap(), None);
    }

    #[test]
    fn version_2_shows_all_bindings() {
        let info = Info::of_pool(bindings(&[tang(7, "http://a", "x"), key(5, "a"), key(0, "b")]));
        let view = info.view();
        assert_eq!(view.keys, [(0, "b".to_owned()), (5, "a".to_owned())]);
        assert_eq!(view.clevis, [(7, "tang".to_owned(), r#"{"thp":"t","url":"http://a"}"#.to_owned())]);
        assert!(view.keys_agree && view.clevis_agree && info.is_consistent());
        let agreed = info.agreed().unwrap();
        assert_eq!(agreed.lowest(Kind::Keyring).unwrap().token, 0);
        assert_eq!((agreed.free_token(), agreed.get(5).unwrap().keyslot), (Some(1), 15));
    }

    #[test]
    fn bindings_of_a_kind_leave_out_the_others() {
        let all = bindings(&[tang(7, "http://a", "x"), key(5, "a"), key(0, "b")]);
        let tokens = |kind| all.of_kind(kind).iter().map(|binding| binding.token).collect::<Vec<_>>();
        assert_eq!((tokens(Kind::Keyring), tokens(Kind::Clevis)), (vec![0, 5], vec![7]));
    }
}
