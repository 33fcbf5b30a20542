//! What encrypted passphrases in the forms of Clevis say about themselves, and that no input makes
//! the parser panic.

use proptest::prelude::*;

use super::*;
use crate::engine::encryption::BindRequest;

/// The signing key of RFC 7638 §3.1, as a server would advertise it.
const N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn\
64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD\
08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
/// Its thumbprint, from the same place.
const THUMBPRINT: &str = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

fn protected(header: &Value) -> String {
    BASE64URL_NOPAD.encode(header.to_string().as_bytes())
}

fn jwe(header: &Value) -> Value {
    json!({ "protected": protected(header), "encrypted_key": "", "iv": "aXY", "ciphertext": "Y2lwaGVy", "tag": "dGFn" })
}

fn compact(header: &Value) -> String {
    format!("{}..aXY.Y2lwaGVy.dGFn", protected(header))
}

fn tang_header(url: &str) -> Value {
    let exchanges = json!({ "alg": "ECMR", "kty": "EC", "crv": "P-521", "key_ops": ["deriveKey"], "x": "a", "y": "b" });
    let signs = json!({ "e": "AQAB", "alg": "RS256", "kty": "RSA", "n": N, "key_ops": ["verify"] });
    let other = json!({ "e": "AQAB", "alg": "RS256", "kty": "RSA", "n": "x", "key_ops": ["verify"] });
    let tang = json!({ "adv": { "keys": [exchanges, signs, other] }, "url": url });
    json!({ "alg": "ECDH-ES", "clevis": { "pin": "tang", "tang": tang }, "enc": "A256GCM", "kid": "k" })
}

fn tpm2_header() -> Value {
    let tpm2 = json!({
        "hash": "sha256", "key": "ecc", "jwk_priv": "secret", "jwk_pub": "public", "pcr_bank": "sha256", "pcr_ids": "0,7"
    });
    json!({ "alg": "dir", "clevis": { "pin": "tpm2", "tpm2": tpm2 }, "enc": "A256GCM" })
}

fn sss_header(t: u64, parts: &[Value]) -> Value {
    let parts: Vec<String> = parts.iter().map(compact).collect();
    json!({ "alg": "dir", "clevis": { "pin": "sss", "sss": { "jwe": parts, "p": "p", "t": t } }, "enc": "A256GCM" })
}

fn shows(header: &Value, pin: &str, config: Value) {
    assert_eq!(shown(&jwe(header)).unwrap(), (pin.to_owned(), config));
}

