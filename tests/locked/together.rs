//! Changes of what opens a pool beside others that rely on it: in every order that a seed gives, the outcome is that of one after
//! the other.

use stratisd::{
    engine::{
        self,
        encryption::{BindRequest, Kind, RebindRequest, SlotRequest, UnlockMethod},
        metadata::MetadataVersion,
        ops,
        request::Next,
    },
    platform::Platform,
};

use crate::{
    bench::Bench,
    keys::{by_key, by_tang, create, key, machine, set_key, shown, start, tang},
    scheduler::Scheduler,
};

const URL: &str = "http://tang";

/// Keys and pins of the pool, as expected after a change.
type Opens = (&'static [&'static str], usize);

struct Change {
    name: &'static str,
    begins_with_clevis: bool,
    ask: fn(&Bench) -> Next<engine::Result<bool>>,
    opens: Opens,
}

const CHANGES: [Change; 5] = [
    Change {
        name: "rebind the key",
        begins_with_clevis: true,
        ask: |bench| ops::rebind(bench.id("p"), RebindRequest::Keyring(key("l")), SlotRequest::Legacy),
        opens: (&["l"], 1),
    },
    Change {
        name: "rebind Clevis",
        begins_with_clevis: true,
        ask: |bench| ops::rebind(bench.id("p"), RebindRequest::Clevis, SlotRequest::Legacy),
        opens: (&["k"], 1),
    },
    Change {
        name: "unbind the key",
        begins_with_clevis: true,
        ask: |bench| ops::unbind(bench.id("p"), Kind::Keyring, SlotRequest::Legacy),
        opens: (&[], 1),
    },
    Change {
        name: "unbind Clevis",
        begins_with_clevis: true,
        ask: |bench| ops::unbind(bench.id("p"), Kind::Clevis, SlotRequest::Legacy),
        opens: (&["k"], 0),
    },
    Change {
        name: "bind Clevis",
        begins_with_clevis: false,
        ask: |bench| ops::bind(bench.id("p"), BindRequest::Clevis(tang(URL)), SlotRequest::Legacy),
        opens: (&["k"], 1),
    },
];

/// Each device of a version 1 pool has a header of its own: one that joins must be bound as the others are in the end.
#[test]
fn devices_that_join_are_bound_as_the_others_are_in_the_end() {
    for change in &CHANGES {
        for seed in 0..30 {
            let at = format!("{} beside an addition, seed {seed}", change.name);
            let mut bench = machine();
            set_key(&mut bench, "l", "secret of l");
            let mut bindings = vec![by_key(Some(1), "k")];
            bindings.extend(change.begins_with_clevis.then(|| by_tang(Some(2), URL)));
            create(&mut bench, MetadataVersion::V1, "p", &["/dev/a", "/dev/b"], bindings).unwrap();
            let pool = bench.id("p");
            let told = |text: engine::Error| text.sentence();
            let changed = (change.ask)(&bench).map(move |done| done.map_err(told));
            let added = ops::add_data_devices(pool, vec!["/dev/c".into(), "/dev/d".into()]);
            let added = added.map(move |done| done.map(|devices| devices.len() == 2).map_err(told));
            let fast = ops::init_cache(pool, vec!["/dev/fast".into()]);
            let fast = fast.map(move |done| done.map(|devices| devices.len() == 1).map_err(told));
            let mut scheduler = Scheduler::new(bench, seed);
            scheduler.begin("change", changed);
            scheduler.begin("add", added);
            scheduler.begin("cache", fast);
            let results = scheduler.finish();
            assert_eq!(results, [Ok(true), Ok(true), Ok(true)], "{at}:\n{}", scheduler.history.join("\n"));
            let mut bench = scheduler.bench;
            let encryption = shown(&bench, "p");
            assert!(encryption.keys_agree && encryption.clevis_agree, "{at}: {encryption:?}");
            let keys: Vec<&str> = encryption.keys.iter().map(|(_, key)| key.as_str()).collect();
            assert_eq!((&keys[..], encryption.clevis.len()), (change.opens.0, change.opens.1), "{at}");
            let headers = ["/dev/a", "/dev/b", "/dev/c", "/dev/d", "/dev/fast"].map(|path| {
                let header = bench.sim.luks_read(path.as_ref()).unwrap().unwrap();
                (header.keyslots.len(), header.unused.len(), header.tokens.keys().copied().collect::<Vec<_>>())
            });
            assert!(headers.iter().all(|header| *header == headers[0]), "{at}: {headers:?}");
            for token in encryption.keys.iter().map(|(token, _)| *token).chain(encryption.clevis.iter().map(|c| c.0)) {
                bench.stop_pool("p").unwrap();
                assert!(start(&mut bench, "p", Some(UnlockMethod::Token(token)), None).unwrap(), "{at}: by {token}");
            }
            bench.check_nothing_left(&at);
        }
    }
}
