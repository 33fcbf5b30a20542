//! Clevis, with the Tang servers and the TPM that it contacts.
//!
//! Rules:
//! - Every URL belongs to a Tang server, whose keys follow from the URL: a signing key and an
//!   exchange key. Servers and the TPM survive a power cut. A test can make one of them
//!   unreachable, silent or garbled, or make it lose its keys.
//! - Each request to a server or the TPM is a step whose subject is the pin and the URL (`tang
//!   http://a`); a gate there makes it hang. A client has its own timeout, so a [`Trouble::Silent`]
//!   server gives an error at once. Of several passphrases that are decrypted in parallel, those
//!   that need a silent server come last.
//! - The result of an encryption has the form of a real one (RFC 7516), with the protected header
//!   that `clevis` writes. Its contents are bound to the pin's resource and to the header. No
//!   elliptic curve is involved: the shared secret is a hash of the server's exchange key and a
//!   salt in the header.
//! - `sss` counts only: each part holds the whole secret, and as many parts as the threshold says
//!   must be decrypted.
//!
//! This module knows nothing of LUKS2, nor why a client is trusted.

use data_encoding::BASE64URL_NOPAD;
use rand::RngCore;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Sim,
    faults::CallKind,
    key_servers::{KeyServer, KeyServers, Trouble},
};
use crate::platform::{Error, Result, clevis, keyring::Secret, luks::PASSPHRASE_BYTES_MAX};

/// Limit of nesting of a configuration.
const DEPTH_MAX: u32 = 20;
/// Most parts of a shared secret.
const PARTS_MAX: u64 = 255;

impl Sim {
    /// Sets the fault of a Tang server from now on.
    pub fn set_tang(&self, url: &str, trouble: Option<Trouble>) {
        self.0.machine.lock().key_servers.set_server(url, trouble);
    }

    /// Sets the fault of all Tang servers from now on, until set for one of them again.
    pub fn set_all_tang(&self, trouble: Option<Trouble>) {
        self.0.machine.lock().key_servers.set_all_servers(trouble);
    }

    /// Number of times a client has waited until its timeout, for one silent server or for several
    /// in parallel.
    pub fn patience_lost(&self) -> u64 {
        self.0.machine.lock().key_servers.waited
    }

    /// Gives a Tang server new keys and drops the old ones.
    pub fn replace_tang_keys(&self, url: &str) {
        self.0.machine.lock().key_servers.replace_keys(url);
    }

    /// Thumbprint of a Tang server's signing key.
    pub fn tang_thumbprint(&self, url: &str) -> String {
        let generation = self.0.machine.lock().key_servers.server(url).generation;
        thumbprint(&advertised(url, generation)).unwrap_or_default()
    }

    /// The advertisement of a Tang server's keys.
    pub fn tang_advertisement(&self, url: &str) -> Value {
        let generation = self.0.machine.lock().key_servers.server(url).generation;
        let keys = serde_json::to_vec(&advertised(url, generation)).unwrap_or_default();
        json!({"payload": BASE64URL_NOPAD.encode(&keys), "protected": "", "signature": ""})
    }

    /// Sets the fault of the TPM from now on.
    pub fn set_tpm(&self, trouble: Option<Trouble>) {
        self.0.machine.lock().key_servers.set_tpm(trouble);
    }

    /// Clears the TPM: it loses what it has sealed.
    pub fn clear_tpm(&self) {
        self.0.machine.lock().key_servers.tpm.generation += 1;
    }
}

/// A refusal: the pin and server that refused, and the reason on one line.
struct Refusal {
    with: String,
    what: String,
    /// The client waited for its timeout.
    late: bool,
}

type Attempt<T> = std::result::Result<T, Problem>;

enum Problem {
    Refused(Refusal),
    /// The machine itself failed: a planned fault, no power.
    Machine(Error),
}

fn refuse<T>(with: impl Into<String>, what: impl Into<String>) -> Attempt<T> {
    Err(Problem::Refused(Refusal { with: with.into(), what: what.into(), late: false }))
}

