//! Superblocks and logs here are built from the on-disk format of XFS. The scenarios `snapshots` of
//! the throw-away machine show that the kernel and the programs accept what is written.

use proptest::prelude::*;

use super::*;

const GROUP_BLOCKS: u32 = 1000;
const LOG_AT: u64 = (2 * 1000 + 8) * 4096;
const OLD: Uuid = Uuid::from_bytes([7; 16]);
const NEW: Uuid = Uuid::from_bytes([8; 16]);

fn seal(bytes: &mut [u8], field: usize, length: usize) {
    let crc = checksum(&bytes[..length], field).unwrap();
    bytes[field..field + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Four groups of 1000 blocks; the log of 16 blocks (128 log blocks) lies in the third.
fn superblock(sector: u16, lsn: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(sector)];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"XFSB");
    put(4, &4096_u32.to_be_bytes());
    put(8, &4000_u64.to_be_bytes());
    put(32, OLD.as_bytes());
    put(48, &(2_u64 << 10 | 8).to_be_bytes());
    put(84, &GROUP_BLOCKS.to_be_bytes());
    put(88, &4_u32.to_be_bytes());
    put(96, &16_u32.to_be_bytes());
    put(100, &0xb4a5_u16.to_be_bytes());
    put(102, &sector.to_be_bytes());
    put(124, &[10]);
    put(216, &0xb_u32.to_be_bytes());
    put(240, &lsn.to_be_bytes());
    seal(&mut bytes, sb::CRC, usize::from(sector));
    bytes
}

/// A log of 128 blocks as a device sees it.
struct LogOnDevice(Vec<u8>);

impl LogOnDevice {
    fn new() -> LogOnDevice {
        LogOnDevice(vec![0; 128 * LOG_BLOCK])
    }

    fn put(&mut self, block: u32, bytes: &[u8]) {
        for (number, piece) in bytes.chunks(LOG_BLOCK).enumerate() {
            let at = (block as usize + number) % 128 * LOG_BLOCK;
            self.0[at..at + piece.len()].copy_from_slice(piece);
        }
    }

