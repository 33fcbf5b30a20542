//! Ways to unlock a pool come and go.

use stratisd::engine::{
    encryption::{BindRequest, Kind, RebindRequest, SlotRequest, UnlockMethod},
    metadata::MetadataVersion,
    ops,
};

use crate::keys::{by_key, create, key, machine, set_key, shown, start, tang, unset_key};

const VERSIONS: [MetadataVersion; 2] = [MetadataVersion::V1, MetadataVersion::V2];

#[test]
fn a_binding_is_added_and_opens_and_is_removed_and_does_not() {
    for version in VERSIONS {
        let mut bench = machine();
        create(&mut bench, version, "p", &["/dev/a", "/dev/b"], vec![by_key(Some(1), "k")]).unwrap();
        let pool = bench.id("p");
        let to_tang = || BindRequest::Clevis(tang("http://t"));
        assert!(bench.run(ops::bind(pool, to_tang(), SlotRequest::Legacy)).unwrap());
        assert!(!bench.run(ops::bind(pool, to_tang(), SlotRequest::Legacy)).unwrap(), "it is there already");
        assert_eq!(shown(&bench, "p").clevis.len(), 1);
        bench.stop_pool("p").unwrap();
        unset_key(&mut bench, "k");
        assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
        set_key(&mut bench, "k", "secret of k");
        assert!(bench.run(ops::unbind(pool, Kind::Keyring, SlotRequest::Legacy)).unwrap());
        assert_eq!(shown(&bench, "p").keys, []);
        assert!(bench.run(ops::unbind(pool, Kind::Clevis, SlotRequest::Legacy)).is_err(), "it is the last");
        bench.stop_pool("p").unwrap();
        let error = start(&mut bench, "p", Some(UnlockMethod::Any), Some("secret of k")).unwrap_err();
        assert!(error.sentence().contains("passphrase"), "{}", error.sentence());
        assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
        assert!(bench.run(ops::rebind(pool, RebindRequest::Clevis, SlotRequest::Legacy)).unwrap());
        bench.stop_pool("p").unwrap();
        assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
        bench.check_nothing_left("at the end");
    }
}

#[test]
fn a_new_key_takes_the_place_of_the_old() {
    for version in VERSIONS {
        let mut bench = machine();
        create(&mut bench, version, "p", &["/dev/a", "/dev/b"], vec![by_key(Some(1), "k")]).unwrap();
        let pool = bench.id("p");
        let to = |name: &str| RebindRequest::Keyring(key(name));
        assert!(bench.run(ops::rebind(pool, to("l"), SlotRequest::Legacy)).is_err(), "there is no such key");
        set_key(&mut bench, "l", "secret of l");
        assert!(bench.run(ops::rebind(pool, to("l"), SlotRequest::Legacy)).unwrap());
        assert!(!bench.run(ops::rebind(pool, to("l"), SlotRequest::Legacy)).unwrap());
        assert_eq!(shown(&bench, "p").keys, [(1, "l".to_owned())]);
        bench.stop_pool("p").unwrap();
        assert!(start(&mut bench, "p", Some(UnlockMethod::Any), Some("secret of k")).is_err());
        assert!(start(&mut bench, "p", Some(UnlockMethod::Token(1)), None).unwrap());
    }
}