/// Like [`refuse`], but after the client's timeout.
fn give_up<T>(with: impl Into<String>, what: impl Into<String>) -> Attempt<T> {
    Err(Problem::Refused(Refusal { with: with.into(), what: what.into(), late: true }))
}

fn checked<T>(action: &'static str, done: Attempt<T>) -> Result<T> {
    done.map_err(|problem| match problem {
        Problem::Refused(Refusal { with, what, .. }) => Error::Clevis { action, with, what },
        Problem::Machine(error) => error,
    })
}

pub(super) fn encrypt(sim: &Sim, pin: &str, config: &Value, trust: bool, passphrase: &Secret) -> Result<Value> {
    let jwe = checked("encrypt", seal(sim, pin, config, trust, passphrase.bytes(), 0))?;
    clevis::from_compact(&jwe).ok_or(Error::Unexpected { what: "the output of clevis", text: jwe })
}

/// Decrypts in parallel: the client waits for all silent servers together, so their results come
/// last.
pub(super) fn decrypt_each(sim: &Sim, jwes: &[&Value], take: &mut dyn FnMut(usize, Result<Secret>) -> bool) {
    let mut late = Vec::new();
    for (number, jwe) in jwes.iter().enumerate() {
        let opened = match clevis::to_compact(jwe) {
            Some(compact) => open(sim, &compact, 0),
            None => refuse("no pin", "the token contains no JWE"),
        };
        match opened {
            Err(Problem::Refused(refusal)) if refusal.late => late.push((number, refusal)),
            opened => {
                if take(number, passphrase_of(opened)) {
                    return;
                }
            }
        }
    }
    if !late.is_empty() {
        sim.0.machine.lock().key_servers.waited += 1;
    }
    let _ = late.into_iter().any(|(number, refusal)| take(number, passphrase_of(Err(Problem::Refused(refusal)))));
}

fn passphrase_of(opened: Attempt<Zeroizing<Vec<u8>>>) -> Result<Secret> {
    let passphrase = checked("decrypt", opened)?;
    if passphrase.len() > PASSPHRASE_BYTES_MAX {
        return Err(Error::Unexpected { what: "the output of clevis decrypt", text: "too long".to_owned() });
    }
    Ok(Secret::new(passphrase))
}

// ---- encryption ----

fn seal(sim: &Sim, pin: &str, config: &Value, trust: bool, contents: &[u8], depth: u32) -> Attempt<String> {
    let Some(config) = config.as_object().filter(|_| depth < DEPTH_MAX) else {
        return refuse(pin, "the configuration is not an object, or is nested too deeply");
    };
    let salt = sim.random_bytes();
    let (header, key) = match pin {
        "tang" => with_tang(sim, config, trust, &salt)?,
        "tpm2" => with_tpm(sim, config, &salt)?,
        "sss" => return with_parts(sim, config, trust, contents, depth),
        _ => return refuse(pin, "unknown pin"),
    };
    Ok(compact(&header, &key, &salt, contents))
}

fn with_tang(sim: &Sim, config: &Map<String, Value>, trust: bool, salt: &[u8; 16]) -> Attempt<(Value, [u8; 32])> {
    let Some(url) = config.get("url").and_then(Value::as_str) else {
        return refuse("tang", "the configuration has no \"url\"");
    };
    let name = format!("tang ({url})");
    let keys = match config.get("adv") {
        Some(given) => match keys_in(given) {
            Some(keys) => keys,
            None => return refuse(name, "the advertisement in the configuration is malformed"),
        },
        None => {
            let generation = ask_tang(sim, CallKind::ClevisEncrypt, url)?;
            advertised(url, generation)
        }
    };
    let thumbprint = thumbprint(&keys);
    match (config.get("thp").map(Value::as_str), config.contains_key("adv")) {
        (Some(Some(thp)), _) if thumbprint.as_deref() == Some(thp) => {}
        (Some(_), _) => return refuse(name, "the server has no key with the given thumbprint"),
        (None, true) => {}
        (None, false) if trust => {}
        (None, false) => return refuse(name, "the keys of the server are not trusted, and no user can be asked"),
    }
    let Some(key) = exchanged(&keys, salt) else { return refuse(name, "the server has no exchange key") };
    let header = json!({
        "alg": "ECDH-ES",
        "clevis": {"pin": "tang", "tang": {"adv": keys, "url": url}},
        "enc": "A256GCM",
        "epk": point(&[b"ephemeral", &salt[..]].concat(), None),
        "kid": thumbprint,
    });
    Ok((header, key))
}