    /// Writes a record with a payload of `length` bytes in a buffer of `size` bytes; returns the
    /// block behind it.
    fn record(&mut self, cycle: u32, block: u32, (length, size): (u32, u32), unmounts: bool) -> u32 {
        let headers = size.div_ceil(HEADER_COVERS).max(1) as usize;
        let mut bytes = vec![0; headers * LOG_BLOCK];
        for (at, value) in [(0, RECORD_MAGIC), (4, cycle), (8, 2), (12, length), (320, size)] {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        bytes[16..24].copy_from_slice(&(u64::from(cycle) << 32 | u64::from(block)).to_be_bytes());
        bytes[40..44].copy_from_slice(&if unmounts { 1_u32 } else { 3 }.to_be_bytes());
        bytes[304..320].copy_from_slice(OLD.as_bytes());
        let mut payload = vec![0; length as usize];
        for (number, piece) in payload.chunks_mut(LOG_BLOCK).enumerate().filter(|(_, piece)| piece.len() >= 4) {
            let wraps = block as usize + headers + number >= 128;
            piece[..4].copy_from_slice(&(cycle + u32::from(wraps)).to_be_bytes());
        }
        payload[8..10].copy_from_slice(if unmounts { &[0xaa, 0x20] } else { &[0x69, 1] });
        let extended = (length.div_ceil(HEADER_COVERS) as usize).saturating_sub(1);
        let mut crc = checksum(&bytes[..record::BYTES], record::CRC).unwrap();
        for header in 1..=extended {
            bytes[header * LOG_BLOCK] = 1;
            crc = crc32c::crc32c_append(crc, &bytes[header * LOG_BLOCK..][..record::EXTENDED_BYTES]);
        }
        crc = crc32c::crc32c_append(crc, &payload);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        payload.resize(payload.len().next_multiple_of(LOG_BLOCK), 0);
        bytes.extend(payload);
        self.put(block, &bytes);
        block + (bytes.len() / LOG_BLOCK) as u32
    }

    fn fill(&mut self, from: u32, cycle: u32) {
        for block in from..128 {
            self.put(block, &cycle.to_be_bytes());
        }
    }

    fn end(&self, lsn: u64) -> LogEnd {
        let identity = XfsIdentity::read(&superblock(512, lsn)).unwrap();
        let read = |offset: u64, length: usize| -> Result<Vec<u8>, std::convert::Infallible> {
            let at = (offset - LOG_AT) as usize;
            Ok(self.0[at..at + length].to_vec())
        };
        identity.log_end(read).unwrap()
    }
}

const fn lsn(cycle: u64, block: u64) -> u64 {
    cycle << 32 | block
}

const SHORT: (u32, u32) = (512, 32 << 10);

fn unmounted_at(end: LogEnd) -> u64 {
    match end {
        LogEnd::Unmounted(record) => (record.at - LOG_AT) / LOG_BLOCK as u64,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_places_of_an_identity_are_read() {
    for sector in [512, 4096] {
        let identity = XfsIdentity::read(&superblock(sector, lsn(3, 40))).unwrap();
        assert_eq!((identity.uuid, identity.superblock_bytes, identity.groups), (OLD, usize::from(sector), 4));
        assert_eq!(identity.superblocks().collect::<Vec<_>>(), [0, 4_096_000, 8_192_000, 12_288_000]);
        assert_eq!((identity.log, identity.log_blocks, identity.lsn), (LOG_AT, 128, Lsn { cycle: 3, block: 40 }));
    }
}

#[test]
fn a_superblock_keeps_its_metadata_uuid() {
    let old = superblock(512, 0);
    let new = superblock_with(&old, NEW).unwrap();
    assert_eq!(XfsIdentity::read(&new).unwrap().uuid, NEW);
    assert_eq!((u32_at(&new, sb::INCOMPATIBLE), uuid_at(&new, sb::META_UUID)), (Some(0xf), Some(OLD)));
    let newer = superblock_with(&new, Uuid::from_bytes([9; 16])).unwrap();
    assert_eq!(uuid_at(&newer, sb::META_UUID), Some(OLD));
    assert_eq!(superblock_with(&newer, OLD), Some(old));
}

#[test]
fn other_superblocks_are_left_alone() {
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = superblock(512, 0);
        bytes[at..at + value.len()].copy_from_slice(value);
        seal(&mut bytes, sb::CRC, 512);
        bytes
    };
    let mut torn = superblock(512, 0);
    torn[300] = 1;
    let others = [
        torn,
        changed(0, b"XFSA"),
        changed(sb::VERSION, &0xb4a4_u16.to_be_bytes()),
        changed(sb::SECTOR_SIZE, &128_u16.to_be_bytes()),
        changed(sb::SECTOR_SIZE, &4096_u16.to_be_bytes()),
        // To be repaired; with a metadata directory, and so perhaps with realtime superblocks.
        changed(sb::INCOMPATIBLE, &(1_u32 << 4).to_be_bytes()),
        changed(sb::INCOMPATIBLE, &(1_u32 << 8).to_be_bytes()),
        changed(sb::REALTIME_BLOCKS, &8_u64.to_be_bytes()),
    ];
    for other in others {
        assert_eq!((XfsIdentity::read(&other), superblock_with(&other, NEW)), (None, None));
    }
    // A log on another device.
    assert_eq!(XfsIdentity::read(&changed(sb::LOG_START, &[0; 8])), None);
    // Sizes that contradict each other.
    let contradictions: [(usize, &[u8]); 6] = [
        (sb::LOG_BLOCKS, &[0; 4]),
        (sb::LOG_BLOCKS, &993_u32.to_be_bytes()),
        (sb::GROUP_LOG, &[64]),
        (sb::GROUPS, &5_u32.to_be_bytes()),
        (sb::GROUP_BLOCKS, &[0; 4]),
        (sb::LOG_START, &(4_u64 << 10 | 8).to_be_bytes()),
    ];
    for (at, value) in contradictions {
        assert_eq!(XfsIdentity::read(&changed(at, value)), None, "{at} {value:?}");
    }
}

#[test]
fn an_unmount_is_found_behind_the_superblock() {
    let mut log = LogOnDevice::new();
    log.fill(0, 4);
    let first = log.record(5, 10, (3000, 32 << 10), false);
    let second = log.record(5, first, SHORT, false);
    assert_eq!(log.end(lsn(5, 10)), LogEnd::Dirty);
    log.record(5, second, SHORT, true);
    assert_eq!(unmounted_at(log.end(lsn(5, 10))), u64::from(second));
}

#[test]
fn a_log_continues_at_its_beginning() {
    for start in [120, 121, 122, 123, 124, 125, 126] {
        let mut log = LogOnDevice::new();
        log.fill(0, 5);
        log.fill(start, 4);
        let behind = log.record(5, start, SHORT, false);
        let (cycle, block) = if behind >= 128 { (6, behind - 128) } else { (5, behind) };
        log.record(cycle, block, SHORT, true);
        assert_eq!(unmounted_at(log.end(lsn(5, u64::from(start)))), u64::from(block), "{start}");
    }
}

#[test]
fn a_log_made_by_a_program_is_understood() {
    let mut log = LogOnDevice::new();
    log.record(1, 0, SHORT, true);
    // Programs write no checksum.
    log.0[32..36].fill(0);
    assert_eq!(unmounted_at(log.end(0)), 0);
    // The superblock still names a record of the log before.
    let LogEnd::Unmounted(record) = log.end(lsn(3, 40)) else { panic!("not found") };
    let header = record.header_with(NEW).unwrap();
    assert_eq!((&header[32..36], uuid_at(&header, record::UUID)), (&[0; 4][..], Some(NEW)));
}

#[test]
fn a_long_record_has_extended_headers() {
    let mut log = LogOnDevice::new();
    let size = 256 << 10;
    log.record(2, 0, (40 << 10, size), true);
    assert_eq!(unmounted_at(log.end(lsn(2, 0))), 0);
    log.0[LOG_BLOCK + 5] ^= 1;
    assert_eq!(log.end(lsn(2, 0)), LogEnd::Unknown);
}

#[test]
fn a_torn_record_is_not_understood() {
    let mut log = LogOnDevice::new();
    log.record(1, 0, SHORT, true);
    log.0[LOG_BLOCK + 100] ^= 1;
    assert_eq!(log.end(0), LogEnd::Unknown);
}

#[test]
fn a_false_end_is_not_understood() {
    let mut log = LogOnDevice::new();
    let behind = log.record(3, 0, SHORT, true);
    // What follows belongs to the same pass: there was another record.
    log.put(behind, &3_u32.to_be_bytes());
    assert_eq!(log.end(lsn(3, 0)), LogEnd::Unknown);
}

proptest! {
    #[test]
    fn the_new_header_is_accepted_again(block in 0_u32..126, length in 10_u32..2000, uuid in any::<[u8; 16]>()) {
        let mut log = LogOnDevice::new();
        log.fill(0, 8);
        log.fill(block, 7);
        let behind = log.record(8, block, (length, 32 << 10), true);
        if behind <= 128 {
            let LogEnd::Unmounted(record) = log.end(lsn(8, u64::from(block))) else { panic!("not found") };
            let header = record.header_with(Uuid::from_bytes(uuid)).unwrap();
            log.put(block, &header);
            let LogEnd::Unmounted(again) = log.end(lsn(8, u64::from(block))) else { panic!("not accepted") };
            prop_assert_eq!(again.header_with(OLD), Some(record.header.clone()));
        }
    }

    #[test]
    fn garbage_makes_nothing_panic(noise in proptest::collection::vec(any::<(u16, u8)>(), 0..40), place in any::<u64>()) {
        let mut log = LogOnDevice::new();
        let behind = log.record(3, 0, (700, 32 << 10), false);
        log.record(3, behind, SHORT, true);
        for (at, value) in &noise {
            let length = log.0.len();
            log.0[usize::from(*at) % length.min(4096)] = *value;
        }
        log.end(place);
        let mut bytes = superblock(512, 0);
        for (at, value) in noise {
            bytes[usize::from(at) % 512] = value;
        }
        seal(&mut bytes, sb::CRC, 512);
        let _ = superblock_with(&bytes, NEW);
        if let Some(identity) = XfsIdentity::read(&bytes) {
            let _ = identity.superblocks().next_back();
            let _ = identity.log_end(|_, length| Ok::<_, ()>(vec![0; length]));
        }
    }
}
