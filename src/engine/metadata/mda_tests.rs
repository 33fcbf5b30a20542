//! The worked examples of §3, the choice of pairs, the fall-back to the copies, and bounds.

use proptest::prelude::*;

use super::*;

const EMPTY: [u8; 32] = *b"\xaf\xff\xcd\x8f\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\0\0";
const WRITTEN: [u8; 32] = [
    0xcf, 0x60, 0x01, 0xa6, 0x6a, 0xd5, 0xf7, 0xcf, 0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, //
    0x01, 0xf1, 0x53, 0x65, 0x00, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x01, 0x01, 0x00, 0x00, //
];

fn layout() -> Layout {
    Layout::new(Sectors(2032)).unwrap()
}

fn at(seconds: u64, nanoseconds: u32) -> Timestamp {
    Timestamp { seconds, nanoseconds }
}

/// An area in memory. Reads fail where `broken` says so.
#[derive(Clone)]
struct Area {
    bytes: Vec<u8>,
    broken: Vec<std::ops::Range<u64>>,
}

impl Area {
    fn initialized() -> Area {
        let mut area = Area { bytes: vec![0xa5; 2048 * 512], broken: Vec::new() };
        area.carry_out(&Mda::plan_initialize(layout()));
        area
    }

    fn carry_out(&mut self, steps: &[PlannedWrite]) {
        for step in steps {
            if let PlannedWrite::At(offset, bytes) = step {
                let offset = *offset as usize;
                self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Cause> {
        if self.broken.iter().any(|range| range.start < offset + length as u64 && offset < range.end) {
            return Err("broken".into());
        }
        Ok(self.bytes[offset as usize..offset as usize + length].to_vec())
    }

    fn load(&self) -> Result<Mda, MdaError> {
        Mda::load(layout(), |offset, length| self.read(offset, length))
    }

    fn json(&self) -> Result<Option<Vec<u8>>, MdaError> {
        self.load()?.read_json(|offset, length| self.read(offset, length))
    }

    fn save(&mut self, json: &[u8], stamp: Timestamp) {
        let plan = self.load().unwrap().plan_write(json, stamp).unwrap();
        self.carry_out(&plan.steps);
    }
}

#[test]
fn regions_lie_where_the_table_says() {
    assert_eq!([0, 1, 2, 3].map(|region| layout().offset(region)), [8192, 268_288, 528_384, 788_480]);
    assert_eq!(layout().capacity(), 260_064);
    let large = Layout::new(Sectors(4064)).unwrap();
    assert_eq!([0, 1, 2, 3].map(|region| large.offset(region)), [8192, 528_384, 1_048_576, 1_568_768]);
    assert_eq!(large.capacity(), 520_160);
}

#[test]
fn sizes_that_make_no_layout_are_refused() {
    for size in [0, 2, 2033, u64::MAX, u64::MAX - 3, 1 << 55] {
        assert!(matches!(Layout::new(Sectors(size)), Err(MdaError::Layout(Sectors(s))) if s == size), "{size}");
    }
    assert_eq!(Layout::new(Sectors(1 << 54)).unwrap().capacity(), JSON_BYTES_MAX);
}

#[test]
fn region_headers_are_the_worked_examples() {
    assert_eq!(encode_region(None), EMPTY);
    assert_eq!(decode_region(&EMPTY, layout()).unwrap(), None);
    let generation = Generation { crc: 0xcff7_d56a, length: 7, time: at(1_700_000_001, 5) };
    assert_eq!(crc32c::crc32c(br#"{"a":1}"#), generation.crc);
    assert_eq!(encode_region(Some(&generation)), WRITTEN);
    assert_eq!(decode_region(&WRITTEN, layout()).unwrap(), Some(generation));
}

#[test]
fn a_save_writes_the_example_to_both_regions() {
    let mut area = Area::initialized();
    area.save(br#"{"a":1}"#, at(1_700_000_001, 5));
    for (offset, header) in [(8192, WRITTEN), (268_288, EMPTY), (528_384, WRITTEN), (788_480, EMPTY)] {
        assert_eq!(area.bytes[offset..offset + 32], header, "at {offset}");
    }
    assert_eq!(area.bytes[8224..8231], *br#"{"a":1}"#);
    assert_eq!(area.bytes[528_416..528_423], *br#"{"a":1}"#);
    // All other bytes are unchanged.
    let changed = area.bytes.iter().filter(|byte| **byte != 0xa5).count();
    assert_eq!(changed, 4 * 32 + 2 * 7);
}

#[test]
fn pairs_alternate() {
    let mut area = Area::initialized();
    assert_eq!(area.load().unwrap().last_update(), None);
    assert_eq!(area.json().unwrap(), None);
    for i in 1..6_u64 {
        let before = area.load().unwrap();
        assert_eq!(before.older(), (i as usize + 1) % 2);
        area.save(format!("generation {i}").as_bytes(), at(i, 0));
        assert_eq!(area.load().unwrap().newer(), before.older());
        assert_eq!(area.load().unwrap().last_update(), Some(at(i, 0)));
        assert_eq!(area.json().unwrap().unwrap(), format!("generation {i}").as_bytes());
    }
}

#[test]
fn after_a_save_memory_equals_the_disk() {
    let mut area = Area::initialized();
    let mut known = area.load().unwrap();
    for i in 1..4 {
        let plan = known.plan_write(b"{}", at(i, 0)).unwrap();
        area.carry_out(&plan.steps);
        known.written(&plan);
        assert_eq!(known, area.load().unwrap());
    }
}

#[test]
fn of_equal_times_pair_1_is_the_older() {
    let generation = Generation { crc: 0, length: 1, time: at(1, 1) };
    let later = Generation { time: at(1, 2), ..generation };
    let mda = |a, b| Mda { layout: layout(), pairs: [a, b] };
    assert_eq!(mda(Some(generation), Some(generation)).older(), 1);
    assert_eq!(mda(Some(generation), Some(later)).older(), 0);
    assert_eq!(mda(Some(later), Some(generation)).older(), 1);
    assert_eq!(mda(None, Some(generation)).older(), 0);
    assert_eq!(mda(Some(generation), None).older(), 1);
    assert_eq!(mda(None, None).older(), 0);
}

#[test]
fn second_copies_replace_broken_ones() {
    let mut area = Area::initialized();
    area.save(b"old", at(1, 0));
    area.save(b"newer", at(2, 0));
    // The newest generation is in pair 1. Damages: the header, reading the header, the JSON,
    // reading the JSON. First in the first region, then in both.
    let damages: [fn(&mut Area, usize); 4] = [
        |area, region| area.bytes[layout().offset(region) as usize + 9] ^= 1,
        |area, region| area.broken.push(layout().offset(region)..layout().offset(region) + 1),
        |area, region| area.bytes[layout().json_offset(region) as usize + 1] ^= 1,
        |area, region| area.broken.push(layout().json_offset(region) + 1..layout().json_offset(region) + 2),
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        for region in [1, 3] {
            let mut one = area.clone();
            damage(&mut one, region);
            assert_eq!(one.json().unwrap().unwrap(), b"newer", "damage {i} of region {region}");
        }
        let mut both = area.clone();
        damage(&mut both, 1);
        damage(&mut both, 3);
        match (i, both.json()) {
            (0 | 1, Err(MdaError::Pair { pair: 1, .. })) | (2 | 3, Err(MdaError::Contents { .. })) => {}
            (_, other) => panic!("damage {i} of both gave {other:?}"),
        }
    }
}

#[test]
fn copies_are_read_only_where_needed() {
    let area = Area::initialized();
    let mut asked = Vec::new();
    Mda::load(layout(), |offset, length| {
        asked.push(offset);
        area.read(offset, length)
    })
    .unwrap();
    assert_eq!(asked, [8192, 268_288]);
}

#[test]
fn headers_are_checked_in_order() {
    let check = |change: fn(&mut [u8; 32]), crc: bool, expected: &str| {
        let mut header = WRITTEN;
        change(&mut header);
        if crc {
            let crc = crc32c::crc32c(&header[4..]);
            header[..4].copy_from_slice(&crc.to_le_bytes());
        }
        let error = format!("{:?}", decode_region(&header, layout()).unwrap_err());
        assert!(error.starts_with(expected), "{error} instead of {expected}");
    };
    check(|h| h[28] = 2, false, "HeaderChecksum");
    check(|h| h[28] = 2, true, "HeaderVersion(2)");
    check(|h| h[29] = 2, true, "DataVersion(2)");
    check(|h| (h[28], h[29]) = (0, 0), true, "HeaderVersion(0)");
    check(|h| h[8..16].copy_from_slice(&260_065_u64.to_le_bytes()), true, "TooLong { length: 260065");
    check(|h| h[24..28].copy_from_slice(&1_000_000_000_u32.to_le_bytes()), true, "Time(1000000000)");
    assert!(matches!(decode_region(&WRITTEN[..31], layout()), Err(RegionError::Short(31))));
}

#[test]
fn of_an_empty_header_nothing_else_counts() {
    let mut header = WRITTEN;
    header[8..16].fill(0);
    header[24..28].fill(0xff);
    let crc = crc32c::crc32c(&header[4..]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(decode_region(&header, layout()).unwrap(), None);
}

#[test]
fn old_or_too_long_metadata_is_refused() {
    let mut area = Area::initialized();
    area.save(b"x", at(5, 5));
    let mda = area.load().unwrap();
    assert!(matches!(mda.plan_write(b"y", at(5, 5)), Err(MdaError::Older)));
    assert!(matches!(mda.plan_write(b"y", at(4, 999_999_999)), Err(MdaError::Older)));
    assert!(matches!(mda.plan_write(b"", at(6, 0)), Err(MdaError::Empty)));
    let fits = vec![b' '; 260_064];
    assert!(mda.plan_write(&fits, at(5, 6)).is_ok());
    let long = vec![b' '; 260_065];
    let refused = mda.plan_write(&long, at(5, 6));
    assert!(matches!(refused, Err(MdaError::TooLong { length: 260_065, capacity: 260_064 })));
}

#[test]
fn the_longest_json_stays_in_its_region() {
    let mut area = Area::initialized();
    area.save(b"old", at(1, 0));
    let long: Vec<u8> = (0..260_064_u32).map(|i| i as u8).collect();
    area.save(&long, at(2, 0));
    assert_eq!(area.json().unwrap().unwrap(), long);
    area.bytes[268_288..528_384].fill(0);
    area.bytes[788_480..].fill(0);
    area.carry_out(&[PlannedWrite::At(268_288, EMPTY.to_vec())]);
    assert_eq!(area.json().unwrap().unwrap(), b"old");
}

#[test]
fn stamps_always_grow() {
    assert_eq!(next_stamp(at(5, 0), None), at(5, 0));
    assert_eq!(next_stamp(at(5, 0), Some(at(4, 7))), at(5, 0));
    assert_eq!(next_stamp(at(5, 0), Some(at(5, 0))), at(5, 1));
    assert_eq!(next_stamp(at(5, 0), Some(at(9, 999_999_999))), at(10, 0));
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanoseconds)| at(seconds, nanoseconds))
}

proptest! {
    #[test]
    fn reads_what_it_writes(crc: u32, length in 1..=260_064_u64, time in any_time()) {
        let generation = Generation { crc, length, time };
        prop_assert_eq!(decode_region(&encode_region(Some(&generation)), layout()).unwrap(), Some(generation));
    }

    #[test]
    fn no_flipped_bit_goes_unseen(crc: u32, length in 1..=260_064_u64, time in any_time(), bit in 0..256_usize) {
        let mut header = encode_region(Some(&Generation { crc, length, time }));
        header[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(matches!(decode_region(&header, layout()), Err(RegionError::HeaderChecksum)));
    }

    #[test]
    fn a_stamp_is_later_than_the_last(now in any_time(), last in any_time()) {
        prop_assume!(last.seconds < u64::MAX);
        let stamp = next_stamp(now, Some(last));
        prop_assert!(stamp > last && stamp >= now && stamp.nanoseconds < 1_000_000_000);
    }
}
