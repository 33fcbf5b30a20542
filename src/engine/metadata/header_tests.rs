//! The worked example of §2.2, the whole table of §2.3, and every kind of damage to a copy.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use proptest::prelude::*;
use support::examples::{DEVICE, POOL, SIGNATURE_BLOCK};

use super::*;

fn example() -> StaticHeader {
    let (pool, device) = (POOL.parse().unwrap(), DEVICE.parse().unwrap());
    StaticHeader::new(pool, device, MetadataVersion::V2, Sectors(20_971_520), 1_700_000_000)
}

fn put_back_crc(block: &mut [u8; BLOCK_BYTES]) {
    let crc = crc32c::crc32c(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn is_the_worked_example() {
    let block = example().encode();
    assert_eq!(block[..128], SIGNATURE_BLOCK);
    assert_eq!(block[128..], [0; 384]);
    assert_eq!(StaticHeader::decode(&block), Ok(Some(example())));
}

#[test]
fn has_the_usual_sizes() {
    assert_eq!(example().bda_size(), Sectors(2048));
    assert_eq!(example().extended_size(), Sectors(8192));
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn a_half_holds_the_block_between_zeros() {
    let half = example().encode_half();
    assert_eq!(half[..512], [0; 512]);
    assert_eq!(half[512..1024], example().encode());
    assert_eq!(half[1024..], [0; 3072]);
    assert_eq!(Half::BOTH.map(Half::block_offset), [512, 4608]);
    assert_eq!(Half::BOTH.map(Half::half_offset), [0, 4096]);
}

/// With this daemon's own flag, which blkid must accept, too.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test asks the program that clients' udev rules ask")]
fn blkid_finds_it() {
    let blkid = ["/usr/sbin/blkid", "/sbin/blkid", "/usr/bin/blkid"].into_iter().find(|p| Path::new(p).exists());
    let blkid = blkid.expect("blkid of util-linux is needed for this test");
    for flags in [HeaderFlags::NONE, HeaderFlags::UNCOMMITTED] {
        let image = tempfile::NamedTempFile::new().unwrap();
        let file: &File = image.as_file();
        let header = StaticHeader { flags, ..example() };
        file.set_len(u64::try_from(header.device_size.bytes().0).unwrap()).unwrap();
        for step in plan_initialize(&header) {
            if let PlannedWrite::At(offset, bytes) = step {
                file.write_all_at(&bytes, offset).unwrap();
            }
        }
        let output = std::process::Command::new(blkid).args(["-p", "-o", "export"]).arg(image.path()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        for expected in ["TYPE=stratis", "USAGE=raid", &format!("UUID={DEVICE}"), &format!("POOL_UUID={POOL}")] {
            assert!(said.lines().any(|line| line == expected), "no {expected} in {said}");
        }
    }
}

#[test]
fn tells_each_damage_by_its_name() {
    type Case = (fn(&mut [u8; BLOCK_BYTES]), Result<Option<StaticHeader>, Invalid>);
    let large = u64::MAX;
    let cases: [Case; 12] = [
        (|b| b[4] = b'?', Ok(None)),
        (|b| b[19] = 0, Ok(None)),
        (|b| b[0] ^= 1, Err(Invalid::Checksum)),
        (|b| b[511] ^= 1, Err(Invalid::Checksum)),
        (|b| put(b, 28, &[3]), Err(Invalid::Version(3))),
        (|b| put(b, 28, &[0]), Err(Invalid::Version(0))),
        (|b| put(b, 32, b"x"), Err(Invalid::Uuid("pool UUID"))),
        (|b| put(b, 64, &[0xff]), Err(Invalid::Uuid("device UUID"))),
        (|b| put(b, 96, &[0xef]), Err(Invalid::MdaSize(Sectors(2031)))),
        (|b| put(b, 96, &[0xec]), Err(Invalid::MdaSize(Sectors(2028)))),
        (|b| put(b, 120, &[0xff; 8]), Err(Invalid::Time(large))),
        (
            |b| put(b, 104, &[0xff; 8]),
            Err(Invalid::Space { metadata: u128::from(large) + 2048, device: Sectors(20_971_520) }),
        ),
    ];
    fn put(block: &mut [u8; BLOCK_BYTES], at: usize, bytes: &[u8]) {
        block[at..at + bytes.len()].copy_from_slice(bytes);
        put_back_crc(block);
    }
    for (i, (damage, expected)) in cases.into_iter().enumerate() {
        let mut block = example().encode();
        damage(&mut block);
        assert_eq!(StaticHeader::decode(&block), expected, "case {i}");
    }
    assert_eq!(StaticHeader::decode(&example().encode()[..511]), Err(Invalid::Short(511)));
}

#[test]
fn metadata_may_fill_the_device_but_no_more() {
    let full = StaticHeader { device_size: Sectors(8192), ..example() };
    assert_eq!(StaticHeader::decode(&full.encode()), Ok(Some(full)));
    let short = StaticHeader { device_size: Sectors(8191), ..example() };
    assert!(matches!(StaticHeader::decode(&short.encode()), Err(Invalid::Space { metadata: 8192, .. })));
}

/// Every row of §2.3 in both orders: what each copy gives, and the required result of both.
#[test]
fn resolves_by_the_table() {
    let bad = || CopyContents::Invalid(Invalid::Checksum);
    let good = || CopyContents::Valid(example());
    let later = StaticHeader { initialized: 1_700_000_001, device_size: Sectors(30_000_000), ..example() };
    let other = StaticHeader { device_size: Sectors(30_000_000), ..example() };
    let header = |header, rewrite| Ok(Resolved::Header { header, rewrite });
    let (first, second) = (Some(Half::First), Some(Half::Second));
    type Row = (CopyContents, CopyContents, Result<Resolved, Unresolved>, Result<Resolved, Unresolved>);
    // The two results are those for the copies in this order and in the reverse one.
    let rows: [Row; 12] = [
        (good(), good(), header(example(), None), header(example(), None)),
        (good(), CopyContents::Valid(later), header(later, first), header(later, second)),
        (good(), CopyContents::Valid(other), Err(Unresolved::Disagree), Err(Unresolved::Disagree)),
        (good(), CopyContents::Nothing, header(example(), second), header(example(), first)),
        (good(), bad(), header(example(), second), header(example(), first)),
        (good(), CopyContents::Unreadable, header(example(), second), header(example(), first)),
        (CopyContents::Nothing, CopyContents::Nothing, Ok(Resolved::Nothing), Ok(Resolved::Nothing)),
        (CopyContents::Nothing, bad(), Err(Invalid::Checksum.into()), Err(Invalid::Checksum.into())),
        (CopyContents::Nothing, CopyContents::Unreadable, Ok(Resolved::Nothing), Ok(Resolved::Nothing)),
        (bad(), bad(), Err(Invalid::Checksum.into()), Err(Invalid::Checksum.into())),
        (bad(), CopyContents::Unreadable, Err(Invalid::Checksum.into()), Err(Invalid::Checksum.into())),
        (CopyContents::Unreadable, CopyContents::Unreadable, Err(Unresolved::Unreadable), Err(Unresolved::Unreadable)),
    ];
    for (a, b, expected, exchanged) in rows {
        assert_eq!(resolve(a.clone(), b.clone()), expected, "{a:?}, {b:?}");
        assert_eq!(resolve(b.clone(), a.clone()), exchanged, "{b:?}, {a:?}");
    }
}

/// Another daemon that rewrites one copy writes no flags. The device must stay usable for this
/// daemon.
#[test]
fn fewer_flags_win() {
    let marked = StaticHeader { flags: HeaderFlags::UNCOMMITTED, ..example() };
    let keep = |rewrite| Ok(Resolved::Header { header: example(), rewrite: Some(rewrite) });
    assert_eq!(resolve(CopyContents::Valid(marked), CopyContents::Valid(example())), keep(Half::First));
    assert_eq!(resolve(CopyContents::Valid(example()), CopyContents::Valid(marked)), keep(Half::Second));
}

#[test]
fn flags_are_a_set() {
    let both = HeaderFlags(4).with(HeaderFlags::UNCOMMITTED);
    assert_eq!(both, HeaderFlags(5));
    assert!(both.contains(HeaderFlags::UNCOMMITTED) && both.contains(HeaderFlags::NONE));
    assert!(!HeaderFlags(4).contains(HeaderFlags::UNCOMMITTED) && !HeaderFlags(4).contains(both));
    assert_eq!(both.without(HeaderFlags::UNCOMMITTED), HeaderFlags(4));
}

fn any_header() -> impl Strategy<Value = StaticHeader> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<bool>());
    let sizes = (508..1_000_000_u64, 0..1_u64 << 40, 0..1_u64 << 50);
    (ids, sizes, any::<u64>(), 0..=INITIALIZED_MAX).prop_map(
        |((pool, device, v2), (mda, reserved, rest), flags, time)| StaticHeader {
            pool: uuid::Uuid::from_bytes(pool).into(),
            device: uuid::Uuid::from_bytes(device).into(),
            version: if v2 { MetadataVersion::V2 } else { MetadataVersion::V1 },
            device_size: Sectors(16 + 4 * mda + reserved + rest),
            mda_size: Sectors(4 * mda),
            reserved: Sectors(reserved),
            flags: HeaderFlags(flags),
            initialized: time,
        },
    )
}

proptest! {
    #[test]
    fn reads_what_it_writes(header in any_header()) {
        prop_assert_eq!(StaticHeader::decode(&header.encode()), Ok(Some(header)));
    }

    #[test]
    fn no_flipped_bit_goes_unseen(header in any_header(), bit in 0..BLOCK_BYTES * 8) {
        let mut block = header.encode();
        block[bit / 8] ^= 1 << (bit % 8);
        let expected = if (AT_MAGIC..AT_SIZE).contains(&(bit / 8)) { Ok(None) } else { Err(Invalid::Checksum) };
        prop_assert_eq!(StaticHeader::decode(&block), expected);
    }

    #[test]
    fn what_is_accepted_is_within_bounds(size in any_size(), mda in any_size(), reserved in any_size()) {
        // Any numbers under a good checksum. They are accepted exactly if the sum of the sizes does
        // not overflow and fits on the device.
        let header = StaticHeader {
            device_size: Sectors(size),
            mda_size: Sectors(mda),
            reserved: Sectors(reserved),
            ..example()
        };
        let fits = 16 + u128::from(mda) + u128::from(reserved) <= u128::from(size);
        let valid = fits && mda >= 2032 && mda % 4 == 0;
        prop_assert_eq!(StaticHeader::decode(&header.encode()).is_ok(), valid);
    }
}

fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..10_000_u64, (0..2600_u64).prop_map(|n| n * 4)]
}
