//! The tokens of `docs/spec/engine/encryption.md` §2, written and read, and values that are refused
//! as tokens.

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::examples::{DEVICE, POOL};

use super::*;
use crate::{base::units::Sectors, engine::encryption::Kind, platform::luks::DataEncryption};

/// The example of §2.1.
const STRATIS_EXAMPLE: &str = r#"{"type":"stratis","keyslots":[],
 "activation_name":"stratis-1-private-fedcba9876543210fedcba9876543210-crypt",
 "pool_uuid":"01234567-89ab-cdef-0123-456789abcdef",
 "device_uuid":"fedcba98-7654-3210-fedc-ba9876543210",
 "pool_name":"p1"}"#;
/// The example of §2.3.
const KEYRING_EXAMPLE: &str = r#"{"type":"luks2-keyring","keyslots":["0"],"key_description":"stratis-1-key-k"}"#;

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn stratis() -> Value {
    json_of(STRATIS_EXAMPLE)
}

fn keyring(keyslots: &[&str]) -> Value {
    json!({ "type": "luks2-keyring", "keyslots": keyslots, "key_description": "stratis-1-key-k" })
}

/// A token as Clevis writes it for a TPM.
fn tpm2(keyslots: &[&str]) -> Value {
    let header = json!({ "clevis": { "pin": "tpm2", "tpm2": { "hash": "sha256" } } });
    let protected = data_encoding::BASE64URL_NOPAD.encode(header.to_string().as_bytes());
    json!({ "type": "clevis", "keyslots": keyslots, "jwe": { "protected": protected, "iv": "a" } })
}

fn header(tokens: impl IntoIterator<Item = (u32, Value)>) -> Header {
    Header {
        uuid: "u".to_owned(),
        data_offset: Sectors(34_816),
        sector_size: 512,
        state: DataEncryption::Encrypted,
        keyslots: [0, 1].into(),
        unused: [].into(),
        tokens: tokens.into_iter().collect::<BTreeMap<_, _>>(),
    }
}

/// Token, keyslots and kind of each binding.
fn told(bindings: &Bindings) -> Vec<(u32, u32, Option<u32>, Kind)> {
    bindings.iter().map(|b| (b.token, b.keyslot, b.next, b.kind())).collect()
}

#[test]
fn a_device_token_matches_the_worked_example() {
    let token = StratisToken::new(POOL.parse().unwrap(), DEVICE.parse().unwrap(), "p1");
    assert_eq!(token.to_value(), stratis());
    assert_eq!(StratisToken::parse(&stratis()).unwrap(), token);
    let nameless = StratisToken { pool_name: None, ..token };
    assert!(nameless.to_value().get("pool_name").is_none());
    assert_eq!(StratisToken::parse(&nameless.to_value()).unwrap(), nameless);
}

#[test]
fn a_device_token_with_unknown_members_is_refused() {
    let refused = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut token = stratis();
        change(&mut token);
        let error = StratisToken::parse(&token).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for key in ["type", "activation_name", "pool_uuid", "device_uuid"] {
        refused(&|token| drop(token.as_object_mut().unwrap().remove(key)), &format!("`{key}` is missing"));
    }
    for key in ["type", "activation_name", "pool_uuid", "device_uuid", "pool_name"] {
        refused(&|token| token[key] = json!(1), &format!("`{key}` is not a string"));
        refused(&|token| token[key] = Value::Null, &format!("`{key}` is not a string"));
    }
    refused(&|token| drop(token.as_object_mut().unwrap().remove("keyslots")), "not an empty list");
    refused(&|token| token["keyslots"] = json!(["0"]), "not an empty list");
    refused(&|token| token["keyslots"] = json!({}), "not an empty list");
    refused(&|token| token["more"] = json!(1), "`more` is unknown");
    refused(&|token| token["type"] = json!("clevis"), "its type is `clevis`");
    refused(&|token| token["pool_uuid"] = json!("p1"), "`pool_uuid` is not a UUID");
    refused(&|token| *token = json!([]), "not an object");
}

#[test]
fn bindings_are_written_as_they_are_read() {
    let description = KeyDescription::new("k").unwrap();
    assert_eq!(keyring_token(&description, 0), json_of(KEYRING_EXAMPLE));
    let jwe = tpm2(&[])["jwe"].clone();
    assert_eq!(clevis_token(jwe.clone(), 1), tpm2(&["1"]));
    let bindings =
        read_pool_header(&header([(4, keyring_token(&description, 3)), (2, clevis_token(jwe.clone(), 17))])).unwrap();
    assert_eq!(told(&bindings), [(2, 17, None, Kind::Clevis), (4, 3, None, Kind::Keyring)]);
    assert_eq!(bindings.get(4).unwrap().mechanism, Mechanism::Keyring(description));
    let clevis = Mechanism::Clevis { jwe, pin: "tpm2".to_owned(), config: json!({}) };
    assert_eq!(bindings.get(2).unwrap().mechanism, clevis);
}