fn with_tpm(sim: &Sim, config: &Map<String, Value>, salt: &[u8; 16]) -> Attempt<(Value, [u8; 32])> {
    let generation = ask_tpm(sim, CallKind::ClevisEncrypt)?;
    let option = |name: &str, default: &str| config.get(name).cloned().unwrap_or_else(|| Value::from(default));
    let mut sealed = json!({
        "hash": option("hash", "sha256"),
        "jwk_priv": BASE64URL_NOPAD.encode(salt),
        "jwk_pub": BASE64URL_NOPAD.encode(&hash(&[b"tpm public", &salt[..]])),
        "key": option("key", "ecc"),
    });
    for name in ["pcr_bank", "pcr_ids"] {
        if let Some(value) = config.get(name) {
            sealed[name] = value.clone();
        }
    }
    let header = json!({"alg": "dir", "clevis": {"pin": "tpm2", "tpm2": sealed}, "enc": "A256GCM"});
    Ok((header, unsealed(generation, salt)))
}

fn with_parts(sim: &Sim, config: &Map<String, Value>, trust: bool, contents: &[u8], depth: u32) -> Attempt<String> {
    let Some(threshold) = config.get("t").and_then(Value::as_u64).filter(|t| (1..=PARTS_MAX).contains(t)) else {
        return refuse("sss", "the configuration has no threshold \"t\" from 1 to 255");
    };
    let Some(pins) = config.get("pins").and_then(Value::as_object) else {
        return refuse("sss", "the configuration has no \"pins\"");
    };
    let configs = pins.iter().flat_map(|(pin, configs)| match configs {
        Value::Array(all) => all.iter().map(|config| (pin, config)).collect(),
        one => vec![(pin, one)],
    });
    let configs: Vec<(&String, &Value)> = configs.collect();
    if (configs.len() as u64) < threshold {
        return refuse("sss", "the threshold is larger than the number of pins");
    }
    let mut key = [0; 32];
    sim.0.random.lock().fill_bytes(&mut key);
    let sealed = configs.into_iter().map(|(pin, config)| seal(sim, pin, config, trust, &key, depth + 1));
    let sealed = sealed.collect::<Attempt<Vec<String>>>()?;
    let salt = sim.random_bytes::<16>();
    let parts = json!({"jwe": sealed, "p": BASE64URL_NOPAD.encode(&hash(&[b"prime", &salt[..]])), "t": threshold});
    let header = json!({"alg": "dir", "clevis": {"pin": "sss", "sss": parts}, "enc": "A256GCM"});
    Ok(compact(&header, &key, &salt, contents))
}

// ---- decryption ----

