//! Which passphrases are tried, in which order and on which keyslots, and what the error says if
//! none fits.

use std::{cell::RefCell, path::PathBuf};

use serde_json::json;

use super::*;
use crate::platform::sim::{Sim, Trouble};

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
}

fn description(text: &str) -> KeyDescription {
    KeyDescription::new(text).unwrap()
}

fn binding(token: u32, keyslot: u32, mechanism: Mechanism) -> Binding {
    Binding { token, keyslot, next: None, mechanism }
}

fn clevis(name: &str) -> Mechanism {
    Mechanism::Clevis { jwe: json!(name), pin: "tang".to_owned(), config: json!({ "url": name }) }
}

/// A server, a key, another server, another key.
fn bindings() -> Bindings {
    let list = vec![
        binding(0, 10, clevis("a")),
        binding(1, 11, Mechanism::Keyring(description("k"))),
        binding(2, 12, clevis("b")),
        binding(3, 13, Mechanism::Keyring(description("l"))),
    ];
    Bindings::new(list, [0, 1, 2, 3].into())
}

fn wrong() -> platform::Error {
    platform::Error::WrongKey { device: PathBuf::from("/dev/x") }
}

/// The keyslots that are tried. `has` says which passphrases are available and `fits` which
/// keyslots open.
fn tried(
    bindings: &Bindings,
    method: UnlockMethod,
    has: impl Fn(&str) -> bool,
    fits: Option<u32>,
) -> (Vec<Option<u32>>, Result<()>) {
    let tried = RefCell::new(Vec::new());
    let obtain = |mechanism: &Mechanism| match mechanism {
        Mechanism::Keyring(description) if has(description.as_str()) => Ok(secret(description.as_str())),
        Mechanism::Keyring(description) => Err(EncryptionError::KeyMissing(description.clone())),
        Mechanism::Clevis { jwe, .. } if has(jwe.as_str().unwrap()) => Ok(secret(jwe.as_str().unwrap())),
        Mechanism::Clevis { .. } => Err(platform::Error::Missing("no clevis".to_owned()).into()),
    };
    // One after the other, in the order of the requests.
    let obtain = |mechanisms: &[&Mechanism], take: &mut Take<'_>| {
        let _ = mechanisms.iter().enumerate().any(|(number, mechanism)| take(number, obtain(mechanism)));
    };
    let opened = try_each(bindings, method, None, obtain, |unlock| {
        tried.borrow_mut().push(unlock.keyslot);
        if fits.is_some() && unlock.keyslot == fits { Ok(()) } else { Err(wrong()) }
    });
    (tried.into_inner(), opened)
}

#[test]
fn the_first_passphrase_that_fits_ends_the_search() {
    let all = |fits| tried(&bindings(), UnlockMethod::Any, |_| true, fits);
    assert_eq!(all(Some(11)).0, [Some(11)]);
    assert_eq!(all(Some(10)).0, [Some(11), Some(13), Some(10)]);
    let (order, result) = all(None);
    assert_eq!(order, [Some(11), Some(13), Some(10), Some(12)]);
    let error = result.unwrap_err().to_string();
    assert_eq!(error.matches("(the passphrase does not open /dev/x; give the right one)").count(), 4, "{error}");
}

#[test]
fn unavailable_passphrases_are_skipped_and_reported() {
    let (order, result) = tried(&bindings(), UnlockMethod::Any, |name| name == "b", Some(12));
    assert!(result.is_ok());
    assert_eq!(order, [Some(12)]);
    let (order, result) = tried(&bindings(), UnlockMethod::Any, |_| false, None);
    assert_eq!(order, []);
    assert_eq!(
        result.unwrap_err().to_string(),
        "nothing opens it: with key description k (key k is not in the kernel's keyring; set it first), with key \
         description l (key l is not in the kernel's keyring; set it first), with Clevis (tang, {\"url\":\"a\"}) (no \
         clevis), with Clevis (tang, {\"url\":\"b\"}) (no clevis)"
    );
}

#[test]
fn only_the_named_token_is_tried() {
    let only = |token, has: bool| tried(&bindings(), UnlockMethod::Token(token), |_| has, None);
    assert_eq!(only(2, true).0, [Some(12)]);
    assert_eq!(only(3, true).0, [Some(13)]);
    let error = only(3, false).1.unwrap_err();
    assert!(error.to_string().contains("key l is not in the kernel's keyring"), "{error}");
    assert!(matches!(only(4, true).1, Err(EncryptionError::NothingInSlot(4))));
}

#[test]
fn a_missing_kind_is_named_with_its_alternatives() {
    let by_key = Bindings::new(vec![binding(3, 13, Mechanism::Keyring(description("k")))], [3].into());
    let error = tried(&by_key, UnlockMethod::Kind(Kind::Clevis), |_| true, None).1.unwrap_err();
    assert!(matches!(error, EncryptionError::NothingOfKind(Kind::Clevis)), "{error:?}");
    let wanted = "the pool has no binding to Clevis; choose the other unlock method, or `any`";
    assert_eq!(error.to_string(), wanted);
}

#[test]
fn reencryption_tries_any_keyslot() {
    let half = Binding { next: Some(20), ..binding(1, 11, Mechanism::Keyring(description("k"))) };
    let half = Bindings::new(vec![half], [1].into());
    assert_eq!(tried(&half, UnlockMethod::Any, |_| true, None).0, [None]);
}

