//! Keys, bindings, and pools that they unlock.

use std::path::PathBuf;

use stratisd::{
    base::pool_ref::PoolRef,
    engine::{
        Result,
        encryption::{BindRequest, ClevisRequest, KeyDescription, NewBinding, UnlockMethod},
        metadata::{IntegritySpec, MetadataVersion},
        ops::{self, CacheTier, NewPool, Secret, UnlockOptions},
    },
    platform::sim::Sim,
    view,
};

use crate::bench::{Bench, name};

/// A valid key description.
pub fn key(text: &str) -> KeyDescription {
    KeyDescription::new(text).unwrap()
}

/// A passphrase.
pub fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec().into())
}

/// A binding to a key.
pub fn by_key(token: Option<u32>, description: &str) -> NewBinding {
    NewBinding { token, request: BindRequest::Keyring(key(description)) }
}

/// A Clevis request for a Tang server.
pub fn tang(url: &str) -> ClevisRequest {
    ClevisRequest::from_client("tang", serde_json::json!({ "url": url, "stratis:tang:trust_url": true })).unwrap()
}

/// A binding to a Tang server.
pub fn by_tang(token: Option<u32>, url: &str) -> NewBinding {
    NewBinding { token, request: BindRequest::Clevis(tang(url)) }
}

/// A machine on which the key `k` is set.
pub fn machine() -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    set_key(&mut bench, "k", "secret of k");
    bench
}

/// Puts a passphrase into the keyring.
pub fn set_key(bench: &mut Bench, description: &str, passphrase: &str) {
    bench.run(ops::set_key(key(description), secret(passphrase))).unwrap();
}

/// Removes a passphrase from the keyring.
pub fn unset_key(bench: &mut Bench, description: &str) {
    bench.run(ops::unset_key(key(description))).unwrap();
}

/// Makes a pool.
pub fn create(
    bench: &mut Bench,
    version: MetadataVersion,
    pool: &str,
    devices: &[&str],
    bindings: Vec<NewBinding>,
) -> Result<bool> {
    let devices = devices.iter().map(PathBuf::from).collect();
    let new = NewPool { name: name(pool), devices, integrity: IntegritySpec::default(), version, bindings };
    bench.run(ops::create_pool(new)).map(|created| created.is_some())
}

/// An encrypted pool `p` that runs while the daemon has started without its key `k`.
pub fn adopted_without_key() -> Bench {
    let mut bench = machine();
    create(&mut bench, MetadataVersion::V2, "p", &["/dev/a"], vec![by_key(None, "k")]).unwrap();
    unset_key(&mut bench, "k");
    let bench = Bench::start(bench.sim);
    assert!(!bench.pool("p").unwrap().volume_key_loaded);
    bench
}

/// Starts a pool.
pub fn start(bench: &mut Bench, pool: &str, method: Option<UnlockMethod>, passphrase: Option<&str>) -> Result<bool> {
    let unlock = UnlockOptions { method, passphrase: passphrase.map(secret) };
    let started = ops::start_pool(PoolRef::Name(name(pool)), unlock, CacheTier::Keep);
    bench.run(started).map(|started| started.is_some())
}

/// The unlock methods that clients see.
pub fn shown(bench: &Bench, pool: &str) -> view::EncryptionView {
    bench.pool(pool).unwrap().encryption.clone().unwrap()
}