#[test]
fn reencryption_keeps_both_keyslots() {
    let token = with_keyslot(&keyring(&["0"]), 12);
    assert_eq!(token["keyslots"], json!(["0", "12"]));
    let bindings = read_pool_header(&header([(0, token)])).unwrap();
    assert_eq!(told(&bindings), [(0, 0, Some(12), Kind::Keyring)]);
    // If the header says which keyslot is not in use yet, that keyslot is the next one. Keyslots
    // left by earlier attempts do no harm.
    let told_with = |unused: &[u32], keyslots: &[&str]| {
        let header = Header { unused: unused.iter().copied().collect(), ..header([(0, keyring(keyslots))]) };
        read_pool_header(&header).map(|bindings| told(&bindings)[0])
    };
    let binding = |keyslot, next| (0, keyslot, next, Kind::Keyring);
    assert_eq!(told_with(&[12], &["0", "12"]).unwrap(), binding(0, Some(12)));
    assert_eq!(told_with(&[0], &["0", "12"]).unwrap(), binding(12, Some(0)));
    assert_eq!(told_with(&[11, 12], &["0", "11", "12"]).unwrap(), binding(0, Some(12)));
    assert_eq!(told_with(&[7], &["0"]).unwrap(), binding(0, None));
    assert!(matches!(told_with(&[0], &["0"]), Err(EncryptionError::NoBinding)));
}

#[test]
fn version_1_tokens_have_fixed_numbers() {
    let read = |tokens: Vec<(u32, Value)>| read_device_header(&header(tokens));
    let both = read(vec![(0, stratis()), (1, keyring(&["0"])), (2, tpm2(&["1"]))]).unwrap();
    assert_eq!(told(&both.bindings), [(1, 0, None, Kind::Keyring), (2, 1, None, Kind::Clevis)]);
    assert_eq!((both.token.pool.hyphenated(), both.token.pool_name), (POOL.to_owned(), Some("p1".to_owned())));
    let clevis = read(vec![(0, stratis()), (2, tpm2(&["1"]))]).unwrap();
    assert_eq!(told(&clevis.bindings), [(2, 1, None, Kind::Clevis)]);
    // Tokens at other numbers are ignored.
    let elsewhere = read(vec![(0, stratis()), (1, keyring(&["0"])), (3, tpm2(&["1"])), (4, keyring(&["1"]))]).unwrap();
    assert_eq!(told(&elsewhere.bindings), [(1, 0, None, Kind::Keyring)]);

    assert!(matches!(read(vec![(1, keyring(&["0"]))]), Err(EncryptionError::NoStratisToken)));
    assert!(matches!(read(vec![(0, keyring(&["0"]))]), Err(EncryptionError::StratisToken(_))));
    assert!(matches!(read(vec![(0, stratis())]), Err(EncryptionError::NoBinding)));
    assert!(matches!(read(vec![(0, stratis()), (5, keyring(&["0"]))]), Err(EncryptionError::NoBinding)));
    let wrong = read(vec![(0, stratis()), (1, tpm2(&["1"])), (2, tpm2(&["0"]))]);
    assert!(matches!(wrong, Err(EncryptionError::TokenType { token: 1, .. })));
}

#[test]
fn unusable_tokens_are_ignored_but_keep_their_number() {
    let mut other = tpm2(&["1"]);
    other["jwe"] = json!({ "protected": "e30" });
    let named = |name: &str| json!({ "type": "luks2-keyring", "keyslots": ["1"], "key_description": name });
    let bindings = read_pool_header(&header([
        (0, json!({ "type": "systemd-tpm2", "keyslots": ["1"] })),
        (1, json!({ "keyslots": ["1"] })),
        (2, named("stratis-1-key-")),
        (3, named("other-key")),
        (4, named("stratis-1-key-a\0b")),
        (5, json!({ "type": "luks2-keyring", "keyslots": ["1"] })),
        (6, other),
        (7, keyring(&["0"])),
        (8, keyring(&[])),
        (9, keyring(&["0", "1", "2"])),
        (10, keyring(&["0", "0"])),
        (12, json!(7)),
        // The binding was made by a daemon that allowed such a description.
        (13, named("stratis-1-key-a;b")),
    ]))
    .unwrap();
    assert_eq!(told(&bindings), [(7, 0, None, Kind::Keyring), (13, 1, None, Kind::Keyring)]);
    assert_eq!(bindings.free_token(), Some(11));
    assert!(bindings.is_taken(12) && !bindings.is_taken(11));

    for keyslots in [json!(null), json!("0"), json!([0]), json!(["+1"]), json!([""]), json!(["32"]), json!(["0", 1])] {
        let mut token = keyring(&[]);
        token["keyslots"] = keyslots.clone();
        assert!(matches!(read_pool_header(&header([(0, token)])), Err(EncryptionError::NoBinding)), "{keyslots}");
    }
    assert!(matches!(read_pool_header(&header([])), Err(EncryptionError::NoBinding)));
}

proptest! {
    #[test]
    fn no_token_makes_it_panic(tokens in prop::collection::btree_map(0_u32..5, clevis::tests::any_json(), 0..5)) {
        let header = header(tokens.clone());
        if let Ok(bindings) = read_pool_header(&header) {
            prop_assert!(bindings.iter().all(|binding| tokens.contains_key(&binding.token)));
        }
        let _ = read_device_header(&header);
    }

    #[test]
    fn a_device_token_is_read_as_written(pool: [u8; 16], device: [u8; 16], name in prop::option::of(".{0,9}")) {
        let (pool, device) = (PoolUuid::from_random(pool), DevUuid::from_random(device));
        let token = StratisToken { pool_name: name, ..StratisToken::new(pool, device, "") };
        prop_assert_eq!(StratisToken::parse(&token.to_value()).unwrap(), token);
    }

    #[test]
    fn key_descriptions_are_read_as_they_were_written(text in "[^\0;]{1,9}", keyslot in 0_u32..32) {
        let description = KeyDescription::new(&text).unwrap();
        let bindings = read_pool_header(&header([(0, keyring_token(&description, keyslot))])).unwrap();
        let binding = bindings.get(0).unwrap();
        prop_assert_eq!((&binding.mechanism, binding.keyslot), (&Mechanism::Keyring(description), keyslot));
    }
}