#[test]
fn tang_shows_its_server_and_key_thumbprint() {
    shows(&tang_header("http://x"), "tang", json!({ "url": "http://x", "thp": THUMBPRINT }));
    assert_eq!(
        shown(&jwe(&tang_header("http://x"))).unwrap().1.to_string(),
        format!(r#"{{"thp":"{THUMBPRINT}","url":"http://x"}}"#)
    );
}

#[test]
fn a_tpm_shows_nothing_and_keeps_the_choices() {
    shows(&tpm2_header(), "tpm2", json!({}));
    let chosen = json!({ "hash": "sha256", "key": "ecc", "pcr_bank": "sha256", "pcr_ids": "0,7" });
    let config = |request: ClevisRequest| (request.config, request.trust);
    assert_eq!(config(ClevisRequest::renewal(&jwe(&tpm2_header())).unwrap()), (chosen.clone(), true));
    assert_eq!(config(ClevisRequest::elsewhere(&jwe(&tpm2_header())).unwrap()), (chosen, false));
}

#[test]
fn shares_are_shown_by_pin_in_order() {
    let inner = sss_header(2, &[tpm2_header(), tang_header("http://b")]);
    let header = sss_header(1, &[tang_header("http://a"), inner, tang_header("http://c")]);
    let tang = |url: &str| json!({ "url": url, "thp": THUMBPRINT });
    let nested = json!({ "t": 2, "pins": { "tang": [tang("http://b")], "tpm2": [{}] } });
    shows(&header, "sss", json!({ "t": 1, "pins": { "tang": [tang("http://a"), tang("http://c")], "sss": [nested] } }));

    let renewed = ClevisRequest::renewal(&jwe(&header)).unwrap();
    let tpm2 = json!({ "hash": "sha256", "key": "ecc", "pcr_bank": "sha256", "pcr_ids": "0,7" });
    let nested = json!({ "t": 2, "pins": { "tang": [{ "url": "http://b" }], "tpm2": [tpm2] } });
    let whole = json!({ "t": 1, "pins": { "tang": [{ "url": "http://a" }, { "url": "http://c" }], "sss": [nested] } });
    assert_eq!(renewed, ClevisRequest { pin: "sss".to_owned(), config: whole, trust: true });
    // Another device uses only the keys that are already trusted.
    let same = ClevisRequest::elsewhere(&jwe(&header)).unwrap();
    assert!(!same.trust && same.config.to_string().matches(THUMBPRINT).count() == 3);
    assert!(BindRequest::Clevis(same).check().is_ok());
}

#[test]
fn nesting_has_an_end() {
    let nested = |depth: usize| (0..depth).fold(tpm2_header(), |inner, _| sss_header(1, &[inner]));
    assert!(shown(&jwe(&nested(DEPTH_MAX))).is_ok());
    assert!(matches!(shown(&jwe(&nested(DEPTH_MAX + 1))), Err(EncryptionError::TooDeep)));
}

#[test]
fn incomplete_encrypted_passphrases_are_errors() {
    let without = |pointer: &str, key: &str, header: Value| {
        let mut header = header;
        header.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        jwe(&header)
    };
    let tang = || tang_header("http://x");
    let mut unsigned = tang();
    unsigned["clevis"]["tang"]["adv"]["keys"] = json!([{ "kty": "EC", "key_ops": ["verify", "sign"] }, 7]);
    let mut other = tpm2_header();
    other["clevis"]["pin"] = json!("yubikey");
    let mut cut = sss_header(1, &[tang()]);
    cut["clevis"]["sss"]["jwe"] = json!(["eyJh"]);
    for jwe in [
        Value::Null,
        json!({}),
        json!({ "protected": 1 }),
        json!({ "protected": "e30=" }),
        json!({ "protected": "e30" }),
        json!({ "protected": BASE64URL_NOPAD.encode(b"[1]") }),
        without("", "clevis", tang()),
        without("/clevis", "pin", tang()),
        without("/clevis", "tang", tang()),
        without("/clevis/tang", "url", tang()),
        without("/clevis/tang", "adv", tang()),
        without("/clevis/sss", "t", sss_header(1, &[])),
        without("/clevis/sss", "jwe", sss_header(1, &[])),
        jwe(&unsigned),
        jwe(&cut),
    ] {
        assert!(matches!(shown(&jwe), Err(EncryptionError::Jwe(_))), "{jwe}");
    }
    assert!(matches!(shown(&jwe(&other)), Err(EncryptionError::JwePin(pin)) if pin == "yubikey"));
}

/// Any JSON that contains the words of Clevis more often than by chance.
pub(in super::super) fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "type",
        "keyslots",
        "clevis",
        "pin",
        "tang",
        "tpm2",
        "sss",
        "url",
        "adv",
        "keys",
        "key_ops",
        "thp",
        "t",
        "pins",
        "jwe",
        "protected",
        "stratis",
        "luks2-keyring",
        "key_description",
        "stratis-1-key-k",
        "activation_name",
        "pool_uuid",
        "0",
        "stratis:tang:trust_url",
    ])
    .prop_map(str::to_owned);
    let text = || prop_oneof![word.clone(), ".{0,6}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    let key = text();
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let object = prop::collection::vec((key.clone(), inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object.prop_map(|members| Value::Object(members.into_iter().collect())),
            inner.prop_map(|header| Value::from(format!("{}.", protected(&header)))),
        ]
    })
}

proptest! {
    #[test]
    fn no_header_makes_it_panic(mut header in any_json(), pin in "tang|tpm2|sss", made_with in any_json()) {
        let _ = shown(&header);
        let _ = shown(&jwe(&header));
        if let Value::Object(members) = &mut header {
            members.insert("clevis".to_owned(), json!({ "pin": pin, &*pin: made_with }));
        }
        for read in [shown(&jwe(&header)).is_ok(), ClevisRequest::renewal(&jwe(&header)).is_ok(), ClevisRequest::elsewhere(&jwe(&header)).is_ok()] {
            prop_assert!(!read || header.is_object());
        }
    }
}
