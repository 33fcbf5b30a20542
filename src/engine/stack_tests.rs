//! Which tables found in the kernel count as older forms of the wanted ones.

use super::*;

fn device(minor: u32) -> DeviceNumber {
    DeviceNumber { major: 253, minor }
}

/// A linear table of pieces, each with minor number, offset and length.
fn linear(pieces: &[(u32, u64, u64)]) -> Vec<Line> {
    let mut at = 0;
    let line = |(minor, offset, length): &(u32, u64, u64)| {
        let line = Line::linear(Sectors(at), Sectors(*length), device(*minor), Sectors(*offset));
        at += length;
        line
    };
    pieces.iter().map(line).collect()
}

fn one(length: u64, target: Target) -> Vec<Line> {
    vec![Line { start: Sectors::ZERO, length: Sectors(length), target }]
}

fn thin_pool(length: u64, data: u32, low_water: u64, features: &[&str]) -> Vec<Line> {
    let features = features.iter().map(|word| (*word).to_owned()).collect();
    let target = Target::ThinPool {
        metadata: device(1),
        data: device(data),
        block: sizes::DATA_BLOCK,
        low_water: DataBlocks(low_water),
        features,
    };
    one(length, target)
}

fn cache(length: u64, policy: &str) -> Vec<Line> {
    let target = Target::Cache {
        metadata: device(1),
        cache: device(2),
        origin: device(3),
        block: sizes::DATA_BLOCK,
        features: vec!["writethrough".to_owned()],
        policy: policy.to_owned(),
    };
    one(length, target)
}

#[test]
fn linear_tables_grow_at_their_end_only() {
    let old = linear(&[(1, 100, 50), (2, 0, 10)]);
    for larger in [
        &[(1, 100, 50), (2, 0, 10)][..],
        &[(1, 100, 50), (2, 0, 30)],
        &[(1, 100, 50), (2, 0, 10), (1, 0, 7)],
        &[(1, 100, 20), (1, 120, 30), (2, 0, 11)],
    ] {
        assert!(precedes(&old, &linear(larger)), "{larger:?}");
    }
    for other in [
        &[(1, 100, 50), (2, 0, 9)][..],
        &[(1, 100, 50)],
        &[(1, 99, 50), (2, 0, 10)],
        &[(1, 100, 50), (3, 0, 10)],
        &[(2, 0, 10), (1, 100, 50)],
        &[(1, 100, 51), (2, 0, 10)],
    ] {
        assert!(!precedes(&old, &linear(other)), "{other:?}");
    }
    assert!(precedes(&[], &old), "a device that was made and not given a table yet");
}

#[test]
fn a_thin_pool_grows_and_takes_other_settings() {
    let old = thin_pool(2048, 2, 10, &["a", "b"]);
    assert!(precedes(&old, &thin_pool(4096, 2, 20, &["c"])));
    assert!(!precedes(&old, &thin_pool(1024, 2, 10, &["a", "b"])));
    assert!(!precedes(&old, &thin_pool(4096, 3, 10, &["a", "b"])));
    let same = |found: &[Line], wanted: &[Line]| is_same(&found[0], &wanted[0]);
    assert!(same(&old, &thin_pool(2048, 2, 10, &["b", "a"])));
    assert!(same(&old, &thin_pool(2048, 2, 11, &["a", "b"])), "the mark is where it is needed");
    assert!(!same(&old, &thin_pool(2048, 2, 10, &["a"])));
}

#[test]
fn a_cache_and_its_placeholder_are_exchanged() {
    let wanted = cache(500, "default");
    assert!(is_same(&cache(500, "smq")[0], &wanted[0]));
    assert!(precedes(&cache(400, "smq"), &wanted));
    assert!(precedes(&linear(&[(3, 0, 500)]), &wanted));
    assert!(precedes(&linear(&[(3, 0, 400)]), &wanted));
    assert!(!precedes(&linear(&[(3, 8, 400)]), &wanted));
    assert!(!precedes(&linear(&[(4, 0, 500)]), &wanted));
    // Found by pairs of faults: a cache that could be neither recorded nor taken back kept its pool
    // down.
    assert!(precedes(&wanted, &linear(&[(3, 0, 500)])));
    assert!(precedes(&wanted, &linear(&[(3, 0, 600)])));
    assert!(!precedes(&wanted, &linear(&[(3, 0, 400)])));
    assert!(!precedes(&wanted, &linear(&[(3, 8, 500)])));
    assert!(!precedes(&wanted, &linear(&[(4, 0, 500)])));
    let mut written_back = cache(500, "smq");
    if let Target::Cache { features, .. } = &mut written_back[0].target {
        features.clear();
    }
    assert!(!precedes(&written_back, &linear(&[(3, 0, 500)])));
}

#[test]
fn a_thin_device_may_grow() {
    let thin = |length, id| one(length, Target::Thin { pool: device(7), id });
    assert!(precedes(&thin(100, 1), &thin(200, 1)));
    assert!(!precedes(&thin(200, 1), &thin(100, 1)));
    assert!(!precedes(&thin(100, 2), &thin(200, 1)));
}