fn open(sim: &Sim, jwe: &str, depth: u32) -> Attempt<Zeroizing<Vec<u8>>> {
    let parts: Vec<&str> = jwe.split('.').collect();
    let decoded: Option<Vec<Vec<u8>>> = parts.iter().map(|p| BASE64URL_NOPAD.decode(p.as_bytes()).ok()).collect();
    let Some([header, _, salt, sealed, tag]) = decoded.as_deref() else {
        return refuse("no pin", "the JWE is malformed");
    };
    let header: Value = serde_json::from_slice(header).unwrap_or_default();
    let node = &header["clevis"];
    let (name, key) = match node["pin"].as_str() {
        Some("tang") => {
            let url = node["tang"]["url"].as_str().unwrap_or_default();
            let name = format!("tang ({url})");
            let generation = ask_tang(sim, CallKind::ClevisDecrypt, url)?;
            // The server uses its present keys; if those in the header differ, so does the result.
            let here = exchanged(&advertised(url, generation), salt);
            let there = exchanged(&node["tang"]["adv"], salt);
            match here.filter(|_| here == there) {
                Some(key) => (name, key),
                None => return refuse(name, "the server no longer has the key"),
            }
        }
        Some("tpm2") => {
            let sealed = node["tpm2"]["jwk_priv"].as_str().and_then(|t| BASE64URL_NOPAD.decode(t.as_bytes()).ok());
            let generation = ask_tpm(sim, CallKind::ClevisDecrypt)?;
            ("tpm2".to_owned(), unsealed(generation, &sealed.unwrap_or_default()))
        }
        Some("sss") if depth < DEPTH_MAX => ("sss".to_owned(), join(sim, &node["sss"], depth)?),
        Some(pin) => return refuse(pin, "unknown pin"),
        None => return refuse("no pin", "the header of the JWE names no pin"),
    };
    if tag_of(&key, parts[0], salt, sealed)[..] != tag[..] {
        return refuse(name, "its key does not decrypt the passphrase");
    }
    let mask = mask(&key, salt, sealed.len());
    Ok(Zeroizing::new(sealed.iter().zip(mask.iter()).map(|(byte, mask)| byte ^ mask).collect()))
}

/// The key of a shared secret, if enough parts can be decrypted.
fn join(sim: &Sim, shared: &Value, depth: u32) -> Attempt<[u8; 32]> {
    let threshold = shared["t"].as_u64().unwrap_or(u64::MAX);
    let (mut opened, mut key, mut refusals) = (0, None, Vec::new());
    for part in shared["jwe"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if opened == threshold {
            break;
        }
        match open(sim, part, depth + 1) {
            Ok(contents) => {
                opened += 1;
                key = <[u8; 32]>::try_from(&contents[..]).ok();
            }
            Err(Problem::Refused(refusal)) => refusals.push(refusal),
            Err(Problem::Machine(error)) => return Err(Problem::Machine(error)),
        }
    }
    match key.filter(|_| opened == threshold) {
        Some(key) => Ok(key),
        None => {
            let with: Vec<&str> = refusals.iter().map(|refusal| refusal.with.as_str()).collect();
            let what: Vec<&str> = refusals.iter().map(|refusal| refusal.what.as_str()).collect();
            Err(Problem::Refused(Refusal {
                with: format!("sss ({})", with.join(", ")),
                what: format!("only {opened} of {threshold} required parts can be decrypted: {}", what.join("; ")),
                late: refusals.iter().any(|refusal| refusal.late),
            }))
        }
    }
}

// ---- servers and the TPM ----

/// Sends a request to a server. Returns the generation of its keys.
fn ask_tang(sim: &Sim, call: CallKind, url: &str) -> Attempt<u64> {
    let helper = ask(sim, call, &format!("tang {url}"), |key_servers| key_servers.server(url))?;
    let name = format!("tang ({url})");
    match helper.trouble {
        None => Ok(helper.generation),
        Some(Trouble::Down) => refuse(name, "cannot reach the server: connection refused"),
        Some(Trouble::Silent) => give_up(name, "the server does not answer"),
        Some(Trouble::Nonsense) => refuse(name, "the answer of the server is malformed"),
    }
}

fn ask_tpm(sim: &Sim, call: CallKind) -> Attempt<u64> {
    let helper = ask(sim, call, "tpm2", |key_servers| key_servers.tpm)?;
    match helper.trouble {
        None => Ok(helper.generation),
        Some(Trouble::Down) => refuse("tpm2", "there is no TPM 2.0"),
        Some(Trouble::Silent) => give_up("tpm2", "the TPM does not answer"),
        Some(Trouble::Nonsense) => refuse("tpm2", "the answer of the TPM is malformed"),
    }
}

fn ask(sim: &Sim, call: CallKind, subject: &str, who: impl FnOnce(&KeyServers) -> KeyServer) -> Attempt<KeyServer> {
    sim.step(call, subject, || Ok(who(&sim.machine()?.key_servers))).map_err(Problem::Machine)
}