#[test]
fn a_given_passphrase_is_the_only_one_used() {
    let sim = Sim::builder().build();
    let given = |method, expected: Option<u32>, fits: bool| {
        let given = secret("given");
        unlock(&sim, &bindings(), method, Some(&given), |unlock| {
            assert!(unlock.passphrase.same(b"given"));
            assert_eq!(unlock.keyslot, expected);
            if fits { Ok(7) } else { Err(wrong()) }
        })
    };
    assert!(matches!(given(UnlockMethod::Any, None, true), Ok(7)));
    assert!(matches!(given(UnlockMethod::Token(2), Some(12), true), Ok(7)));
    let refused = given(UnlockMethod::Any, None, false).unwrap_err().to_string();
    assert_eq!(refused, "the passphrase does not open /dev/x; give the right one");
    assert!(matches!(given(UnlockMethod::Token(9), None, true), Err(EncryptionError::NothingInSlot(9))));
}

#[test]
fn another_failure_than_of_the_passphrase_ends_it() {
    let mut calls = 0;
    let obtain = |_: &[&Mechanism], take: &mut Take<'_>| {
        while !take(0, Ok(secret("s"))) {}
    };
    let result: Result<()> = try_each(&bindings(), UnlockMethod::Any, None, obtain, |_| {
        calls += 1;
        Err(platform::Error::Busy { name: "x".to_owned() })
    });
    assert!(result.unwrap_err().is_busy());
    assert_eq!(calls, 1);
}

#[test]
fn keys_are_those_of_the_kernels_keyring() {
    let sim = Sim::builder().build();
    assert!(matches!(key(&sim, &description("k")), Err(EncryptionError::KeyMissing(_))));
    sim.key_set("stratis-1-key-k", &secret("pass")).unwrap();
    assert!(key(&sim, &description("k")).unwrap().same(b"pass"));
    let two = Bindings::new(
        vec![
            binding(1, 11, Mechanism::Keyring(description("k"))),
            binding(2, 12, Mechanism::Keyring(description("missing"))),
        ],
        [1, 2].into(),
    );
    let opened = unlock(&sim, &two, UnlockMethod::Any, None, |unlock| Ok(unlock.keyslot)).unwrap();
    assert_eq!(opened, Some(11));
    let error = every_passphrase(&sim, &two).unwrap_err().to_string();
    assert!(error.contains("key missing is not in the kernel's keyring"), "{error}");
    sim.key_set("stratis-1-key-missing", &secret("other")).unwrap();
    let all = every_passphrase(&sim, &two).unwrap();
    assert!(all[0].0.token == 1 && all[0].1.same(b"pass") && all[1].0.token == 2 && all[1].1.same(b"other"));
}

/// When servers were asked one after the other, an unlock waited the whole timeout for each silent
/// one.
#[test]
fn a_silent_server_delays_no_other() {
    let sim = Sim::builder().build();
    let servers = ["http://silent", "http://gone", "http://answers"];
    let list = servers.iter().zip(0..).map(|(url, token)| {
        let config = json!({ "url": url });
        let jwe = sim.clevis_encrypt("tang", &config, true, &secret(url)).unwrap();
        binding(token, token + 10, Mechanism::Clevis { jwe, pin: "tang".to_owned(), config })
    });
    let bindings = Bindings::new(list.collect(), [0, 1, 2].into());
    sim.set_tang("http://silent", Some(Trouble::Silent));
    sim.set_tang("http://gone", Some(Trouble::Down));
    let opened = unlock(&sim, &bindings, UnlockMethod::Any, None, |unlock| {
        assert!(unlock.passphrase.same(b"http://answers"));
        Ok(unlock.keyslot)
    });
    assert_eq!(opened.unwrap(), Some(12));
    assert_eq!(sim.patience_lost(), 0, "nobody waited for the silent server to the end");
    // If no server answers, the error names all of them in their order.
    sim.set_tang("http://answers", Some(Trouble::Silent));
    let error = unlock(&sim, &bindings, UnlockMethod::Any, None, |_| Ok(())).unwrap_err().to_string();
    let told: Vec<usize> = servers.iter().map(|url| error.find(url).unwrap()).collect();
    assert!(told.is_sorted(), "{error}");
    assert_eq!(sim.patience_lost(), 1, "side by side");
}

#[test]
fn random_passphrases_are_uniform_letters_and_digits() {
    let sim = Sim::builder().build();
    const ROUNDS: usize = 1000;
    let mut counts = [0_usize; 256];
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..ROUNDS {
        let passphrase = random_passphrase(&sim);
        assert_eq!(passphrase.bytes().len(), PASSPHRASE_BYTES_MAX);
        passphrase.bytes().iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        seen.insert(passphrase.bytes().to_vec());
    }
    assert_eq!(seen.len(), ROUNDS);
    let expected = (ROUNDS * PASSPHRASE_BYTES_MAX / ALPHABET.len()) as f64;
    for byte in 0..=255_u8 {
        let count = counts[usize::from(byte)] as f64;
        match byte.is_ascii_alphanumeric() {
            // About six standard deviations. The seed is fixed, so every run has the same result.
            true => assert!((count - expected).abs() < 6.0 * expected.sqrt(), "{}: {count}", byte as char),
            false => assert_eq!(count, 0.0),
        }
    }
}
