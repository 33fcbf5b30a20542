//! The worked examples of §6.9 and §6.10, the presence of keys, and each invariant of §6.8 violated
//! alone.

use proptest::prelude::*;
use serde_json::{Map, Value};
use support::examples::{DEVICE, POOL_V1 as V1, POOL_V2 as V2, compact};

use super::*;
use crate::{
    base::ids::PoolUuid,
    engine::metadata::{StaticHeader, TagSpec},
};

fn parse(text: &str, version: MetadataVersion) -> PoolMetadata {
    PoolMetadata::parse(text.as_bytes(), version).unwrap()
}

fn text(metadata: &PoolMetadata, version: MetadataVersion) -> String {
    String::from_utf8(metadata.encode(version)).unwrap()
}

fn v2() -> PoolMetadata {
    parse(V2, MetadataVersion::V2)
}

fn v1() -> PoolMetadata {
    parse(V1, MetadataVersion::V1)
}

/// The encrypted variant of §6.9.
fn v2_encrypted() -> PoolMetadata {
    let mut pool = v2();
    let back =
        |list: &mut Vec<Segment>| list.iter_mut().for_each(|s| s.start = s.start.saturating_sub(CRYPT_RESERVATION));
    let flex = &mut pool.flex_devs;
    for list in [&mut flex.meta_dev, &mut flex.thin_meta_dev, &mut flex.thin_data_dev, &mut flex.thin_meta_dev_spare] {
        back(list);
    }
    back(&mut pool.backstore.cap.allocs);
    pool.features = [Feature::Encryption, Feature::KeyDescriptionEnabled].into();
    pool
}

fn seg(start: u64, length: u64) -> Segment {
    Segment::new(Sectors(start), Sectors(length))
}

/// The pool is built from values, so that the text is not merely a copy of what was read.
fn v2_from_values() -> PoolMetadata {
    let parent: DevUuid = DEVICE.parse().unwrap();
    PoolMetadata {
        name: "p1".to_owned(),
        backstore: Backstore {
            data_tier: Tier::new(
                BlockDevs::new(
                    vec![vec![DeviceSegment { parent, start: Sectors(8192), length: Sectors(20_371_456) }]],
                    vec![BlockDev {
                        uuid: parent,
                        integrity_meta_allocs: vec![seg(20_381_688, 589_832)],
                        user_info: None,
                        hardware_info: Some("0x5000c500a1b2c3d4".to_owned()),
                        rest: Rest::default(),
                    }],
                ),
                Some(IntegritySpec::default()),
            ),
            cap: Cap {
                allocs: vec![
                    seg(34_816, 12_288),
                    seg(47_104, 12_288),
                    seg(59_392, 19_263_488),
                    seg(19_322_880, 1_048_576),
                ],
                crypt_meta_allocs: vec![seg(0, 34_816)],
                rest: Rest::default(),
            },
            cache_tier: None,
            rest: Rest::default(),
        },
        flex_devs: FlexDevs {
            meta_dev: vec![seg(19_322_880, 1_048_576)],
            thin_meta_dev: vec![seg(34_816, 12_288)],
            thin_data_dev: vec![seg(59_392, 19_263_488)],
            thin_meta_dev_spare: vec![seg(47_104, 12_288)],
            rest: Rest::default(),
        },
        thinpool_dev: ThinPoolDev {
            data_block_size: Sectors(2048),
            feature_args: Some(["skip_block_zeroing", "no_discard_passdown"].map(str::to_owned).into()),
            fs_limit: Some(100),
            enable_overprov: Some(true),
            rest: Rest::default(),
        },
        started: Some(true),
        features: BTreeSet::new(),
        last_reencrypt: None,
        destroying: None,
        repaired: false,
        rest: Rest::default(),
    }
}

#[test]
fn writes_the_worked_example_of_version_2() {
    assert_eq!(text(&v2_from_values(), MetadataVersion::V2), compact(V2));
    assert_eq!(v2(), v2_from_values());
}

#[test]
fn writes_the_worked_example_of_version_1() {
    assert_eq!(text(&v1(), MetadataVersion::V1), compact(V1));
    assert_eq!(v1().devices().map(|d| d.hyphenated()[..1].to_owned()).collect::<String>(), "12");
}

