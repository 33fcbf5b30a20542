//! Clevis: runs its programs to encrypt a passphrase with a pin, or to decrypt it.
//!
//! The programs are searched at each use, and only those that the pin needs. The passphrase passes
//! through pipes. A configuration passes as an argument, since it is not secret. Of the daemon's
//! environment the programs get only the variables that locate a TPM or a proxy ([`PASSED_ON`]): an
//! administrator sets these for the daemon's service because Clevis needs them.
//!
//! curl, which contacts Tang servers, has no useful time limit, so the whole call has one. Several
//! passphrases are decrypted in parallel, so that a silent server costs its own time only.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    io,
    os::fd::BorrowedFd,
    path::PathBuf,
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;

use super::{
    limits::{self, Activity},
    processes::{self, ChildEnd, Finished, Input, Invocation, PLACES},
    programs,
};
use crate::{
    base::units::Bytes,
    platform::{Error, Result, clevis as jwe, keyring::Secret, luks::PASSPHRASE_BYTES_MAX},
};

/// Limit of nesting of pins.
const DEPTH_MAX: usize = 20;
/// Location of the TPM, if it is not the kernel's; proxies, as curl reads them.
const PASSED_ON: [&str; 8] =
    ["TPM2TOOLS_TCTI", "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];
/// A program that replaces the TPM tools on some systems.
const TPM2_PROGRAM: &str = "clevis-pin-tpm2";
/// Number of servers that an error names; a configuration may have any number.
const SERVERS_NAMED_MAX: usize = 8;

/// Access to Clevis, with settings that tests change.
pub(super) struct Clevis<'a> {
    places: &'a str,
    /// `None` for the limits of the table.
    limit: Option<Duration>,
    /// The mount namespace to run the programs in: a configuration may name a file that only the
    /// user's namespace shows.
    namespace: Option<BorrowedFd<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Encrypt,
    Decrypt,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Encrypt => "encrypt",
            Action::Decrypt => "decrypt",
        }
    }
}

/// The pins, including nested ones, and the servers of a configuration or a JWE.
#[derive(Debug, Default, PartialEq, Eq)]
struct RequestedPins {
    /// The outermost pin.
    pin: String,
    pins: BTreeSet<String>,
    servers: Vec<String>,
}

impl RequestedPins {
    fn by_config(pin: &str, config: &Value) -> RequestedPins {
        let mut requested = RequestedPins { pin: pin.to_owned(), ..RequestedPins::default() };
        requested.add_config(pin, config, 0);
        requested
    }

    fn add(&mut self, pin: &str, inside: &Value) {
        self.pins.insert(pin.to_owned());
        if let Some(url) = inside.get("url").and_then(Value::as_str) {
            self.servers.push(url.to_owned());
        }
    }

    fn add_config(&mut self, pin: &str, config: &Value, depth: usize) {
        self.add(pin, config);
        let Some(pins) = config.get("pins").and_then(Value::as_object).filter(|_| depth < DEPTH_MAX) else { return };
        for (pin, configs) in pins {
            // A single configuration may stand outside a list.
            let configs = configs.as_array().map_or(std::slice::from_ref(configs), Vec::as_slice);
            configs.iter().for_each(|config| self.add_config(pin, config, depth + 1));
        }
    }

    /// `None` if the value is not a JWE of Clevis.
    fn by_jwe(jwe: &Value) -> Option<RequestedPins> {
        let mut requested = RequestedPins::default();
        requested.pin = requested.add_header(jwe.get("protected")?.as_str()?, 0)?;
        Some(requested)
    }

