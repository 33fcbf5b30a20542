//! A change of one pool has no cost for the other pools, and clients still see exactly what is
//! known.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::{
    base::{name::Name, units::Sectors},
    engine::{
        bda::{Bda, Choose, save_to_pool},
        metadata::{MetadataVersion, PoolMetadata, StaticHeader},
    },
    platform::{Platform, sim::Sim},
};

const SIZE: Sectors = Sectors(1 << 21);

/// Metadata of a stopped pool of one device.
const METADATA: &str = r#"{"name":"NAME",
 "backstore":{
  "data_tier":{"blockdev":{
    "allocs":[[{"parent":"DEVICE","start":8192,"length":1000000}]],
    "devs":[{"uuid":"DEVICE"}]}},
  "cap":{"allocs":[[34816,12288],[47104,12288],[59392,800000],[859392,10240]],"crypt_meta_allocs":[[0,34816]]}},
 "flex_devs":{"meta_dev":[[859392,10240]],"thin_meta_dev":[[34816,12288]],"thin_data_dev":[[59392,800000]],
              "thin_meta_dev_spare":[[47104,12288]]},
 "thinpool_dev":{"data_block_size":2048,"feature_args":["no_discard_passdown"],"fs_limit":100,"enable_overprov":true},
 "started":false}"#;

