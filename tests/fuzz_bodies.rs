//! The bodies of the fuzz targets, run briefly on arbitrary bytes and on valid input with some
//! bytes changed. An input that a fuzzer has found becomes an example here.

use proptest::{collection::vec, prelude::*};
use stratisd::platform::Timestamp;
use stratisd::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::Sectors,
    },
    engine::metadata::{Journal, Layout, Mda, MetadataVersion, PlannedWrite, PoolMetadata, StaticHeader},
};
use support::{
    examples::{OTHER_FILESYSTEM, POOL_V2, RECORD, compact},
    fuzz_bodies as bodies,
};

/// The worked example with the keys of a re-encryption job and of a destruction.
fn pool() -> String {
    compact(POOL_V2)
        .replace(r#""started":true"#, r#""started":true,"last_reencrypt":1700000000,"destroying":[1700000000,5]"#)
}

/// The worked example with every key.
fn record() -> String {
    let all = format!(r#""fs_size_limit":4294967296,"origin":"{OTHER_FILESYSTEM}","merge":true"#);
    RECORD.replace(r#""merge":false"#, &all)
}

const JOURNAL: [&str; 3] = [
    r#"{"create":[{"uuid":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","thin_id":7}]}"#,
    concat!(
        r#"{"destroy":[{"uuid":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","thin_id":7,"#,
        r#""heir":"00000000-0000-4000-8000-000000000001"}]}"#
    ),
    concat!(
        r#"{"revert":{"origin":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","replaced":3,"#,
        r#""snapshot":"00000000-0000-4000-8000-000000000001","thin_id":4}}"#
    ),
];

/// Two copies of a valid static header.
fn good_headers() -> Vec<u8> {
    let (pool, device) = (PoolUuid::from_random([1; 16]), DevUuid::from_random([2; 16]));
    StaticHeader::new(pool, device, MetadataVersion::V2, Sectors(20_971_520), 1_700_000_000).encode().repeat(2)
}

/// The smallest valid metadata area, with two generations in it.
fn good_area() -> Vec<u8> {
    let layout = Layout::new(Sectors(4)).expect("four sectors make four regions");
    let mut mda = Mda::empty(layout);
    let mut area = vec![0; 4 * 512];
    let mut carry_out = |steps: &[PlannedWrite]| {
        for step in steps {
            if let PlannedWrite::At(offset, bytes) = step {
                let from = (offset - layout.offset(0)) as usize;
                area[from..from + bytes.len()].copy_from_slice(bytes);
            }
        }
    };
    carry_out(&Mda::plan_initialize(layout));
    for seconds in [1, 2] {
        let plan = mda.plan_write(b"{\"a\":1}", Timestamp { seconds, nanoseconds: 5 }).expect("each is newer");
        carry_out(&plan.steps);
        mda.written(&plan);
    }
    area
}

/// A replacement of some bytes by others: the position, the number of bytes to replace, and the new
/// bytes. Positions from 0 to 65535 cover the whole input.
type Splice = (u16, u8, Vec<u8>);

fn splices() -> impl Strategy<Value = Vec<Splice>> {
    // Words, numbers and punctuation of JSON, and arbitrary bytes.
    const WORDS: &[&str] =
        &["null", "0", "18446744073709551615", "-1", "1e9", "\"\"", "[", "]", "{}", ",", "true", "\\u0000"];
    let new = prop_oneof![prop::sample::select(WORDS).prop_map(|w| w.as_bytes().to_vec()), vec(any::<u8>(), 0..9)];
    vec((any::<u16>(), 0..12_u8, new), 1..4)
}

fn spliced(good: &[u8], splices: &[Splice], keep_length: bool) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (place, gone, new) in splices {
        let from = usize::from(*place) * bytes.len() / 65536;
        let gone = if keep_length { new.len() } else { usize::from(*gone) };
        let to = (from + gone).min(bytes.len());
        bytes.splice(from..to, new.iter().copied());
    }
    bytes
}

/// The beginning of a device with both copies of the header and an area with a generation in it,
/// some bytes of which are changed.
fn spliced_device(headers: &[Splice], area: &[Splice]) -> Vec<u8> {
    let (pool, device) = (PoolUuid::from_random([1; 16]), DevUuid::from_random([2; 16]));
    let header = StaticHeader::new(pool, device, MetadataVersion::V2, Sectors(20_971_520), 1_700_000_000);
    let layout = Layout::new(header.mda_size).expect("the default size is valid");
    let mut steps = Mda::plan_initialize(layout);
    let stamp = Timestamp { seconds: 1, nanoseconds: 5 };
    steps.extend(Mda::empty(layout).plan_write(b"{\"a\":1}", stamp).expect("the area is empty").steps);
    let mut bytes = vec![0; 1 << 20];
    for step in steps {
        if let PlannedWrite::At(offset, new) = step {
            bytes[offset as usize..offset as usize + new.len()].copy_from_slice(&new);
        }
    }
    let block = spliced(&header.encode(), headers, true);
    let block = &block[..block.len().min(512)];
    for at in [512, 4608] {
        bytes[at..at + block.len()].copy_from_slice(block);
    }
    let changed = spliced(&bytes[8192..8192 + 64], area, true);
    bytes[8192..8192 + changed.len()].copy_from_slice(&changed);
    bytes
}

/// The unchanged input must be valid, or the other tests would test nothing.
#[test]
fn seeds_are_accepted() {
    let metadata = PoolMetadata::parse(pool().as_bytes(), MetadataVersion::V2).unwrap();
    assert_eq!(metadata.encode(MetadataVersion::V2), pool().as_bytes());
    assert!(StaticHeader::decode(&good_headers()).unwrap().is_some());
    assert_eq!(good_area().iter().filter(|byte| **byte == b'{').count(), 4);
    bodies::header(&good_headers());
    bodies::mda(&good_area());
    bodies::dump(&spliced_device(&[], &[]));
    bodies::pool_json(pool().as_bytes());
    bodies::fs_json(record().as_bytes());
    for entry in JOURNAL {
        assert_eq!(Journal::parse(entry.as_bytes()).unwrap().encode(), entry.as_bytes());
        bodies::journal(entry.as_bytes());
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for open in ["[", "{\"a\":"] {
        bodies::pool_json(open.repeat(100_000).as_bytes());
        bodies::fs_json(open.repeat(100_000).as_bytes());
        bodies::journal(open.repeat(100_000).as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..2100)) {
        bodies::header(&bytes);
        bodies::mda(&bytes);
        bodies::dump(&bytes);
        bodies::pool_json(&bytes);
        bodies::fs_json(&bytes);
        bodies::journal(&bytes);
    }

    #[test]
    fn changed_headers(splices in splices()) {
        bodies::header(&spliced(&good_headers(), &splices, true));
    }

    #[test]
    fn changed_devices(headers in splices(), area in splices()) {
        bodies::dump(&spliced_device(&headers, &area));
    }

    #[test]
    fn changed_areas(splices in splices()) {
        bodies::mda(&spliced(&good_area(), &splices, true));
        bodies::mda(&spliced(&good_area(), &splices, false));
    }

    #[test]
    fn changed_pool_json(splices in splices()) {
        bodies::pool_json(&spliced(pool().as_bytes(), &splices, false));
    }

    #[test]
    fn changed_numbers_in_pool_json(numbers in vec((0..40_usize, any::<u64>()), 1..4)) {
        // Change digits only, so that the text stays valid and its numbers reach the arithmetic.
        let mut text = pool();
        for (which, number) in numbers {
            let mut starts: Vec<usize> = Vec::new();
            let bytes = text.as_bytes();
            for i in 1..bytes.len() {
                if bytes[i].is_ascii_digit() && b":[,".contains(&bytes[i - 1]) {
                    starts.push(i);
                }
            }
            let from = starts[which % starts.len()];
            let digits = text[from..].bytes().take_while(u8::is_ascii_digit).count();
            text.replace_range(from..from + digits, &number.to_string());
        }
        prop_assert!(PoolMetadata::parse(text.as_bytes(), MetadataVersion::V2).is_ok());
        bodies::pool_json(text.as_bytes());
    }

    #[test]
    fn changed_journal(which in 0..JOURNAL.len(), splices in splices()) {
        bodies::journal(&spliced(JOURNAL[which].as_bytes(), &splices, false));
    }

    #[test]
    fn changed_fs_json(splices in splices()) {
        bodies::fs_json(&spliced(record().as_bytes(), &splices, false));
    }
}
