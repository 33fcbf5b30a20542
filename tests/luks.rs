//! LUKS2 devices in plain files: child processes of the real program format, change, open and read
//! the headers, and `cryptsetup` checks them where it is installed. Tests that need device-mapper
//! are in `machine/platform`.

#![allow(clippy::unwrap_used, reason = "a failure of the harness is a failure of the test")]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use stratisd::{
    base::units::{Bytes, Sectors},
    platform::{
        Error,
        keyring::Secret,
        linux::luks::Luks,
        luks::{
            Begin, Cost, DataEncryption, FormatPurpose, Header, HeaderChange, HeaderLayout, NewKeyslot,
            ReencryptionMode, Unlock,
        },
    },
};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// The layout of the specification (`docs/spec/engine/encryption.md` §1).
const OF_DEVICE: HeaderLayout = HeaderLayout {
    metadata: Bytes(16 << 10),
    keyslots: Bytes(16352 << 10),
    data_offset: Sectors(32768),
    sector_size: None,
};
const OF_POOL: HeaderLayout = HeaderLayout {
    metadata: Bytes(64 << 10),
    keyslots: Bytes(16352 << 10),
    data_offset: Sectors(34816),
    sector_size: Some(4096),
};
const SIZE: u64 = 64 << 20;

struct LuksDevice {
    folder: TempDir,
    luks: Luks,
}

fn secret(text: &str) -> Secret {
    Secret::new(Zeroizing::new(text.as_bytes().to_vec()))
}

fn keyslot(number: u32, passphrase: &Secret) -> NewKeyslot<'_> {
    NewKeyslot { number, passphrase, cost: Cost::Random }
}

fn unlock(passphrase: &Secret, keyslot: Option<u32>) -> Unlock<'_> {
    Unlock { passphrase, keyslot }
}

fn keyring_token(keyslot: u32) -> Value {
    json!({"type": "luks2-keyring", "keyslots": [keyslot.to_string()], "key_description": "stratis-1-key-k1"})
}

fn clevis_token(keyslot: u32) -> Value {
    json!({"type": "clevis", "keyslots": [keyslot.to_string()], "jwe": {"protected": "eyJh", "iv": "aXY"}})
}

impl LuksDevice {
    fn new() -> LuksDevice {
        let folder = tempfile::tempdir().unwrap();
        let luks = Luks::served_by(Path::new(env!("CARGO_BIN_EXE_stratisd")));
        let luks_device = LuksDevice { folder, luks };
        File::create_new(luks_device.path()).unwrap().set_len(SIZE).unwrap();
        luks_device
    }