    fn add_header(&mut self, protected: &str, depth: usize) -> Option<String> {
        let header: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(protected.as_bytes()).ok()?).ok()?;
        let clevis = header.get("clevis")?;
        let pin = clevis.get("pin")?.as_str()?;
        let inside = clevis.get(pin).unwrap_or(&Value::Null);
        self.add(pin, inside);
        if let Some(shares) = inside.get("jwe").and_then(Value::as_array).filter(|_| depth < DEPTH_MAX) {
            for share in shares.iter().filter_map(Value::as_str) {
                // Clevis itself reports a malformed share.
                let _ = self.add_header(share.split('.').next().unwrap_or_default(), depth + 1);
            }
        }
        Some(pin.to_owned())
    }

    /// Description for users: `tang (http://10.0.0.1)`.
    fn description(&self) -> String {
        let mut named: Vec<&str> = self.servers.iter().take(SERVERS_NAMED_MAX).map(String::as_str).collect();
        if self.servers.len() > named.len() {
            named.push("…");
        }
        if named.is_empty() { self.pin.clone() } else { format!("{} ({})", self.pin, named.join(", ")) }
    }

    /// The programs needed, each with the package that contains it.
    fn needs(&self, action: Action, places: &str) -> Vec<(String, &'static str)> {
        let mut needed = vec![("clevis".to_owned(), "clevis"), ("jose".to_owned(), "jose")];
        if action == Action::Decrypt {
            needed.push(("clevis-decrypt".to_owned(), "clevis"));
        }
        for pin in &self.pins {
            let package = if pin == "tpm2" { "clevis-tpm2 or clevis" } else { "clevis" };
            needed.push((format!("clevis-{}-{pin}", action.name()), package));
            let others: &[(&str, &'static str)] = match pin.as_str() {
                "tang" => &[("curl", "curl")],
                "tpm2" if programs::find(TPM2_PROGRAM, places).is_some() => &[],
                "tpm2" => &[
                    ("mktemp", "coreutils"),
                    ("tpm2_createprimary", "tpm2-tools"),
                    ("tpm2_load", "tpm2-tools"),
                    ("tpm2_unseal", "tpm2-tools"),
                ],
                _ => &[],
            };
            needed.extend(others.iter().map(|(name, package)| ((*name).to_owned(), *package)));
        }
        needed
    }
}

/// The programs that decrypt what this pin has encrypted, as the daemon searches for them. An initrd
/// must contain them (`boot/contents.sh`).
pub fn programs_to_decrypt(pin: &str) -> BTreeSet<String> {
    needed_to_decrypt([pin], "").into_iter().map(|(program, _)| program).collect()
}

/// The programs needed to decrypt with these pins, each with the package that contains it.
pub(super) fn needed_to_decrypt<'a>(
    pins: impl IntoIterator<Item = &'a str>,
    places: &str,
) -> Vec<(String, &'static str)> {
    let pins = pins.into_iter().map(str::to_owned).collect();
    RequestedPins { pins, ..RequestedPins::default() }.needs(Action::Decrypt, places)
}

/// The pins and the servers of a passphrase that Clevis has encrypted; `None` if the text is not
/// one.
pub fn pins_and_servers(jwe: &Value) -> Option<(BTreeSet<String>, Vec<String>)> {
    RequestedPins::by_jwe(jwe).map(|requested| (requested.pins, requested.servers))
}