// ---- keys ----

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// A public key as a JSON Web Key.
fn point(seed: &[u8], operation: Option<(&str, &str)>) -> Value {
    let coordinate = |name: &[u8]| {
        // A coordinate of P-521 has 66 bytes.
        let mut bytes = vec![0];
        (0..3_u8).for_each(|part| bytes.extend(hash(&[seed, name, &[part]])));
        BASE64URL_NOPAD.encode(&bytes[..66])
    };
    let mut key = json!({"crv": "P-521", "kty": "EC", "x": coordinate(b"x"), "y": coordinate(b"y")});
    if let Some((algorithm, operation)) = operation {
        key["alg"] = Value::from(algorithm);
        key["key_ops"] = json!([operation]);
    }
    key
}

/// The keys that a server advertises.
fn advertised(url: &str, generation: u64) -> Value {
    let seed = |use_: &[u8]| hash(&[b"tang", url.as_bytes(), use_, &generation.to_be_bytes()]);
    let sign = point(&seed(b"sign"), Some(("ES512", "verify")));
    let exchange = point(&seed(b"exchange"), Some(("ECMR", "deriveKey")));
    json!({"keys": [sign, exchange]})
}

fn key_for<'a>(keys: &'a Value, operation: &str) -> Option<&'a Value> {
    keys.get("keys")?.as_array()?.iter().find(|key| key["key_ops"] == json!([operation]))
}

/// The keys in a given advertisement: a JWS, or the keys themselves, as JSON or as its text.
fn keys_in(given: &Value) -> Option<Value> {
    let parsed;
    let given = match given {
        Value::String(text) => {
            parsed = serde_json::from_str::<Value>(text).ok()?;
            &parsed
        }
        given => given,
    };
    let keys = match given.get("payload").and_then(Value::as_str) {
        Some(payload) => serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()?,
        None => given.clone(),
    };
    key_for(&keys, "verify").is_some().then_some(keys)
}

/// Thumbprint (RFC 7638) of the signing key.
fn thumbprint(keys: &Value) -> Option<String> {
    let mut key = key_for(keys, "verify")?.as_object()?.clone();
    key.remove("alg");
    key.remove("key_ops");
    // The members are sorted by name, as serde_json keeps them.
    let text = serde_json::to_vec(&key).ok()?;
    Some(BASE64URL_NOPAD.encode(&Sha256::digest(text)))
}

/// The secret that client and server agree on.
fn exchanged(keys: &Value, salt: &[u8]) -> Option<[u8; 32]> {
    let key = key_for(keys, "deriveKey")?;
    Some(hash(&[b"exchange", key["x"].as_str()?.as_bytes(), salt]))
}

/// The secret that the TPM unseals.
fn unsealed(generation: u64, salt: &[u8]) -> [u8; 32] {
    hash(&[b"tpm", &generation.to_be_bytes(), salt])
}

fn mask(key: &[u8], salt: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let blocks = (0..length.div_ceil(32) as u64).flat_map(|block| hash(&[b"mask", key, salt, &block.to_be_bytes()]));
    Zeroizing::new(blocks.take(length).collect())
}

fn tag_of(key: &[u8], header: &str, salt: &[u8], sealed: &[u8]) -> [u8; 16] {
    let hash = hash(&[b"tag", key, header.as_bytes(), salt, sealed]);
    hash[..16].try_into().expect("16 of 32 bytes")
}

/// The compact serialization of a JWE with direct key agreement.
fn compact(header: &Value, key: &[u8], salt: &[u8], contents: &[u8]) -> String {
    let header = BASE64URL_NOPAD.encode(header.to_string().as_bytes());
    let mask = mask(key, salt, contents.len());
    let sealed: Vec<u8> = contents.iter().zip(mask.iter()).map(|(byte, mask)| byte ^ mask).collect();
    let tag = tag_of(key, &header, salt, &sealed);
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    format!("{header}..{}.{}.{}", encode(salt), encode(&sealed), encode(&tag))
}
