//! Clevis: what a pin encrypts can be decrypted with its resource, and with nothing else.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{luks::secret, *};
use crate::platform::{
    keyring::Secret,
    sim::{CallKind, Trouble},
};

const URL: &str = "http://tang.example:7500";

fn encrypt(sim: &Sim, pin: &str, config: Value) -> Result<Value, Error> {
    sim.clevis_encrypt(pin, &config, true, &secret("hunter2"))
}

fn decrypted(result: Result<Secret, Error>) -> Vec<u8> {
    result.unwrap().bytes().to_vec()
}

fn protected(jwe: &Value) -> Value {
    let text = jwe["protected"].as_str().unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap()
}

/// Action, pin with servers, and cause.
fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (&'static str, String, String) {
    match result {
        Err(Error::Clevis { action, with, what }) => (action, with, what),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tang_token_names_its_server() {
    let sim = Sim::builder().build();
    let jwe = encrypt(&sim, "tang", json!({"url": URL})).unwrap();
    assert!(jwe.get("encrypted_key").is_none() && jwe["iv"].is_string() && jwe["tag"].is_string());
    let header = protected(&jwe);
    assert_eq!((&header["clevis"]["pin"], &header["clevis"]["tang"]["url"]), (&json!("tang"), &json!(URL)));
    // The thumbprint as RFC 7638 defines it.
    let keys = header["clevis"]["tang"]["adv"]["keys"].as_array().unwrap();
    let key = keys.iter().find(|key| key["key_ops"] == json!(["verify"])).unwrap();
    let mut key = key.as_object().unwrap().clone();
    assert_eq!(key.remove("alg"), Some(json!("ES512")));
    key.remove("key_ops");
    let text = serde_json::to_string(&key).unwrap();
    assert_eq!(BASE64URL_NOPAD.encode(&Sha256::digest(text)), sim.tang_thumbprint(URL));
    assert!(!jwe.to_string().contains("hunter2"));
    assert_eq!(decrypted(sim.clevis_decrypt(&jwe)), b"hunter2");
    // The JWE survives a power cut, and each encryption gives another one.
    sim.cut_power();
    sim.power_on();
    assert_eq!(decrypted(sim.clevis_decrypt(&jwe)), b"hunter2");
    assert_ne!(encrypt(&sim, "tang", json!({"url": URL})).unwrap(), jwe);
}

#[test]
fn trust_is_given_or_proved() {
    let sim = Sim::builder().build();
    let encrypt = |config: Value| sim.clevis_encrypt("tang", &config, false, &secret("x"));
    assert!(refusal(encrypt(json!({"url": URL}))).2.contains("not trusted"));
    assert!(encrypt(json!({"url": URL, "thp": sim.tang_thumbprint(URL)})).is_ok());
    let (action, with, what) = refusal(encrypt(json!({"url": URL, "thp": sim.tang_thumbprint("http://other")})));
    assert_eq!((action, with.as_str()), ("encrypt", "tang (http://tang.example:7500)"));
    assert!(what.contains("thumbprint"));
    // With an advertisement, no server is contacted.
    sim.set_all_tang(Some(Trouble::Down));
    let adv = sim.tang_advertisement(URL);
    let jwe = encrypt(json!({"url": URL, "adv": adv.clone()})).unwrap();
    assert!(encrypt(json!({"url": URL, "adv": adv.to_string()})).is_ok());
    assert!(refusal(encrypt(json!({"url": URL, "adv": {"keys": []}}))).2.contains("advertisement"));
    assert!(refusal(encrypt(json!({"url": URL, "adv": adv, "thp": "x"}))).2.contains("thumbprint"));
    sim.set_all_tang(None);
    assert_eq!(decrypted(sim.clevis_decrypt(&jwe)), b"x");
    // The advertisement of another server does not help.
    let other = encrypt(json!({"url": URL, "adv": sim.tang_advertisement("http://other")})).unwrap();
    assert_eq!(refusal(sim.clevis_decrypt(&other)).0, "decrypt");
    assert!(refusal(encrypt(json!({"thp": "x"}))).2.contains("url"));
    assert!(refusal(encrypt(json!("text"))).2.contains("is not an object"));
}

#[test]
fn servers_and_tpm_fail_as_planned() {
    let sim = Sim::builder().tang("http://down", Trouble::Down).build();
    assert_eq!(refusal(encrypt(&sim, "tang", json!({"url": "http://down"}))).1, "tang (http://down)");
    let tang = encrypt(&sim, "tang", json!({"url": URL})).unwrap();
    let tpm = encrypt(&sim, "tpm2", json!({"pcr_ids": "7"})).unwrap();
    assert_eq!(protected(&tpm)["clevis"]["tpm2"]["pcr_ids"], "7");
    for (trouble, word) in
        [(Trouble::Down, "cannot reach"), (Trouble::Silent, "does not answer"), (Trouble::Nonsense, "malformed")]
    {
        sim.set_tang(URL, Some(trouble));
        let (action, with, what) = refusal(sim.clevis_decrypt(&tang));
        assert_eq!((action, with), ("decrypt", format!("tang ({URL})")));
        assert!(what.contains(word), "{what}");
        assert!(encrypt(&sim, "tang", json!({"url": URL})).is_err());
        assert!(encrypt(&sim, "tang", json!({"url": "http://fine"})).is_ok());
        sim.set_tpm(Some(trouble));
        assert_eq!(refusal(sim.clevis_decrypt(&tpm)).1, "tpm2");
        assert!(encrypt(&sim, "tpm2", json!({})).is_err());
    }
    sim.set_tang(URL, None);
    sim.set_tpm(None);
    assert_eq!(decrypted(sim.clevis_decrypt(&tang)), b"hunter2");
    assert_eq!(decrypted(sim.clevis_decrypt(&tpm)), b"hunter2");
    // Lost keys stay lost; new ones work.
    let before = sim.tang_thumbprint(URL);
    sim.replace_tang_keys(URL);
    sim.clear_tpm();
    assert_ne!(sim.tang_thumbprint(URL), before);
    assert!(refusal(sim.clevis_decrypt(&tang)).2.contains("no longer"));
    assert!(sim.clevis_decrypt(&tpm).is_err());
    assert!(sim.clevis_decrypt(&encrypt(&sim, "tang", json!({"url": URL})).unwrap()).is_ok());
    assert!(sim.clevis_decrypt(&encrypt(&sim, "tpm2", json!({})).unwrap()).is_ok());
    assert!(refusal(encrypt(&sim, "yubikey", json!({}))).2.contains("unknown pin"));
}

/// Tampering is detected.
#[test]
fn a_changed_token_opens_nothing() {
    let sim = Sim::builder().build();
    let jwe = encrypt(&sim, "tpm2", json!({})).unwrap();
    for part in ["protected", "iv", "ciphertext", "tag"] {
        let mut changed = jwe.clone();
        let text = changed[part].as_str().unwrap().to_owned();
        let first = if text.starts_with('A') { "B" } else { "A" };
        changed[part] = format!("{first}{}", &text[1..]).into();
        assert!(sim.clevis_decrypt(&changed).is_err(), "{part}");
    }
    assert!(refusal(sim.clevis_decrypt(&json!({"protected": 1}))).2.contains("JWE"));
    assert!(refusal(sim.clevis_decrypt(&json!("x"))).2.contains("JWE"));
}

#[test]
fn a_shared_secret_needs_its_threshold_of_parts() {
    let sim = Sim::builder().build();
    let urls = ["http://1", "http://2"];
    let config = json!({"t": 2, "pins": {
        "tang": urls.map(|url| json!({"url": url})),
        "sss": {"t": 1, "pins": {"tpm2": {}, "tang": {"url": "http://3"}}},
    }});
    let jwe = encrypt(&sim, "sss", config).unwrap();
    let header = protected(&jwe);
    assert_eq!(header["clevis"]["sss"]["t"], 2);
    let pins: Vec<Value> = header["clevis"]["sss"]["jwe"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| {
            let head = part.as_str().unwrap().split('.').next().unwrap();
            let head: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(head.as_bytes()).unwrap()).unwrap();
            head["clevis"]["pin"].clone()
        })
        .collect();
    assert_eq!(pins, ["sss", "tang", "tang"]);
    assert_eq!(decrypted(sim.clevis_decrypt(&jwe)), b"hunter2");
    // Two of three parts suffice, and either part of the inner secret.
    sim.set_tang(urls[0], Some(Trouble::Down));
    sim.set_tpm(Some(Trouble::Down));
    assert_eq!(decrypted(sim.clevis_decrypt(&jwe)), b"hunter2");
    sim.set_tang("http://3", Some(Trouble::Silent));
    let (_, with, what) = refusal(sim.clevis_decrypt(&jwe));
    assert!(with.contains("tang (http://3)") && with.contains("tpm2") && with.contains("tang (http://1)"), "{with}");
    assert!(what.starts_with("only 1 of 2 required parts"), "{what}");
    // All servers must be up for the encryption.
    assert!(encrypt(&sim, "sss", json!({"t": 1, "pins": {"tang": [{"url": urls[0]}, {"url": urls[1]}]}})).is_err());
    for bad in [
        json!({"pins": {"tang": {"url": "u"}}}),
        json!({"t": 0, "pins": {}}),
        json!({"t": 1}),
        json!({"t": 1, "pins": {}}),
    ] {
        assert_eq!(refusal(encrypt(&sim, "sss", bad)).1, "sss");
    }
}

/// A hanging server blocks its caller only; each request is a step.
#[test]
fn each_request_is_a_step() {
    let sim = Sim::builder().record().build();
    let jwe = encrypt(&sim, "tang", json!({"url": URL})).unwrap();
    let gate = sim.delay(CallKind::ClevisDecrypt, URL);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| sim.clevis_decrypt(&jwe));
        assert!(gate.wait_for(1, LIMIT));
        assert!(encrypt(&sim, "tang", json!({"url": URL})).is_ok());
        gate.open();
        assert_eq!(decrypted(held.join().unwrap()), b"hunter2");
    });
    let start = sim.steps() as usize;
    let config = json!({"t": 1, "pins": {"tang": [{"url": "http://1"}, {"url": "http://2"}], "tpm2": {}}});
    encrypt(&sim, "sss", config).unwrap();
    let subjects: Vec<String> = sim.trace()[start..].iter().map(|step| step.subject.clone()).collect();
    assert_eq!(subjects, ["tang http://1", "tang http://2", "tpm2"]);
    sim.faults().fail_next(CallKind::ClevisDecrypt, URL);
    assert!(matches!(sim.clevis_decrypt(&jwe), Err(Error::Clevis { action: "decrypt", .. })));
    assert!(sim.clevis_decrypt(&jwe).is_ok());
}