    fn formatted(passphrase: &Secret) -> LuksDevice {
        let luks_device = LuksDevice::new();
        luks_device.format(&OF_POOL, FormatPurpose::New, &[keyslot(0, passphrase)], &BTreeMap::new()).unwrap();
        luks_device
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    fn format(
        &self,
        layout: &HeaderLayout,
        purpose: FormatPurpose,
        keyslots: &[NewKeyslot<'_>],
        tokens: &BTreeMap<u32, Value>,
    ) -> Result<Header, Error> {
        self.luks.format(&self.path(), layout, purpose, keyslots, tokens)
    }

    fn open(&self, passphrase: &Secret, keyslot: Option<u32>) -> Result<Secret, Error> {
        self.luks.open(&self.path(), None, unlock(passphrase, keyslot))
    }

    fn change(&self, unlock: Option<Unlock<'_>>, change: HeaderChange<'_>) -> Result<Header, Error> {
        self.luks.change(&self.path(), unlock, &[change])
    }

    fn read(&self) -> Header {
        self.luks.read(&self.path()).unwrap().unwrap()
    }

    fn bytes(&self, start: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, start).unwrap();
        bytes
    }

    /// The header as `cryptsetup` reads it; `None` if `cryptsetup` is not installed.
    fn dump(&self) -> Option<Value> {
        // This is the program that an administrator would run, not one that the daemon runs.
        #[allow(clippy::disallowed_methods)]
        let output = std::process::Command::new("/sbin/cryptsetup")
            .args(["luksDump", "--dump-json-metadata"])
            .arg(self.path())
            .output()
            .ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }
}

#[test]
fn a_header_is_as_specified() {
    let (first, second) = (secret("first"), secret("second"));
    for layout in [OF_DEVICE, OF_POOL] {
        let luks_device = LuksDevice::new();
        let tokens = BTreeMap::from([(1, keyring_token(4)), (2, clevis_token(7))]);
        let keyslots = [keyslot(4, &first), keyslot(7, &second)];
        let header = luks_device.format(&layout, FormatPurpose::New, &keyslots, &tokens).unwrap();
        assert_eq!(header, luks_device.read());
        assert_eq!(header.data_offset, layout.data_offset);
        assert_eq!(header.state, DataEncryption::Encrypted);
        assert_eq!(header.keyslots, [4, 7].into());
        assert_eq!(header.tokens, tokens);
        assert_eq!((header.free_keyslots().next(), header.free_token()), (Some(0), Some(0)));
        assert_eq!(header.sector_size, layout.sector_size.unwrap_or(header.sector_size));
        if let Some(dump) = luks_device.dump() {
            let segment = &dump["segments"]["0"];
            assert_eq!(segment["encryption"], "aes-xts-plain64");
            assert_eq!(segment["offset"], layout.data_offset.bytes().0.to_string());
            assert_eq!(dump["config"]["json_size"], (layout.metadata.0 - 4096).to_string());
            assert_eq!(dump["config"]["keyslots_size"], layout.keyslots.0.to_string());
            assert_eq!(dump["keyslots"]["4"]["key_size"], 64);
            assert_eq!(dump["keyslots"]["4"]["kdf"]["type"], "pbkdf2");
            assert_eq!(dump["keyslots"]["4"]["kdf"]["iterations"], 1000);
            assert_eq!(dump["tokens"]["1"], tokens[&1]);
            assert_eq!(dump["tokens"]["2"], tokens[&2]);
        }
    }
}

#[test]
fn guessable_passphrases_get_costly_derivation() {
    let passphrase = secret("hunter2");
    let luks_device = LuksDevice::new();
    let new = NewKeyslot { number: 0, passphrase: &passphrase, cost: Cost::Guessable };
    luks_device.format(&OF_POOL, FormatPurpose::New, &[new], &BTreeMap::new()).unwrap();
    luks_device.open(&passphrase, Some(0)).unwrap();
    if let Some(dump) = luks_device.dump() {
        assert_eq!(dump["keyslots"]["0"]["kdf"]["type"], "argon2id");
    }
}

#[test]
fn only_the_right_passphrase_finds_the_volume_key() {
    let (first, second, wrong) = (secret("first"), secret("se\0cond\n"), secret("First"));
    let luks_device = LuksDevice::new();
    let keyslots = [keyslot(0, &first), keyslot(1, &second)];
    luks_device.format(&OF_POOL, FormatPurpose::New, &keyslots, &BTreeMap::new()).unwrap();
    let key = luks_device.open(&first, None).unwrap();
    assert_eq!(key.bytes().len(), 64);
    assert!(key.same(luks_device.open(&second, Some(1)).unwrap().bytes()));
    for (passphrase, keyslot) in [(&wrong, None), (&wrong, Some(0)), (&first, Some(1)), (&first, Some(9))] {
        let error = luks_device.open(passphrase, keyslot).unwrap_err();
        assert!(matches!(error, Error::WrongKey { .. }), "{keyslot:?}: {error}");
    }
}

#[test]
fn each_header_change_takes_effect() {
    let (first, second) = (secret("first"), secret("second"));
    let luks_device = LuksDevice::formatted(&first);
    let key = luks_device.open(&first, None).unwrap();
    let with = Some(unlock(&first, Some(0)));
    let header = luks_device.change(with, HeaderChange::AddKeyslot(keyslot(5, &second))).unwrap();
    assert_eq!(header.keyslots, [0, 5].into());
    assert!(key.same(luks_device.open(&second, Some(5)).unwrap().bytes()));

    let header = luks_device.change(None, HeaderChange::PutToken(3, keyring_token(5))).unwrap();
    assert_eq!(header.tokens, [(3, keyring_token(5))].into());
    let header = luks_device.change(None, HeaderChange::PutToken(3, clevis_token(0))).unwrap();
    assert_eq!(header.tokens, [(3, clevis_token(0))].into());
    // The keyslot is destroyed, and removed from its token.
    let header = luks_device.change(None, HeaderChange::DestroyKeyslot(0)).unwrap();
    assert_eq!(header.keyslots, [5].into());
    assert_eq!(header.tokens[&3]["keyslots"], json!([]));
    assert!(matches!(luks_device.open(&first, None).unwrap_err(), Error::WrongKey { .. }));
    let header = luks_device.change(None, HeaderChange::RemoveToken(3)).unwrap();
    assert!(header.tokens.is_empty());
    // Removing an absent token or keyslot succeeds.
    let before = luks_device.bytes(0, 32 << 20);
    let gone = [HeaderChange::RemoveToken(3), HeaderChange::DestroyKeyslot(0)];
    assert_eq!(luks_device.luks.change(&luks_device.path(), None, &gone).unwrap(), header);
    assert!(luks_device.bytes(0, 32 << 20) == before);
}

#[test]
fn a_failed_change_keeps_those_before_it() {
    let (first, second) = (secret("first"), secret("second"));
    let luks_device = LuksDevice::formatted(&first);
    let add = || HeaderChange::AddKeyslot(keyslot(0, &second));
    for (unlock, change) in [
        // The keyslot number is in use; there is no passphrase; the token names a missing keyslot.
        (Some(unlock(&first, None)), add()),
        (None, HeaderChange::AddKeyslot(keyslot(1, &second))),
        (None, HeaderChange::PutToken(0, keyring_token(9))),
        (None, HeaderChange::PutToken(32, keyring_token(0))),
        (None, HeaderChange::PutToken(0, json!({"keyslots": []}))),
    ] {
        let changes = [HeaderChange::PutToken(7, clevis_token(0)), change];
        let error = luks_device.luks.change(&luks_device.path(), unlock, &changes).unwrap_err();
        assert!(matches!(error, Error::Luks { action: "change", .. }), "{error}");
        let header = luks_device.read();
        assert_eq!((header.keyslots, header.tokens), ([0].into(), [(7, clevis_token(0))].into()));
        luks_device.change(None, HeaderChange::RemoveToken(7)).unwrap();
    }
    let error = luks_device.change(Some(unlock(&second, None)), HeaderChange::AddKeyslot(keyslot(1, &second)));
    assert!(matches!(error.unwrap_err(), Error::WrongKey { .. }));
}

#[test]
fn keyslots_for_a_new_volume_key_agree() {
    let (first, second) = (secret("first"), secret("second"));
    let luks_device = LuksDevice::formatted(&first);
    let changes = [
        HeaderChange::AddNextKeyslot(keyslot(1, &first)),
        HeaderChange::AddNextKeyslot(keyslot(2, &second)),
        HeaderChange::PutToken(0, json!({"type": "clevis", "keyslots": ["0", "1"], "jwe": {}})),
    ];
    let header = luks_device.luks.change(&luks_device.path(), Some(unlock(&first, None)), &changes).unwrap();
    assert_eq!((header.keyslots, header.state), ([0, 1, 2].into(), DataEncryption::Encrypted));
    // The keyslots for the new volume key do not open the device yet.
    luks_device.open(&first, None).unwrap();
    for (passphrase, keyslot) in [(&first, Some(1)), (&second, Some(2)), (&second, None)] {
        assert!(matches!(luks_device.open(passphrase, keyslot).unwrap_err(), Error::WrongKey { .. }), "{keyslot:?}");
    }
    if let Some(dump) = luks_device.dump() {
        let digests = dump["digests"].as_object().unwrap();
        assert_eq!(digests.len(), 2);
        assert!(
            digests.values().any(|digest| digest["keyslots"] == json!(["1", "2"]) && digest["segments"] == json!([]))
        );
    }
}

#[test]
fn a_header_over_plaintext_says_nothing_is_done() {
    let (first, second) = (secret("first"), secret("second"));
    let luks_device = LuksDevice::new();
    let data = OF_POOL.data_offset.bytes().0 as u64;
    let mut file = File::options().write(true).open(luks_device.path()).unwrap();
    file.seek(SeekFrom::Start(data)).unwrap();
    file.write_all(&vec![0xA5; (SIZE - data) as usize]).unwrap();
    let tokens = BTreeMap::from([(1, keyring_token(0)), (2, clevis_token(1))]);
    let keyslots = [keyslot(0, &first), keyslot(1, &second)];
    let header = luks_device.format(&OF_POOL, FormatPurpose::Encrypt, &keyslots, &tokens).unwrap();
    assert_eq!(header.state, DataEncryption::Unfinished { mode: ReencryptionMode::Encrypt, done: Bytes(0) });
    assert_eq!(header, luks_device.read());
    assert_eq!((&header.keyslots, &header.tokens), (&[0, 1].into(), &tokens));
    assert_eq!((header.data_offset, header.sector_size), (OF_POOL.data_offset, 4096));
    assert!(luks_device.bytes(data, (SIZE - data) as usize).iter().all(|byte| *byte == 0xA5));
    let key = luks_device.open(&first, None).unwrap();
    assert!(key.same(luks_device.open(&second, Some(1)).unwrap().bytes()));
    assert!(matches!(luks_device.open(&second, Some(0)).unwrap_err(), Error::WrongKey { .. }));
    if let Some(dump) = luks_device.dump() {
        assert_eq!(dump["config"]["requirements"]["mandatory"], json!(["online-reencrypt-v2"]));
        let work =
            dump["keyslots"].as_object().unwrap().values().find(|keyslot| keyslot["type"] == "reencrypt").unwrap();
        assert_eq!((&work["mode"], &work["direction"]), (&json!("encrypt"), &json!("forward")));
        assert_eq!((&work["area"]["type"], &work["area"]["hash"]), (&json!("checksum"), &json!("sha256")));
    }
}

#[test]
fn a_header_over_plaintext_is_written_when_complete() {
    let first = secret("first");
    let luks_device = LuksDevice::new();
    // Adding the second keyslot fails.
    let keyslots = [keyslot(0, &first), keyslot(0, &first)];
    let error = luks_device.format(&OF_POOL, FormatPurpose::Encrypt, &keyslots, &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, Error::Luks { action: "format", .. }), "{error}");
    assert!(luks_device.bytes(0, 32 << 20).iter().all(|byte| *byte == 0));
    assert_eq!(luks_device.luks.read(&luks_device.path()).unwrap(), None);
    let error = luks_device.format(&OF_POOL, FormatPurpose::Encrypt, &[], &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, Error::Luks { .. }), "{error}");
}

