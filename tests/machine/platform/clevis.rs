//! Clevis with real servers on the loopback interface and, if present, a TPM.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use serde_json::{Value, json};
use stratisd::platform::{Error, Platform, clevis, keyring::Secret};
use zeroize::Zeroizing;

use crate::{Check, LIMIT, Machine, command};

pub(crate) const CHECKS: &[Check] = &[
    ("clevis: only the right Tang server decrypts", tang),
    ("clevis: a TPM decrypts", tpm),
    ("clevis: nested shares decrypt", shares),
    ("clevis: its programs accept our token", token),
    ("clevis: the error names a silent server", hanging),
];

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
}

/// A Tang server on the loopback interface, stopped when dropped.
struct Tang {
    folder: PathBuf,
    process: Child,
    url: String,
}

impl Tang {
    fn start(port: u16) -> Tang {
        let folder = PathBuf::from(format!("/run/tang-{port}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        command("/usr/libexec/tangd-keygen", &[folder.to_str().unwrap()]);
        let process = Tang::serve(&folder, port);
        Tang { folder, process, url: format!("http://127.0.0.1:{port}") }
    }

    fn serve(folder: &Path, port: u16) -> Child {
        #[allow(clippy::disallowed_methods)]
        let process = Command::new("systemd-socket-activate")
            .args(["--listen", &format!("127.0.0.1:{port}"), "--inetd", "--accept", "/usr/libexec/tangd"])
            .arg(folder)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LIMIT;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the Tang server did not start in time");
        }
        process
    }

    /// Thumbprint of its signing key.
    fn thumbprint(&self) -> String {
        let keys = fs::read_dir(&self.folder).unwrap().flatten().map(|entry| entry.path());
        let is_signing = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("\"verify\"");
        let key = keys.into_iter().find(is_signing).unwrap();
        command("jose", &["jwk", "thp", "-i", key.to_str().unwrap()]).trim().to_owned()
    }
}

impl Drop for Tang {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn refused(result: Result<impl Sized, Error>, words: &[&str]) {
    let Err(error) = result else { panic!("the call succeeded") };
    println!("        ({error})");
    assert!(matches!(error, Error::Clevis { .. }), "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)) && !text.contains('\n'), "{text}");
}

/// Checks that no process shows a secret in its arguments or environment while `work` runs. Returns
/// the number of processes checked.
pub(crate) fn unseen(secret: &[u8], work: impl FnOnce()) -> usize {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        let Ok(text) = fs::read(process.path().join(file)) else { continue };
                        seen += 1;
                        assert!(!text.windows(secret.len()).any(|window| window == secret), "{:?}", process.path());
                    }
                }
            }
            seen
        });
        work();
        done.store(true, Ordering::Relaxed);
        looking.join().unwrap()
    })
}

fn tang(machine: &Machine) {
    let linux = &machine.linux;
    let tang = Tang::start(7500);
    let passphrase = secret("hunter2");
    let config = json!({"url": tang.url, "thp": tang.thumbprint()});
    let processes = unseen(b"hunter2", || {
        let jwe = linux.clevis_encrypt("tang", &config, false, &passphrase).unwrap();
        assert!(linux.clevis_decrypt(&jwe).unwrap().same(b"hunter2"));
    });
    println!("        (checked {processes} processes)");
    let trusted = linux.clevis_encrypt("tang", &json!({"url": tang.url}), true, &passphrase).unwrap();
    assert!(linux.clevis_decrypt(&trusted).unwrap().same(b"hunter2"));
    // The advertisement of the server, fetched beforehand.
    let advertisement = command("curl", &["-sf", &format!("{}/adv", tang.url)]);
    let advertisement: Value = serde_json::from_str(&advertisement).unwrap();
    let config = json!({"url": tang.url, "adv": advertisement});
    let jwe = linux.clevis_encrypt("tang", &config, false, &passphrase).unwrap();
    assert!(linux.clevis_decrypt(&jwe).unwrap().same(b"hunter2"));

    // Untrusted keys would need a confirmation, and there is no user to give one.
    refused(linux.clevis_encrypt("tang", &json!({"url": tang.url}), false, &passphrase), &["encrypt", &tang.url]);
    let config = json!({"url": tang.url, "thp": "x".repeat(43)});
    refused(linux.clevis_encrypt("tang", &config, false, &passphrase), &["encrypt", &tang.url]);
    let url = tang.url.clone();
    drop(tang);
    refused(linux.clevis_decrypt(&jwe), &["decrypt", &url]);
    refused(linux.clevis_encrypt("tang", &json!({"url": url}), true, &passphrase), &["encrypt", &url]);
    // A server at the same address with other keys.
    let tang = Tang::start(7500);
    refused(linux.clevis_decrypt(&jwe), &["decrypt", &tang.url]);
}

