//! What clients may request from Clevis, and which errors they get for other requests.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn asked(pin: &str, config: Value) -> Result<ClevisRequest> {
    ClevisRequest::from_client(pin, config)
}

fn taken(pin: &str, config: Value, trust: bool, expected: Value) {
    assert_eq!(asked(pin, config).unwrap(), ClevisRequest { pin: pin.to_owned(), config: expected, trust });
}

fn refused(pin: &str, config: Value, expected: &str) {
    let error = asked(pin, config.clone()).unwrap_err().to_string();
    assert!(error.contains(expected), "{config}: {error}");
}

#[test]
fn servers_are_trusted_only_as_configured() {
    let url = "http://x";
    for trusted in [
        json!({ "url": url, "thp": "t" }),
        json!({ "url": url, "adv": "/file" }),
        json!({ "url": url, "adv": { "keys": [] } }),
        json!({ "url": url, "thp": "t", "adv": 7 }),
    ] {
        taken("tang", trusted.clone(), false, trusted);
    }
    taken("tang", json!({ "url": url, "stratis:tang:trust_url": true }), true, json!({ "url": url }));
    // A client that sends both gets both.
    let both = json!({ "url": url, "thp": "t", "stratis:tang:trust_url": true });
    taken("tang", both, true, json!({ "url": url, "thp": "t" }));
    let neither = json!({ "url": url, "thp": "t", "stratis:tang:trust_url": false });
    taken("tang", neither, false, json!({ "url": url, "thp": "t" }));

    for untrusted in [json!({ "url": url }), json!({ "url": url, "adv": 7 }), json!({ "url": url, TRUST_URL: false })] {
        refused("tang", untrusted, "set `stratis:tang:trust_url` to true");
    }
    refused("tang", json!({ "url": url, "thp": 7 }), "`thp` must be a thumbprint");
    refused("tang", json!({ "url": url, TRUST_URL: "yes" }), "`stratis:tang:trust_url` must be true or false");
    for without in [json!({}), json!({ "url": 7, "thp": "t" })] {
        refused("tang", without, "`url` must be the address");
    }
}

#[test]
fn a_tpm_is_always_trusted() {
    taken("tpm2", json!({}), false, json!({}));
    taken("tpm2", json!({ "pcr_ids": "7", TRUST_URL: true }), false, json!({ "pcr_ids": "7", TRUST_URL: true }));
}

#[test]
fn shares_are_trusted_if_all_are() {
    let sss = |pins: Value| json!({ "t": 1, "pins": pins });
    let (good, bad) = (json!({ "url": "a", "thp": "t" }), json!({ "url": "b" }));
    taken("sss", sss(json!({ "tang": good, "tpm2": {} })), false, sss(json!({ "tang": good, "tpm2": {} })));
    refused("sss", sss(json!({ "tang": bad, "tpm2": {} })), "say which keys");
    refused("sss", sss(json!({ "sss": sss(json!({ "tang": bad })), "tpm2": {} })), "say which keys");
    let mut trusting = sss(json!({ "tang": bad }));
    trusting[TRUST_URL] = json!(true);
    taken("sss", trusting, true, sss(json!({ "tang": bad })));
    // Only the outermost member counts.
    refused("sss", sss(json!({ "tang": { "url": "b", TRUST_URL: true } })), "say which keys");
    // A mistake is reported before a lack of trust, whatever their order.
    refused("sss", sss(json!({ "tang": bad, "tpm2": 7 })), "the Clevis configuration for tpm2 must be a JSON object");
    refused("sss", sss(json!({ "yubikey": {} })), "Clevis pin `yubikey` cannot be used");
    refused("sss", json!({ "t": 1 }), "`pins` must be an object");
    refused("sss", sss(json!([])), "`pins` must be an object");
}

/// Lists, as `clevis encrypt sss` takes them, were refused: "must be a JSON object".
#[test]
fn sss_takes_lists_of_servers() {
    let sss = |pins: Value| json!({ "t": 1, "pins": pins });
    let server = |url: &str| json!({ "url": url, "thp": "t" });
    let several = sss(json!({ "tang": [server("a"), server("b")], "tpm2": [{}] }));
    taken("sss", several.clone(), false, several);
    let nested = sss(json!({ "sss": [sss(json!({ "tang": [server("a")] })), sss(json!({ "tpm2": {} }))] }));
    taken("sss", nested.clone(), false, nested);
    // Every server of a list needs trust.
    for list in [json!([server("a"), { "url": "b" }]), json!([{ "url": "b" }, server("a")])] {
        refused("sss", sss(json!({ "tang": list })), "say which keys");
    }
    let mut trusting = sss(json!({ "tang": [{ "url": "a" }, { "url": "b" }] }));
    trusting[TRUST_URL] = json!(true);
    taken("sss", trusting, true, sss(json!({ "tang": [{ "url": "a" }, { "url": "b" }] })));
    refused("sss", sss(json!({ "tang": [server("a"), 7] })), "the Clevis configuration for tang must be a JSON object");
    refused("sss", sss(json!({ "tang": [[server("a")]] })), "the Clevis configuration for tang must be a JSON object");
    refused("sss", sss(json!({ "tang": [server("a"), {}] })), "`url` must be the address");
    refused("sss", sss(json!({ "tang": [] })), "an empty list for `tang`");
    // Only `sss` takes a list.
    refused("tang", json!([server("a")]), "must be a JSON object");
}

#[test]
fn invalid_clevis_configurations_are_refused() {
    refused("yubikey", json!({}), "choose tang, tpm2 or sss");
    refused("", json!({}), "choose tang, tpm2 or sss");
    for pin in ["tang", "tpm2", "sss"] {
        for config in [json!([]), json!("x"), json!(null), json!(1)] {
            refused(pin, config, "must be a JSON object");
        }
    }
    let nested = |depth: usize| {
        (0..depth).fold(json!({}), |inner, n| json!({ "pins": { (if n == 0 { "tpm2" } else { "sss" }): inner } }))
    };
    assert!(asked("sss", nested(DEPTH_MAX)).is_ok());
    assert!(matches!(asked("sss", nested(DEPTH_MAX + 1)), Err(EncryptionError::TooDeep)));
}

proptest! {
    #[test]
    fn nothing_that_is_asked_makes_it_panic(pin in "tang|tpm2|sss|.{0,3}", config in super::super::clevis::tests::any_json()) {
        if let Ok(request) = asked(&pin, config) {
            prop_assert!(pin == "tpm2" || request.config.get(TRUST_URL).is_none());
        }
    }
}