#[test]
fn writes_the_encrypted_variant() {
    let text = text(&v2_encrypted(), MetadataVersion::V2);
    assert!(
        text.contains(r#""allocs":[[0,12288],[12288,12288],[24576,19263488],[19288064,1048576]],"crypt"#),
        "{text}"
    );
    assert!(text.ends_with(r#""started":true,"features":["Encryption","KeyDescriptionEnabled"]}"#), "{text}");
    assert_eq!(parse(&text, MetadataVersion::V2), v2_encrypted());
}

#[test]
fn version_1_has_no_keys_of_version_2() {
    let mut pool = v2_encrypted();
    let text = text(&pool, MetadataVersion::V1);
    for key in ["features", "integrity_spec", "integrity_meta_allocs", "crypt_meta_allocs"] {
        assert!(!text.contains(key), "{key} in {text}");
    }
    pool.keep_keys_of(MetadataVersion::V1);
    assert_eq!(PoolMetadata::parse(&v2_encrypted().encode(MetadataVersion::V2), MetadataVersion::V1).unwrap(), pool);
}

#[test]
fn version_2_always_has_its_integrity_settings() {
    let mut pool = v2();
    pool.backstore.data_tier.integrity_spec = None;
    assert_eq!(text(&pool, MetadataVersion::V2), compact(V2));
    let without = compact(V2).replacen(
        r#","integrity_spec":{"tag_spec":"512b","journal_size":262144,"block_size":4096,"allocate_superblock":true}"#,
        "",
        1,
    );
    assert_eq!(parse(&without, MetadataVersion::V2), v2());
    for (spec, word) in [(TagSpec::B0, "\"0b\""), (TagSpec::B32, "\"32b\""), (TagSpec::B512, "\"512b\"")] {
        assert_eq!(serde_json::to_string(&spec).unwrap(), word);
    }
}

#[test]
fn reads_metadata_of_older_series() {
    let old = compact(V1)
        .replace(
            r#","feature_args":["no_discard_passdown","skip_block_zeroing"],"fs_limit":100,"enable_overprov":true"#,
            "",
        )
        .replace(r#","started":true"#, "");
    let pool = parse(&old, MetadataVersion::V1);
    let thin = ThinPoolDev {
        data_block_size: DATA_BLOCK,
        feature_args: None,
        fs_limit: None,
        enable_overprov: None,
        rest: Rest::default(),
    };
    assert_eq!((pool.started, &pool.thinpool_dev), (None, &thin));
    assert!(text(&pool, MetadataVersion::V1).ends_with(r#""thinpool_dev":{"data_block_size":2048},"started":true}"#));
}

#[test]
fn our_own_key_is_omitted_when_empty() {
    let stamp = Timestamp { seconds: 9, nanoseconds: 8 };
    let destroying = PoolMetadata { destroying: Some(stamp), last_reencrypt: Some(7), started: Some(false), ..v1() };
    let text = text(&destroying, MetadataVersion::V1);
    assert!(text.ends_with(r#","started":false,"last_reencrypt":7,"destroying":[9,8]}"#), "{text}");
    assert_eq!(parse(&text, MetadataVersion::V1), destroying);
    let repaired = PoolMetadata { repaired: true, ..v1() };
    let text = self::text(&repaired, MetadataVersion::V1);
    assert!(text.ends_with(r#","started":true,"repaired":true}"#), "{text}");
    assert_eq!(parse(&text, MetadataVersion::V1), repaired);
}

/// Keys of a newer daemon were ignored on reading and lost at the next write.
#[test]
fn unknown_keys_are_kept_in_place() {
    let newer = compact(V2)
        .replace("\"hardware_info\":", "\"new\":null,\"hardware_info\":")
        .replace("{\"name\"", "{\"x\":[1],\"name\"");
    let mut pool = parse(&newer, MetadataVersion::V2);
    pool.name = "p2".to_owned();
    let expected = compact(V2)
        .replace("b2c3d4\"}", "b2c3d4\",\"new\":null}")
        .replace("\"started\":true}", "\"started\":true,\"x\":[1]}")
        .replace("p1", "p2");
    assert_eq!(text(&pool, MetadataVersion::V2), expected);
}

#[test]
fn refuses_what_the_specification_refuses() {
    let refuse = |from: &str, to: &str| {
        let text = compact(V2).replacen(from, to, 1);
        assert_ne!(text, compact(V2), "{from} is not in the example");
        assert!(PoolMetadata::parse(text.as_bytes(), MetadataVersion::V2).is_err(), "{text}");
    };
    refuse(r#""started":true"#, r#""started":true,"features":["Teleport"]"#);
    refuse(r#""started":true"#, r#""started":true,"last_reencrypt":null"#);
    refuse(r#""started":true"#, r#""started":true,"last_reencrypt":"yesterday""#);
    refuse(r#""name":"p1","#, "");
    refuse(r#""data_block_size":2048,"#, "");
    refuse(r#""512b""#, r#""64b""#);
    refuse("[[0,34816]]", "[[0]]");
    refuse("[[0,34816]]", "[[0,34816,1]]");
    refuse("[[0,34816]]", "[[-1,34816]]");
    refuse("fedcba98-", "xedcba98-");
    refuse(r#""cap":"#, r#""cap":null,"cup":"#);
    assert!(PoolMetadata::parse(b"", MetadataVersion::V2).is_err());
    assert!(PoolMetadata::parse(b"\xff", MetadataVersion::V2).is_err());
}

#[test]
fn cuts_long_texts_between_characters() {
    let mut pool = v2();
    let long = format!("{}ü", "x".repeat(254));
    pool.name = long.clone();
    pool.backstore.data_tier.blockdev.devs[0].user_info = Some(long.clone());
    pool.backstore.data_tier.blockdev.devs[0].hardware_info = Some(long.clone());
    let read = PoolMetadata::parse(&pool.encode(MetadataVersion::V2), MetadataVersion::V2).unwrap();
    let device = &read.backstore.data_tier.blockdev.devs[0];
    let short = "x".repeat(254);
    assert_eq!([&read.name, device.user_info.as_ref().unwrap(), device.hardware_info.as_ref().unwrap()], [&short; 3]);
    assert_eq!(cut(&"y".repeat(255)).len(), 255);
    assert_eq!(cut(""), "");
}

// ---- the invariants ----

fn headers(metadata: &PoolMetadata, version: MetadataVersion) -> Vec<StaticHeader> {
    let pool = PoolUuid::from_random([1; 16]);
    let sizes = [Sectors(20_971_520), Sectors(2_097_152)];
    metadata.devices().zip(sizes).map(|(device, size)| StaticHeader::new(pool, device, version, size, 0)).collect()
}

#[test]
fn the_worked_examples_keep_all_rules() {
    let examples = [(v2(), MetadataVersion::V2), (v2_encrypted(), MetadataVersion::V2), (v1(), MetadataVersion::V1)];
    for (pool, version) in examples {
        let headers = headers(&pool, version);
        assert_eq!(check(&pool, version, &headers), Ok(()));
        assert_eq!(check_members(&pool, &headers), Ok(()));
    }
}

/// Changes an example and expects the rule that the change breaks.
fn breaks(
    example: fn() -> PoolMetadata,
    version: MetadataVersion,
    change: impl FnOnce(&mut PoolMetadata),
    expected: impl FnOnce(&Broken) -> bool,
) {
    let mut pool = example();
    let headers = headers(&pool, version);
    change(&mut pool);
    let broken = check(&pool, version, &headers).expect_err("no rule was broken");
    assert!(expected(&broken), "broke {broken:?}");
}

macro_rules! breaks {
    ($example:ident, $version:ident, |$pool:ident| $change:expr, $expected:pat) => {
        breaks(
            $example,
            MetadataVersion::$version,
            |$pool| {
                $change;
            },
            |broken| matches!(broken, $expected),
        )
    };
}

#[test]
fn each_rule_of_both_versions_is_checked() {
    breaks!(v2, V2, |p| p.thinpool_dev.data_block_size = Sectors(1024), Broken::DataBlock(Sectors(1024)));
    breaks!(v2, V2, |p| p.flex_devs.meta_dev.clear(), Broken::EmptyList("meta_dev"));
    breaks!(v1, V1, |p| p.flex_devs.thin_data_dev.clear(), Broken::EmptyList("thin_data_dev"));
    breaks!(v2, V2, |p| p.flex_devs.meta_dev.push(seg(20_371_456, 0)), Broken::EmptySegment { .. });
    breaks!(v2, V2, |p| p.flex_devs.meta_dev[0].start.0 -= 1, Broken::Overlap { .. });
    breaks!(v2, V2, |p| p.flex_devs.meta_dev[0].start.0 += 1, Broken::Beyond { .. });
    breaks!(v2, V2, |p| p.flex_devs.meta_dev[0].length.0 -= 1, Broken::HandedOut { .. });
    breaks!(v1, V1, |p| p.flex_devs.meta_dev[0].start.0 -= 1, Broken::Overlap { .. });
    breaks!(v1, V1, |p| p.flex_devs.meta_dev[0].length.0 -= 1, Broken::HandedOut { .. });
    breaks!(v1, V1, |p| p.flex_devs.meta_dev[0].length = Sectors(u64::MAX), Broken::Overflow(_));
    breaks!(v2, V2, |p| p.backstore.data_tier.blockdev.allocs.clear(), Broken::Lists { expected: 1, found: 0, .. });
    breaks!(v2, V2, |p| p.backstore.data_tier.blockdev.allocs.push(vec![]), Broken::Lists { found: 2, .. });
    breaks!(v2, V2, |p| first(p).start = Sectors(8191), Broken::InDeviceMetadata { start: Sectors(8191), .. });
    breaks!(v2, V2, |p| first(p).length.0 += 2049, Broken::Overlap { at: Sectors(20_381_688), .. });
    breaks!(v1, V1, |p| first(p).length.0 += 1, Broken::Beyond { end: Sectors(20_971_521), .. });
    breaks!(v1, V1, |p| first(p).start = Sectors(u64::MAX), Broken::Beyond { end: Sectors(u64::MAX), .. });
    breaks!(v1, V1, |p| first(p).length = Sectors(8), Broken::DataTier { tier: Sectors(8), .. });
    breaks!(v1, V1, |p| p.backstore.data_tier.blockdev.allocs[0].clear(), Broken::DataTier { tier: Sectors(0), .. });
    breaks!(v2, V2, |p| first(p).length.0 = 20_371_456 - 34_816, Broken::DataTier { .. });
    let other = DevUuid::from_random([9; 16]);
    breaks!(v2, V2, |p| first(p).parent = other, Broken::Foreign { tier: "data_tier", .. });
    breaks!(v2, V2, |p| p.backstore.data_tier.blockdev.devs[0].uuid = other, Broken::Foreign { .. });
}

fn first(pool: &mut PoolMetadata) -> &mut DeviceSegment {
    &mut pool.backstore.data_tier.blockdev.allocs[0][0]
}

fn reserved(pool: &mut PoolMetadata) -> &mut Segment {
    &mut pool.backstore.data_tier.blockdev.devs[0].integrity_meta_allocs[0]
}

#[test]
fn each_rule_of_version_2_is_checked() {
    breaks!(v2, V2, |p| p.backstore.cap.crypt_meta_allocs.clear(), Broken::CryptReservation);
    breaks!(v2, V2, |p| p.backstore.cap.crypt_meta_allocs[0].length.0 += 8, Broken::CryptReservation);
    breaks!(v2, V2, |p| p.backstore.cap.crypt_meta_allocs[0].start.0 += 8, Broken::CryptReservation);
    breaks!(v2, V2, |p| p.backstore.cap.crypt_meta_allocs.push(seg(0, 34_816)), Broken::CryptReservation);
    breaks!(v2, V2, |p| p.backstore.cap.allocs[1].start.0 += 8, Broken::CapOrder(Sectors(34_816)));
    breaks!(v2_encrypted, V2, |p| p.features.clear(), Broken::CapOrder(Sectors(34_816)));
    breaks!(v2, V2, |p| p.features = [Feature::Encryption].into(), Broken::CapOrder(Sectors(0)));
    breaks!(v2, V2, |p| p.backstore.cap.allocs.truncate(3), Broken::Beyond { .. });
    breaks!(v2, V2, |p| p.backstore.cap.allocs.push(seg(20_371_456, 1)), Broken::HandedOut { .. });
    breaks!(v2, V2, |p| reserved(p).length.0 -= 1, Broken::Integrity(_));
    breaks!(v2, V2, |p| reserved(p).length.0 += 8, Broken::Beyond { .. });
    let nothing =
        IntegritySpec { tag_spec: TagSpec::B0, journal_size: Sectors(0), block_size: 4096, allocate_superblock: false };
    breaks!(v2, V2, |p| p.backstore.data_tier.integrity_spec = Some(nothing), Broken::Integrity(_));
    let swap = |p: &mut PoolMetadata| {
        p.flex_devs.thin_meta_dev[0].length.0 += 8;
        p.flex_devs.thin_meta_dev_spare[0] = seg(47_104 + 8, 12_288 - 8);
    };
    breaks!(v2, V2, |p| swap(p), Broken::Spare { metadata: Sectors(12_296), spare: Sectors(12_280) });
    // Requests are recorded in the order in which they were granted. The order on the device may
    // differ.
    let mut pool = v2();
    pool.backstore.cap.allocs.reverse();
    assert_eq!(check(&pool, MetadataVersion::V2, &headers(&pool, MetadataVersion::V2)), Ok(()));
}

#[test]
fn each_rule_of_version_1_is_checked() {
    breaks!(v1, V1, |p| p.backstore.cap.allocs.clear(), Broken::Lists { list: "cap.allocs", found: 0, .. });
    breaks!(v1, V1, |p| p.backstore.cap.allocs.push(seg(0, 0)), Broken::Lists { list: "cap.allocs", found: 2, .. });
    breaks!(v1, V1, |p| p.backstore.cap.allocs[0].start = Sectors(1), Broken::CapOrder(_));
    breaks!(v1, V1, |p| p.backstore.cap.allocs[0].length.0 -= 1, Broken::Beyond { .. });
}

#[test]
fn each_rule_of_the_cache_is_checked() {
    fn cache(pool: &mut PoolMetadata) -> &mut BlockDevs {
        &mut pool.backstore.cache_tier.as_mut().unwrap().blockdev
    }
    breaks!(v1, V1, |p| cache(p).allocs.truncate(1), Broken::Lists { list: "cache_tier", expected: 2, found: 1 });
    breaks!(v1, V1, |p| cache(p).allocs[1].clear(), Broken::EmptyList("cache_tier"));
    breaks!(v1, V1, |p| cache(p).allocs[0][0].length.0 -= 1, Broken::CacheSpace(_));
    breaks!(v1, V1, |p| cache(p).allocs[0][0].start.0 -= 1, Broken::Overlap { .. });
    breaks!(v1, V1, |p| cache(p).allocs[0][0].length.0 += 1, Broken::Beyond { .. });
    let data = v1().backstore.data_tier.blockdev.devs[0].uuid;
    breaks!(v1, V1, |p| cache(p).allocs[0][0].parent = data, Broken::Foreign { tier: "cache_tier", .. });
}

#[test]
fn members_are_those_listed() {
    let pool = v1();
    let found = headers(&pool, MetadataVersion::V1);
    let change = |change: fn(&mut Vec<StaticHeader>)| {
        let mut found = found.clone();
        change(&mut found);
        check_members(&pool, &found)
    };
    let (data, cache) = (found[0].device, found[1].device);
    assert_eq!(change(|f| f.reverse()), Ok(()));
    assert_eq!(change(|f| f.truncate(1)), Err(Broken::Missing(cache)));
    assert_eq!(change(|f| f.clear()), Err(Broken::Missing(data)));
    assert_eq!(change(|f| f.push(f[0])), Err(Broken::Duplicate(data)));
    assert_eq!(change(|f| f[1].version = MetadataVersion::V2), Err(Broken::MixedVersions));
    let (device, other) = (DevUuid::from_random([9; 16]), PoolUuid::from_random([9; 16]));
    let extra = change(|f| f.push(StaticHeader { device: DevUuid::from_random([9; 16]), ..f[0] }));
    assert_eq!(extra, Err(Broken::Unlisted(device)));
    let foreign = change(|f| f[1].pool = PoolUuid::from_random([9; 16]));
    assert_eq!(foreign, Err(Broken::OtherPool { device: cache, pool: other }));
    assert_eq!(check(&pool, MetadataVersion::V1, &found[..1]), Err(Broken::Missing(cache)));
    let mut twice = v1();
    let device = twice.backstore.data_tier.blockdev.devs[0].clone();
    twice.backstore.data_tier.blockdev.devs.push(device);
    assert_eq!(check_members(&twice, &found), Err(Broken::Duplicate(data)));
}

// ---- arbitrary metadata ----

fn sectors() -> impl Strategy<Value = Sectors> {
    any::<u64>().prop_map(Sectors)
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    prop::collection::vec((sectors(), sectors()).prop_map(Segment::from), 0..4)
}

fn device() -> impl Strategy<Value = DevUuid> {
    any::<[u8; 16]>().prop_map(|bytes| uuid::Uuid::from_bytes(bytes).into())
}

fn tier() -> impl Strategy<Value = Tier> {
    let allocs = prop::collection::vec((device(), sectors(), sectors()), 0..3);
    let info = || prop::option::of("\\PC{0,20}");
    let dev = (device(), segments(), info(), info()).prop_map(|(uuid, integrity, user_info, hardware_info)| BlockDev {
        uuid,
        integrity_meta_allocs: integrity,
        user_info,
        hardware_info,
        rest: Rest::default(),
    });
    let tag = prop_oneof![Just(TagSpec::B0), Just(TagSpec::B32), Just(TagSpec::B512)];
    let spec = (tag, sectors(), any::<u64>(), any::<bool>());
    let lists = prop::collection::vec(allocs, 0..3);
    (lists, prop::collection::vec(dev, 0..3), prop::option::of(spec)).prop_map(|(allocs, devs, spec)| {
        let segment = |(parent, start, length)| DeviceSegment { parent, start, length };
        let allocs = allocs.into_iter().map(|list| list.into_iter().map(segment).collect()).collect();
        let spec = spec.map(|(tag_spec, journal_size, block_size, allocate_superblock)| IntegritySpec {
            tag_spec,
            journal_size,
            block_size,
            allocate_superblock,
        });
        Tier::new(BlockDevs::new(allocs, devs), spec)
    })
}

fn any_metadata() -> impl Strategy<Value = PoolMetadata> {
    let feature = prop_oneof![
        Just(Feature::Raid),
        Just(Feature::Integrity),
        Just(Feature::Encryption),
        Just(Feature::KeyDescriptionEnabled),
        Just(Feature::ClevisEnabled)
    ];
    let backstore =
        (tier(), segments(), segments(), prop::option::of(tier())).prop_map(|(data, allocs, crypt, cache)| Backstore {
            data_tier: data,
            cap: Cap { allocs, crypt_meta_allocs: crypt, rest: Rest::default() },
            cache_tier: cache,
            rest: Rest::default(),
        });
    let flex = (segments(), segments(), segments(), segments()).prop_map(|(meta, thin_meta, data, spare)| FlexDevs {
        meta_dev: meta,
        thin_meta_dev: thin_meta,
        thin_data_dev: data,
        thin_meta_dev_spare: spare,
        rest: Rest::default(),
    });
    let args = prop::option::of(prop::collection::btree_set("[a-z_]{0,8}", 0..3));
    let thin = (sectors(), args, any::<Option<u64>>(), any::<Option<bool>>()).prop_map(|(block, args, limit, over)| {
        let rest = Rest::default();
        ThinPoolDev { data_block_size: block, feature_args: args, fs_limit: limit, enable_overprov: over, rest }
    });
    let rest = (
        any::<bool>(),
        prop::collection::btree_set(feature, 0..4),
        any::<Option<u64>>(),
        any::<Option<(u64, u32)>>(),
        any::<bool>(),
    );
    ("\\PC{0,40}", backstore, flex, thin, rest).prop_map(|(name, backstore, flex_devs, thinpool_dev, rest)| {
        PoolMetadata {
            name,
            backstore,
            flex_devs,
            thinpool_dev,
            started: Some(rest.0),
            features: rest.1,
            last_reencrypt: rest.2,
            destroying: rest.3.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }),
            repaired: rest.4,
            rest: Rest::default(),
        }
    })
}

/// Calls `visit` for every object in a JSON value, with the path to it.
fn each_object(value: &mut Value, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &mut Map<String, Value>)) {
    let children: Box<dyn Iterator<Item = (String, &mut Value)>> = match value {
        Value::Object(object) => {
            visit(path, object);
            Box::new(object.iter_mut().map(|(key, child)| (key.clone(), child)))
        }
        Value::Array(list) => Box::new(list.iter_mut().enumerate().map(|(at, child)| (at.to_string(), child))),
        _ => return,
    };
    for (step, child) in children {
        // An unknown key may hold anything.
        if !step.starts_with("unknown") {
            path.push(step);
            each_object(child, path, visit);
            path.pop();
        }
    }
}

proptest! {
    /// Found in review: one write of this daemon lost everything that a newer daemon had recorded
    /// in unknown keys.
    #[test]
    fn unknown_members_of_every_object_survive_a_change(
        mut pool in any_metadata(), v2: bool, values in prop::collection::vec((any::<u64>(), "\\PC{0,8}"), 1..8),
    ) {
        let version = if v2 { MetadataVersion::V2 } else { MetadataVersion::V1 };
        pool.keep_keys_of(version);
        let mut written: Value = serde_json::from_slice(&pool.encode(version)).unwrap();
        let mut added = Vec::new();
        each_object(&mut written, &mut Vec::new(), &mut |path, object| {
            let (number, text) = &values[added.len() % values.len()];
            let value = serde_json::json!({ "number": number, "list": [text, null, { "allocs": -1 }] });
            let key = format!("unknown {}", added.len());
            object.insert(key.clone(), value.clone());
            added.push((path.to_vec(), key, value));
        });
        let mut read = PoolMetadata::parse(&serde_json::to_vec(&written).unwrap(), version).unwrap();
        read.name.push('x');
        read.destroying = Some(Timestamp { seconds: 1, nanoseconds: 2 });
        read.started = Some(false);
        read.thinpool_dev.fs_limit = Some(7);
        // A segment that grows stays the same segment.
        let segments = read.backstore.data_tier.blockdev.allocs.iter_mut().flatten();
        segments.for_each(|segment| segment.length = segment.length.saturating_add(Sectors(1)));
        read.backstore.data_tier.blockdev.devs.iter_mut().for_each(|dev| dev.user_info = Some("new".to_owned()));
        let mut again: Value = serde_json::from_slice(&read.encode(version)).unwrap();
        let mut found = Vec::new();
        each_object(&mut again, &mut Vec::new(), &mut |path, object| {
            let unknown = object.iter().filter(|(key, _)| key.starts_with("unknown"));
            found.extend(unknown.map(|(key, value)| (path.to_vec(), key.clone(), value.clone())));
        });
        added.sort_by(|a, b| a.1.cmp(&b.1));
        found.sort_by(|a, b| a.1.cmp(&b.1));
        prop_assert_eq!(found, added);
    }

    #[test]
    fn reads_what_it_writes(mut pool in any_metadata(), v2: bool) {
        let version = if v2 { MetadataVersion::V2 } else { MetadataVersion::V1 };
        pool.keep_keys_of(version);
        let text = pool.encode(version);
        prop_assert_eq!(&PoolMetadata::parse(&text, version).unwrap(), &pool);
        prop_assert_eq!(PoolMetadata::parse(&text, version).unwrap().encode(version), text);
    }

    #[test]
    fn checks_never_panic(mut pool in any_metadata(), v2: bool, size: u64) {
        let version = if v2 { MetadataVersion::V2 } else { MetadataVersion::V1 };
        pool.keep_keys_of(version);
        // Satisfy the simple rules, so that the test reaches the checks of sums.
        pool.thinpool_dev.data_block_size = DATA_BLOCK;
        pool.backstore.data_tier.blockdev.allocs.truncate(1);
        let id = PoolUuid::from_random([1; 16]);
        let headers: Vec<_> =
            pool.devices().map(|device| StaticHeader::new(id, device, version, Sectors(size), 0)).collect();
        let valid = check(&pool, version, &headers).is_ok();
        // Sums of accepted metadata do not overflow.
        let flex: Vec<_> = pool.flex_devs.lists().iter().flat_map(|(_, list)| *list).map(|s| s.length).collect();
        prop_assert!(!valid || Sectors::checked_sum(flex).is_some());
        let _ = check_members(&pool, &headers);
    }
}