fn pool(number: u32) -> PoolUuid {
    let mut bytes = [1; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PoolUuid::from_random(bytes)
}

fn device(number: u32) -> DevUuid {
    let mut bytes = [2; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    DevUuid::from_random(bytes)
}

fn node(number: u32) -> PathBuf {
    format!("/dev/{number}").into()
}

/// Devices, each with a separate pool; every second pool is called `twin`.
fn devices(count: u32) -> Vec<FoundDevice> {
    let sim = (0..count).fold(Sim::builder(), |sim, number| sim.disk(node(number).to_str().unwrap(), SIZE)).build();
    let one = |number: u32| {
        let header = StaticHeader::new(pool(number), device(number), MetadataVersion::V2, SIZE, 0);
        let path = node(number);
        let mut bda = Bda::initialize(&sim, &[(&path, header)]).unwrap().remove(0);
        let name = if number.is_multiple_of(2) { format!("p{number}") } else { "twin".to_owned() };
        let json = METADATA.replace("NAME", &name).replace("DEVICE", &device(number).hyphenated().to_string());
        let metadata = PoolMetadata::parse(json.as_bytes(), MetadataVersion::V2).unwrap();
        let saved =
            save_to_pool(&sim, &mut [(&path, &mut bda)], json.as_bytes(), sim.now(), Choose::Everywhere).unwrap();
        let metadata = Some(Ok((saved.stamp, Arc::new(metadata))));
        FoundDevice { device: sim.find_device(&path).unwrap(), bda, metadata, within: BTreeSet::new() }
    };
    (0..count).map(one).collect()
}

fn member(found: &FoundDevice) -> [(DeviceNumber, PathBuf, DevUuid); 1] {
    [(found.device.number, found.device.path.clone(), found.bda.header().device)]
}

fn set(found: &FoundDevice) -> DeviceSet {
    let mut set = DeviceSet::default();
    set.add(Seen::Area(found.clone()));
    set
}

/// Measurements had shown that each stop renewed the views of all stopped pools, and that each
/// event of a device, each start and each stop searched all their devices.
#[test]
fn a_change_makes_no_view_of_another_pool() {
    let made = |beside: u32| {
        let found = devices(beside + 1);
        let mut registry = Registry::default();
        found.iter().for_each(|found| registry.add(Seen::Area(found.clone())));
        let before = registry.take_change().unwrap();
        assert_eq!(before.pools().len() as u32, beside + 1);
        let (uuid, path) = (pool(0), node(0));
        let mut counts = Vec::new();
        let mut told = |registry: &mut Registry| {
            let change = registry.take_change();
            counts.push(registry.entries.views_made);
            let mut others = change.iter().flat_map(|now| now.pools().values()).filter(|now| now.uuid != uuid);
            assert!(others.all(|now| Arc::ptr_eq(now, &before.pools()[&now.uuid])));
            change.map(|now| now.pools().contains_key(&uuid))
        };
        registry.entries.views_made = 0;
        assert_eq!(registry.resolve(&PoolRef::Name(Name::new("p0").unwrap())).unwrap(), uuid);
        assert_eq!(told(&mut registry), None);
        registry.note_running(uuid, member(&found[0]));
        assert_eq!(told(&mut registry), Some(false), "it runs");
        registry.note_ended(uuid);
        registry.add_stopped(uuid, set(&found[0]));
        assert_eq!(told(&mut registry), Some(true), "it is stopped");
        registry.note_being_set_up(uuid);
        assert_eq!(told(&mut registry), Some(true));
        registry.note_down(uuid, false, Some(&Error::NoDevices));
        assert_eq!(told(&mut registry), Some(true));
        assert_eq!(registry.remove_path(&path), Some(uuid));
        assert_eq!(told(&mut registry), Some(false), "its device is gone");
        registry.add(Seen::Area(found[0].clone()));
        assert_eq!(told(&mut registry), Some(true), "its device is back");
        counts
    };
    let alone = made(0);
    assert_eq!(alone, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(made(1000), alone);
}

/// What clients would see if no views were kept.
fn fresh(registry: &Registry, version: u64) -> view::StoppedPoolsView {
    let mut fresh = view::StoppedPoolsView::new(version);
    for (uuid, entry) in registry.entries.iter() {
        if let Some(view) = entry.stopped().and_then(|set| set.view(uuid)) {
            fresh.insert(view);
        }
        let aside = entry.aside();
        if !aside.is_empty() {
            fresh.left_aside.insert(uuid, aside.into());
        }
    }
    fresh
}

/// Makes one change to the registry that the engine may make.
fn act(registry: &mut Registry, found: &[FoundDevice], moments: &mut Vec<Moment>, random: &mut StdRng) {
    let one = found.choose(random).unwrap();
    let uuid = one.bda.header().pool;
    // Uses any node, so that a device takes over another's node, and makes clones of any device.
    let mut elsewhere = one.clone();
    let other = found.choose(random).unwrap();
    if random.random_bool(0.3) {
        elsewhere.device = other.device.clone();
    }
    match random.random_range(0..10) {
        0..3 => registry.add(Seen::Area(elsewhere)),
        3 => drop(registry.remove_path(&one.device.path)),
        4 => registry.note_running(uuid, member(one)),
        5 => {
            registry.note_ended(uuid);
            registry.add_stopped(uuid, set(one));
        }
        6 => drop(registry.take(uuid)),
        7 => registry.note_down(
            uuid,
            random.random_bool(0.5),
            Some(&Error::NoDevices).filter(|_| random.random_bool(0.5)),
        ),
        8 => match random.random_bool(0.5) {
            true => registry.note_being_set_up(uuid),
            false => registry.lose_member(one.device.number),
        },
        _ => {
            let since = moments.choose(random).copied().unwrap_or(registry.moment());
            let seen = found.iter().filter(|_| random.random_bool(0.7)).cloned().map(Seen::Area).collect();
            let unread: Vec<_> = random.random_bool(0.3).then(|| one.device.clone()).into_iter().collect();
            registry.replace(seen, &unread, since);
        }
    }
    moments.push(registry.moment());
}

#[test]
fn what_is_shown_is_what_is_known() {
    let found = devices(5);
    for seed in 0..200 {
        let (mut registry, mut random, mut moments) = (Registry::default(), StdRng::seed_from_u64(seed), Vec::new());
        let mut shown = view::StoppedPoolsView::default();
        for step in 0..60 {
            act(&mut registry, &found, &mut moments, &mut random);
            let at = format!("seed {seed}, step {step}");
            if let Some(change) = registry.take_change() {
                assert_eq!(change.version, shown.version + 1, "{at}");
                shown = (*change).clone();
            }
            let expected = fresh(&registry, shown.version);
            assert_eq!(shown, expected, "{at}");
            for number in 0..5 {
                let node = node(number);
                let knows = |(_, entry): &(PoolUuid, &Entry)| {
                    let beside = entry.running.as_ref().map(|running| &running.beside);
                    [Some(&entry.set), beside].into_iter().flatten().any(|set| set.nodes().any(|known| known == node))
                };
                let expected: Vec<PoolUuid> = registry.entries.iter().filter(knows).map(|(uuid, _)| uuid).collect();
                assert_eq!(registry.entries.at(&node), expected, "{at}");
            }
            let twins = registry.entries.iter().filter_map(|(uuid, entry)| Some((uuid, entry.stopped()?.name()?)));
            let twins: Vec<PoolUuid> =
                twins.filter(|(_, name)| name.as_str() == "twin").map(|(uuid, _)| uuid).collect();
            let resolved = registry.resolve(&PoolRef::Name(Name::new("twin").unwrap()));
            match (&twins[..], resolved) {
                ([], Err(Error::UnknownPool(_) | Error::UnknownName { .. })) => {}
                ([one], Ok(resolved)) if resolved == *one => {}
                (_, Err(Error::AmbiguousName { pools, .. })) if pools == twins => {}
                (_, resolved) => panic!("{at}: {twins:?} and {resolved:?}"),
            }
        }
    }
}
