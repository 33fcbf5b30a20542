//! A pool of metadata version 1 on real disks, as daemons before 3.8 made them: new pools are of version 2, so that no client
//! can ask for one. The pool is left up, as by a daemon that was killed.

use std::{path::PathBuf, sync::Arc};

use stratisd::{
    engine::{
        Engine,
        metadata::{IntegritySpec, MetadataVersion},
        name::Name,
        ops::{self, NewPool},
    },
    platform::linux::Linux,
};

use crate::pools::Pools;

/// Makes the pool. Panics if that fails.
pub(crate) fn make(linux: Linux, name: &str, devices: Vec<PathBuf>) {
    let engine = Engine::new(Arc::new(linux));
    let name = Name::new(name).expect("a good name");
    let new = NewPool {
        name,
        devices,
        version: MetadataVersion::V1,
        integrity: IntegritySpec::default(),
        bindings: Vec::new(),
    };
    let made = Pools::default().run(&engine, ops::create_pool(new));
    made.unwrap_or_else(|error| panic!("{}", error.sentence()));
}