#[test]
fn an_impossible_layout_is_refused() {
    let first = secret("first");
    let luks_device = LuksDevice::new();
    for layout in [
        HeaderLayout { metadata: Bytes(17 << 10), ..OF_POOL },
        HeaderLayout { keyslots: Bytes(1), ..OF_POOL },
        HeaderLayout { data_offset: Sectors(2048), ..OF_POOL },
        HeaderLayout { sector_size: Some(1000), ..OF_POOL },
    ] {
        let error =
            luks_device.format(&layout, FormatPurpose::New, &[keyslot(0, &first)], &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, Error::Luks { action: "format", .. }), "{error}");
    }
}

#[test]
fn a_damaged_header_differs_from_none() {
    let first = secret("first");
    let luks_device = LuksDevice::new();
    assert_eq!(luks_device.luks.read(&luks_device.path()).unwrap(), None);
    luks_device.format(&OF_POOL, FormatPurpose::New, &[keyslot(0, &first)], &BTreeMap::new()).unwrap();
    let (header, copies) = (luks_device.read(), luks_device.bytes(0, 128 << 10));
    let write = |at: u64, bytes: &[u8]| {
        File::options().write(true).open(luks_device.path()).unwrap().write_all_at(bytes, at).unwrap();
    };
    // One valid copy of the header is enough.
    write(0, &[0; 64 << 10]);
    assert_eq!(luks_device.read(), header);
    write(0, &copies);
    write(64 << 10, &[0; 64 << 10]);
    assert_eq!(luks_device.read(), header);
    write(0, &copies);
    for at in [5000, (64 << 10) + 5000] {
        write(at, b"damage");
    }
    let error = luks_device.luks.read(&luks_device.path()).unwrap_err();
    assert!(matches!(error, Error::Luks { action: "read", .. }), "{error}");
    write(0, &[0; 128 << 10]);
    assert_eq!(luks_device.luks.read(&luks_device.path()).unwrap(), None);
    // LUKS version 1 is not supported.
    write(0, b"LUKS\xba\xbe\x00\x01");
    assert_eq!(luks_device.luks.read(&luks_device.path()).unwrap(), None);
    let nowhere = luks_device.folder.path().join("nowhere");
    assert!(matches!(luks_device.luks.read(&nowhere).unwrap_err(), Error::Luks { .. }));
}

