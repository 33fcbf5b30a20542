//! What the check finds in sound metadata with one fault each.

use serde_json::{Value, json};

use super::*;

const DEVICE: &str = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";
const CACHE: &str = "cccccccc-bbbb-cccc-dddd-eeeeeeeeeeee";

/// Sound metadata of version 2, with a cache.
fn sound() -> Value {
    json!({
        "name": "p1", "started": true,
        "backstore": {
            "data_tier": {
                "blockdev": {
                    "allocs": [[{ "parent": DEVICE, "start": 278_992, "length": 20_000_000 }]],
                    "devs": [{ "uuid": DEVICE, "integrity_meta_allocs": [[8192, 270_800]] }],
                },
                "integrity_spec": { "tag_spec": "512b", "journal_size": 262_144, "block_size": 4096, "allocate_superblock": true },
            },
            "cap": { "allocs": [[34_816, 19_065_184]], "crypt_meta_allocs": [[0, 34_816]] },
            "cache_tier": { "blockdev": {
                "allocs": [
                    [{ "parent": CACHE, "start": 1_056_768, "length": 1_040_384 }],
                    [{ "parent": CACHE, "start": 8192, "length": 1_048_576 }],
                ],
                "devs": [{ "uuid": CACHE }],
            } },
        },
        "flex_devs": {
            "thin_meta_dev": [[34_816, 8192]], "thin_meta_dev_spare": [[43_008, 8192]],
            "meta_dev": [[51_200, 1_048_576]], "thin_data_dev": [[1_099_776, 18_000_000]],
        },
        "thinpool_dev": { "data_block_size": 2048, "fs_limit": 100, "enable_overprov": true },
    })
}

fn findings(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut pool = sound();
    change(&mut pool);
    check(&serde_json::from_value(pool).unwrap())
}

fn finds(change: impl FnOnce(&mut Value), expected: &[&str]) {
    assert_eq!(findings(change), expected);
}

fn devs(pool: &mut Value) -> &mut Value {
    &mut pool["backstore"]["data_tier"]["blockdev"]
}

#[test]
fn sound_metadata_has_no_findings() {
    finds(|_| {}, &[]);
    // An encrypted pool counts from the end of its LUKS2 header.
    finds(
        |pool| {
            pool["features"] = json!(["Encryption"]);
            pool["backstore"]["cap"]["allocs"] = json!([[0, 34_816]]);
            pool["flex_devs"]["thin_meta_dev"] = json!([[0, 8192]]);
        },
        &[],
    );
}

#[test]
fn broken_structure_ends_the_check() {
    let twice = format!("Two devices with same UUID {DEVICE} in devs structure");
    finds(|pool| devs(pool)["devs"] = json!([{ "uuid": DEVICE }, { "uuid": DEVICE }]), &[&twice]);
    let foreign = format!("No device in devs for uuid {CACHE} in blockdevs");
    finds(|pool| devs(pool)["allocs"] = json!([[{ "parent": CACHE, "start": 1, "length": 1 }]]), &[&foreign]);
    let collision = "Key collision: 34816 sectors already in extents table";
    finds(|pool| pool["backstore"]["cap"]["allocs"] = json!([[34_816, 1], [34_816, 2]]), &[collision]);
}

/// The example of the specification, with all three findings at once.
#[test]
fn all_findings_are_collected() {
    finds(
        |pool| {
            devs(pool)["allocs"] = json!([[{ "parent": DEVICE, "start": 8000, "length": 20_000_000 }]]);
            devs(pool)["devs"] = json!([{ "uuid": DEVICE, "integrity_meta_allocs": [[30_000_000, 270_801]] }]);
            pool["flex_devs"]["thin_meta_dev_spare"] = json!([[43_008, 4096]]);
        },
        &[
            &format!(
                "Device {DEVICE}: allocation (8000 sectors, 20000000 sectors) for allocated overlaps with previous \
                 allocation which extends to 8192 sectors"
            ),
            &format!("Device {DEVICE}: Allocation 270801 sectors for integrity meta data not a multiple of 4KiB"),
            "The sum of the allocations for the thin meta device, 8192 sectors, does not equal the sum of the \
             allocations for the thin meta spare device, 4096 sectors.",
        ],
    );
}

#[test]
fn each_damage_is_found_alone() {
    let overlap = |pool: &mut Value| pool["backstore"]["cap"]["allocs"] = json!([[34_815, 19_065_184]]);
    finds(
        overlap,
        &[
            "allocation (34815 sectors, 19065184 sectors) for allocated overlaps with previous allocation which extends to \
           34816 sectors",
        ],
    );
    finds(
        |pool| pool["flex_devs"]["meta_dev"] = json!([[51_199, 1_048_576]]),
        &[
            "allocation (51199 sectors, 1048576 sectors) for meta_dev overlaps with previous allocation which extends to \
           51200 sectors",
        ],
    );
    let cache = findings(|pool| {
        pool["backstore"]["cache_tier"]["blockdev"]["allocs"][1][0]["length"] = json!(1_048_577);
    });
    assert!(
        matches!(&cache[..], [one] if one.starts_with(&format!("Device {CACHE}: ")) && one.contains("for cache_data"))
    );
    let past = findings(|pool| pool["flex_devs"]["thin_data_dev"] = json!([[1_099_776, u64::MAX]]));
    assert_eq!(past.len(), 1, "{past:?}");
    let reserved = findings(|pool| {
        pool["backstore"]["data_tier"]["integrity_spec"] =
            json!({ "tag_spec": "0b", "journal_size": 0, "block_size": 4096, "allocate_superblock": false });
    });
    assert!(matches!(&reserved[..], [one] if one.contains("reserves none")), "{reserved:?}");
}

/// The existing program panics when the list is empty.
#[test]
fn space_for_a_header_is_checked() {
    let crypt = |allocs: Value| findings(|pool| pool["backstore"]["cap"]["crypt_meta_allocs"] = allocs);
    let one = |allocs: Value, start: &str| {
        let found = crypt(allocs);
        assert!(matches!(&found[..], [one] if one.starts_with(start)), "{found:?}");
    };
    one(json!([]), "No allocations for crypt metadata");
    one(json!([[0, 34_816], [40_000, 1]]), "Multiple allocations for crypt metadata");
    one(json!([[8, 34_816]]), "Crypt meta allocs offset, 8 sectors is not 0");
    one(json!([[0, 34_815]]), "Crypt meta allocs entry has unexpected length 34815 sectors");
}
