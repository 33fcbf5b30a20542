//! Makes a pool of metadata version 1 on real disks, as daemons before 3.8 did. New pools have
//! version 2, so clients cannot create such a pool. The pool stays set up, as after a kill of the
//! daemon.

use std::{path::PathBuf, sync::Arc};

use serde_json::json;
use stratisd::{
    base::name::Name,
    engine::{
        Engine,
        encryption::{BindRequest, ClevisRequest, KeyDescription, NewBinding},
        metadata::{IntegritySpec, MetadataVersion},
        ops::{self, NewPool},
    },
    platform::linux::Linux,
};
use support::pools::Pools;

/// Token slots of the two bindings that this version allows.
const KEYRING_TOKEN: u32 = 1;
const CLEVIS_TOKEN: u32 = 2;

/// Makes the pool, encrypted if `key=DESCRIPTION` or `tang=URL` accompany the devices. Panics on
/// failure.
pub(crate) fn make(linux: Linux, name: &str, words: &[String]) {
    let engine = Engine::new(Arc::new(linux));
    let name = Name::new(name).expect("an invalid pool name");
    let (mut devices, mut bindings) = (Vec::new(), Vec::new());
    for word in words {
        match word.split_once('=') {
            Some(("key", description)) => {
                let description = KeyDescription::new(description).expect("an invalid key description");
                bindings.push(NewBinding { token: Some(KEYRING_TOKEN), request: BindRequest::Keyring(description) });
            }
            Some(("tang", url)) => {
                let clevis = ClevisRequest { pin: "tang".to_owned(), config: json!({ "url": url }), trust: true };
                bindings.push(NewBinding { token: Some(CLEVIS_TOKEN), request: BindRequest::Clevis(clevis) });
            }
            _ => devices.push(PathBuf::from(word)),
        }
    }
    let new = NewPool { name, devices, version: MetadataVersion::V1, integrity: IntegritySpec::default(), bindings };
    let made = Pools::default().run(&engine, ops::create_pool(new));
    made.unwrap_or_else(|error| panic!("{}", error.sentence()));
}