#[test]
fn a_job_that_never_started_cannot_resume() {
    let first = secret("first");
    let luks_device = LuksDevice::formatted(&first);
    let watched = |_| panic!("the job started");
    let asked = |_| true;
    let path = luks_device.path();
    let error =
        luks_device.luks.reencrypt(&path, "stratis-none", unlock(&first, None), Begin::Resume, &asked).unwrap_err();
    assert!(error.to_string().contains("re-encrypt"), "{error}");
    let nowhere = luks_device.folder.path().join("nowhere");
    assert!(luks_device.luks.reencrypt(&nowhere, "x", unlock(&first, None), Begin::Decrypt, &watched).is_err());
}

#[test]
fn calls_run_in_parallel() {
    let first = secret("first");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let luks_device = LuksDevice::formatted(&first);
                let key = luks_device.open(&first, None).unwrap();
                assert!(key.same(luks_device.open(&first, Some(0)).unwrap().bytes()));
            });
        }
    });
}

#[test]
fn a_wrong_child_program_is_an_error() {
    let luks_device = LuksDevice::new();
    for (program, expected) in [
        ("/nonexistent", "cannot start the child process"),
        ("/bin/false", "the child process ended: exit status 1"),
        // `cat` returns the request as its answer.
        ("/bin/cat", "the child process"),
    ] {
        let luks = Luks::served_by(Path::new(program));
        let error = luks.read(&luks_device.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{program}: {error}");
    }
}

#[test]
fn a_child_without_a_request_exits() {
    // The test starts the child without a request, which the daemon never does.
    #[allow(clippy::disallowed_methods)]
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_stratisd"))
        .arg("--luks-child")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take());
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert!(said.is_empty() && child.wait().unwrap().success());
}