/// Returns whether the machine has a TPM. Prints a line if it has none.
fn has_tpm() -> bool {
    let has = env::var_os("TPM2TOOLS_TCTI").is_some() || Path::new("/dev/tpmrm0").exists();
    if !has {
        println!("        (no TPM)");
    }
    has
}

fn tpm(machine: &Machine) {
    if !has_tpm() {
        return;
    }
    let linux = &machine.linux;
    for config in [json!({}), json!({"pcr_bank": "sha256", "pcr_ids": "7"})] {
        let jwe = linux.clevis_encrypt("tpm2", &config, false, &secret("hunter2")).unwrap();
        assert!(linux.clevis_decrypt(&jwe).unwrap().same(b"hunter2"));
    }
    refused(linux.clevis_encrypt("tpm2", &json!({"pcr_bank": "none", "pcr_ids": "7"}), false, &secret("x")), &["tpm2"]);
}

fn shares(machine: &Machine) {
    let linux = &machine.linux;
    let (first, second) = (Tang::start(7500), Tang::start(7501));
    let server = |tang: &Tang| json!({"url": tang.url, "thp": tang.thumbprint()});
    let mut pins = json!({"tang": [server(&first)], "sss": {"t": 1, "pins": {"tang": [server(&second)]}}});
    if has_tpm() {
        pins["tpm2"] = json!({});
    }
    let all = pins.as_object().unwrap().len();
    let config = json!({"t": all, "pins": pins});
    let jwe = linux.clevis_encrypt("sss", &config, false, &secret("hunter2")).unwrap();
    assert!(linux.clevis_decrypt(&jwe).unwrap().same(b"hunter2"));
    let urls = [first.url.clone(), second.url.clone()];
    drop(second);
    refused(linux.clevis_decrypt(&jwe), &["decrypt", "sss", &urls[0], &urls[1]]);
    let config = json!({"t": 1, "pins": {"tang": [server(&first), {"url": urls[1], "adv": {}}]}});
    refused(linux.clevis_encrypt("sss", &config, false, &secret("x")), &["encrypt", "sss", &urls[0]]);
}

/// The programs of Clevis can read the token that the platform writes into a header.
fn token(machine: &Machine) {
    use std::collections::BTreeMap;

    use stratisd::{
        base::units::{Bytes, Sectors},
        platform::luks::{Cost, FormatPurpose, HeaderLayout, NewKeyslot, Unlock},
    };
    let linux = &machine.linux;
    let tang = Tang::start(7500);
    let passphrase = secret(&"p".repeat(64));
    let jwe =
        linux.clevis_encrypt("tang", &json!({"url": tang.url, "thp": tang.thumbprint()}), false, &passphrase).unwrap();
    let (base, _) = machine.linear("base", 0, 2048, 64 << 11);
    let device = linux.dm_node(&base);
    let layout = HeaderLayout {
        metadata: Bytes(16 << 10),
        keyslots: Bytes(16352 << 10),
        data_offset: Sectors(32768),
        sector_size: None,
    };
    let new = NewKeyslot { number: 1, passphrase: &passphrase, cost: Cost::Random };
    let tokens = BTreeMap::from([(2, json!({"type": "clevis", "keyslots": ["1"], "jwe": jwe}))]);
    linux.luks_format(&device, &layout, FormatPurpose::New, &[new], &tokens).unwrap();
    let path = device.to_str().unwrap();
    let listed = command("clevis", &["luks", "list", "-d", path]);
    assert!(listed.starts_with("1: tang") && listed.contains(&tang.url), "{listed}");
    assert_eq!(command("clevis", &["luks", "pass", "-d", path, "-s", "1"]).trim(), "p".repeat(64));
    command("clevis", &["luks", "unlock", "-d", path, "-n", "clevis-check"]);
    linux.dm_remove("clevis-check").unwrap();
    // The platform can read the token that the programs of Clevis write.
    command("clevis", &["luks", "regen", "-q", "-d", path, "-s", "1"]);
    let header = linux.luks_read(&device).unwrap().unwrap();
    let token = header.tokens.values().find(|token| token["type"] == "clevis").unwrap();
    assert!(clevis::to_compact(&token["jwe"]).is_some());
    let renewed = linux.clevis_decrypt(&token["jwe"]).unwrap();
    linux.luks_open(&device, None, Unlock { passphrase: &renewed, keyslot: Some(1) }).unwrap();
    linux.dm_remove(&base).unwrap();
}

fn hanging(machine: &Machine) {
    // This server accepts connections and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let begun = Instant::now();
    let result = machine.linux.clevis_encrypt("tang", &json!({"url": url}), true, &secret("x"));
    refused(result, &["encrypt", &url, "no answer within"]);
    println!("        (after {} s)", begun.elapsed().as_secs());
    assert_eq!(command("sh", &["-c", "pgrep -c curl || true"]).trim(), "0");
}