/// A prepared call of `clevis`.
struct ClevisCall {
    action: Action,
    requested: RequestedPins,
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

impl ClevisCall {
    fn failed(&self, what: String) -> Error {
        Error::Clevis { action: self.action.name(), with: self.requested.description(), what }
    }
}

impl<'a> Clevis<'a> {
    /// Clevis as installed on this machine, with its programs run in this mount namespace.
    pub(super) fn new(namespace: Option<BorrowedFd<'a>>) -> Clevis<'a> {
        Clevis { places: PLACES, limit: None, namespace }
    }

    /// Encrypts a passphrase. Returns the JWE as a token holds it.
    pub(super) fn encrypt(&self, pin: &str, config: &Value, trust: bool, passphrase: &Secret) -> Result<Value> {
        let requested = RequestedPins::by_config(pin, config);
        let config = config.to_string();
        let mut arguments = vec!["encrypt", pin, &config];
        if trust {
            arguments.push("-y");
        }
        let call = self.prepare(Action::Encrypt, requested, &arguments)?;
        let words = words(&call);
        let finished = self.check(&call, self.invocation(&call, &words, passphrase.bytes()).run())?;
        let text = String::from_utf8_lossy(&finished.output.bytes);
        jwe::from_compact(&text).ok_or_else(|| Error::Unexpected {
            what: "the output of clevis encrypt",
            text: programs::one_line(text.as_bytes()),
        })
    }

    /// Decrypts passphrases in parallel. Hands over each result with its index as it arrives.
    /// `take` returns `true` when it needs no more; the rest is then killed.
    pub(super) fn decrypt_each(&self, jwes: &[&Value], take: &mut dyn FnMut(usize, Result<Secret>) -> bool) {
        let mut calls = Vec::new();
        for (number, jwe) in jwes.iter().enumerate() {
            match self.prepare_decryption(jwe) {
                Ok((call, compact)) => calls.push((number, call, compact)),
                Err(error) => {
                    if take(number, Err(error)) {
                        return;
                    }
                }
            }
        }
        let words: Vec<Vec<&OsStr>> = calls.iter().map(|(_, call, _)| words(call)).collect();
        let invocations = calls
            .iter()
            .zip(&words)
            .map(|((_, call, compact), words)| self.invocation(call, words, compact.as_bytes()));
        processes::run_all(invocations.collect(), |nth, finished| {
            let (number, call, _) = &calls[nth];
            take(*number, self.check(call, finished).and_then(|finished| passphrase_of(call, finished)))
        });
    }

    fn prepare_decryption(&self, jwe: &Value) -> Result<(ClevisCall, String)> {
        let malformed = || Error::Unexpected {
            what: "a passphrase encrypted by Clevis",
            text: programs::one_line(jwe.to_string().as_bytes()),
        };
        let requested = RequestedPins::by_jwe(jwe).ok_or_else(malformed)?;
        let compact = jwe::to_compact(jwe).ok_or_else(malformed)?;
        Ok((self.prepare(Action::Decrypt, requested, &["decrypt"])?, compact))
    }

    fn prepare(&self, action: Action, requested: RequestedPins, arguments: &[&str]) -> Result<ClevisCall> {
        let path = self.find(action, &requested)?;
        let passed_on = PASSED_ON.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
        let environment = passed_on.chain([("PATH", OsString::from(self.places))]).collect();
        Ok(ClevisCall {
            action,
            requested,
            path,
            arguments: arguments.iter().map(OsString::from).collect(),
            environment,
        })
    }

    fn limit(&self, action: Action) -> Option<Duration> {
        let activity = match action {
            Action::Encrypt => Activity::ClevisEncrypt,
            Action::Decrypt => Activity::ClevisDecrypt,
        };
        self.limit.or_else(|| limits::of(activity, Bytes::ZERO))
    }

    fn invocation<'t>(&'t self, call: &'t ClevisCall, words: &'t [&'t OsStr], input: &'t [u8]) -> Invocation<'t> {
        Invocation {
            label: format!("clevis {} with {}", call.action.name(), call.requested.description()),
            path: &call.path,
            arguments: words,
            environment: &call.environment,
            input: Input::Bytes(input),
            limit: self.limit(call.action),
            namespace: self.namespace,
        }
    }

    /// Turns an unsuccessful end of a call into an error.
    fn check(&self, call: &ClevisCall, finished: io::Result<Finished>) -> Result<Finished> {
        let finished = finished.map_err(|fault| call.failed(format!("cannot run it: {fault}")))?;
        match finished.end {
            ChildEnd::Exited(status) if status.success() => Ok(finished),
            ChildEnd::Exited(status) => Err(call.failed(programs::complaint(status, &finished.errors.bytes))),
            ChildEnd::TimedOut | ChildEnd::Unkillable => {
                let seconds = self.limit(call.action).unwrap_or_default().as_secs();
                Err(call.failed(format!("no answer within {seconds} s")))
            }
        }
    }

    /// Finds `clevis`, if all needed programs are installed.
    fn find(&self, action: Action, requested: &RequestedPins) -> Result<PathBuf> {
        let needed = requested.needs(action, self.places);
        let (mut missing, mut packages) = (Vec::new(), BTreeSet::new());
        for (name, package) in &needed {
            if programs::find(name, self.places).is_none() {
                missing.push(name.as_str());
                packages.insert(*package);
            }
        }
        match programs::find("clevis", self.places) {
            Some(path) if missing.is_empty() => Ok(path),
            _ => Err(Error::Missing(format!(
                "cannot find {} in {}; install {}",
                missing.join(", "),
                self.places,
                packages.into_iter().collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

fn words(call: &ClevisCall) -> Vec<&OsStr> {
    call.arguments.iter().map(OsString::as_os_str).collect()
}

fn passphrase_of(call: &ClevisCall, finished: Finished) -> Result<Secret> {
    let passphrase = finished.output.bytes.into_inner();
    if passphrase.is_empty() || passphrase.len() > PASSPHRASE_BYTES_MAX {
        return Err(call.failed(format!("it returned a passphrase of {} bytes", passphrase.len())));
    }
    Ok(Secret::new(passphrase))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use serde_json::json;
    use tempfile::TempDir;
    use zeroize::Zeroizing;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
    }

    fn protected(header: &Value) -> String {
        BASE64URL_NOPAD.encode(header.to_string().as_bytes())
    }

    fn tang(url: &str) -> Value {
        json!({"protected": protected(&json!({"clevis": {"pin": "tang", "tang": {"url": url}}})),
            "iv": "aXY", "ciphertext": "Y2lwaGVy", "tag": "dGFn"})
    }

    /// A directory with programs of these names, where `clevis` runs the script.
    fn programs(names: &[&str], script: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            let script = if *name == "clevis" { script } else { "" };
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    const TANG: [&str; 6] = ["clevis", "clevis-encrypt-tang", "clevis-decrypt-tang", "clevis-decrypt", "jose", "curl"];

    fn places(folder: &TempDir) -> String {
        format!("{}:/usr/bin:/bin", folder.path().display())
    }

    fn clevis(places: &str, limit: Option<Duration>) -> Clevis<'_> {
        Clevis { places, limit, namespace: None }
    }

    fn decrypt(clevis: &Clevis<'_>, jwe: &Value) -> Result<Secret> {
        let mut result = None;
        clevis.decrypt_each(&[jwe], &mut |_, decrypted| {
            result = Some(decrypted);
            false
        });
        result.unwrap()
    }

    #[test]
    fn nested_pins_and_servers_are_found() {
        let config = json!({"t": 2, "pins": {"tang": [{"url": "http://a"}, {"url": "http://b"}],
            "sss": {"t": 1, "pins": {"tpm2": [{}]}}}});
        let requested = RequestedPins::by_config("sss", &config);
        assert_eq!(requested.pins, BTreeSet::from(["sss", "tang", "tpm2"].map(str::to_owned)));
        let mut servers = requested.servers.clone();
        servers.sort();
        assert_eq!(servers, ["http://a", "http://b"]);

        let share = |jwe: &Value| format!("{}..a.b.c", jwe["protected"].as_str().unwrap());
        let inner = json!({"protected": protected(&json!({"clevis": {"pin": "sss", "sss":
            {"t": 1, "p": "x", "jwe": [share(&tang("http://b")), "not understood"]}}}))});
        let outer = json!({"protected": protected(&json!({"clevis": {"pin": "sss", "sss":
            {"t": 1, "p": "x", "jwe": [share(&tang("http://a")), share(&inner)]}}}))});
        let requested = RequestedPins::by_jwe(&outer).unwrap();
        assert_eq!(requested.description(), "sss (http://a, http://b)");
        for bad in [json!({}), json!({"protected": 1}), json!({"protected": "e30"}), json!({"protected": "%"})] {
            assert_eq!(RequestedPins::by_jwe(&bad), None, "{bad}");
        }
        let many =
            RequestedPins { pin: "sss".to_owned(), servers: vec!["u".to_owned(); 100], ..RequestedPins::default() };
        assert_eq!(many.description(), "sss (u, u, u, u, u, u, u, u, …)");
    }

    #[test]
    fn missing_programs_are_named_together() {
        let folder = programs(&["clevis", "jose"], "");
        let clevis = clevis(folder.path().to_str().unwrap(), None);
        let Err(Error::Missing(text)) = decrypt(&clevis, &tang("http://a")) else { panic!("all found") };
        assert!(text.starts_with("cannot find clevis-decrypt, clevis-decrypt-tang, curl in"), "{text}");
        assert!(text.ends_with("; install clevis, curl"), "{text}");
        let Err(Error::Missing(text)) = clevis.encrypt("tpm2", &json!({}), false, &secret("x")) else {
            panic!("found")
        };
        assert!(text.contains("tpm2_createprimary") && !text.contains("curl"), "{text}");
        fs::copy(folder.path().join("jose"), folder.path().join(TPM2_PROGRAM)).unwrap();
        let Err(Error::Missing(text)) = clevis.encrypt("tpm2", &json!({}), false, &secret("x")) else {
            panic!("found")
        };
        assert!(text.starts_with("cannot find clevis-encrypt-tpm2 in"), "{text}");
    }

    #[test]
    fn secrets_go_through_pipes() {
        let script = "[ \"$*\" = 'encrypt tang {\"url\":\"http://a\"} -y' ] || exit 9
            [ \"$(cat)\" = hunter2 ] || exit 8
            echo a.b.c.d.e";
        let folder = programs(&TANG, script);
        let found = places(&folder);
        let jwe = clevis(&found, None).encrypt("tang", &json!({"url": "http://a"}), true, &secret("hunter2")).unwrap();
        assert_eq!(jwe, json!({"protected": "a", "encrypted_key": "b", "iv": "c", "ciphertext": "d", "tag": "e"}));

        let folder = programs(&TANG, "[ $* = decrypt ] && cut -d. -f3-4");
        let found = places(&folder);
        let passphrase = decrypt(&clevis(&found, None), &tang("http://a")).unwrap();
        assert!(passphrase.same(b"aXY.Y2lwaGVy\n"));
    }

    #[test]
    fn errors_name_the_server() {
        let check = |script: &str, limit: Option<Duration>, expected: &str| {
            let folder = programs(&TANG, script);
            let found = places(&folder);
            let error = decrypt(&clevis(&found, limit), &tang("http://10.0.0.1")).unwrap_err();
            let start = "Clevis cannot decrypt a passphrase with tang (http://10.0.0.1): ";
            assert_eq!(error.to_string(), format!("{start}{expected}"));
        };
        check(
            "echo Error communicating >&2; echo with server >&2; exit 1",
            None,
            "exit status 1: Error communicating with server",
        );
        check("yes | head -c 65", None, "it returned a passphrase of 65 bytes");
        check("exit 0", None, "it returned a passphrase of 0 bytes");
        check("sleep infinity | cat", Some(Duration::from_millis(50)), "no answer within 0 s");
        let folder = programs(&TANG, "echo nonsense");
        let found = places(&folder);
        let error = clevis(&found, None).encrypt("tang", &json!({}), false, &secret("x")).unwrap_err();
        assert!(matches!(error, Error::Unexpected { .. }), "{error}");
    }

    /// In sequence, a silent server used to cost every unlock its whole time limit.
    #[test]
    fn the_first_answer_of_several_is_enough() {
        // The JWE tells the servers apart: one never answers, one does, one refuses.
        let script =
            "read -r jwe; case $jwe in *c2lsZW50*) sleep infinity;; *cmVmdXNlcw*) exit 1;; *) printf found;; esac";
        let folder = programs(&TANG, script);
        let found = places(&folder);
        let server = |iv: &str| {
            let mut jwe = tang("http://a");
            jwe["iv"] = json!(iv);
            jwe
        };
        let jwes = ["c2lsZW50", "cmVmdXNlcw", "YW5zd2Vycw"].map(server);
        let jwes: Vec<&Value> = jwes.iter().collect();
        let mut seen = Vec::new();
        clevis(&found, None).decrypt_each(&jwes, &mut |number, decrypted| {
            seen.push((number, decrypted.is_ok_and(|passphrase| passphrase.same(b"found"))));
            seen.last() == Some(&(2, true))
        });
        seen.sort();
        assert!(seen == [(1, false), (2, true)] || seen == [(2, true)], "{seen:?}");
    }
}
