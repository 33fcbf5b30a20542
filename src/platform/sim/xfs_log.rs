//! The log of a simulated XFS: the last record, as the kernel writes it.
//!
//! Rules:
//! - A record is a header of one block (512 bytes) and a payload of one block. Records follow each
//!   other through the log, which continues at its beginning in the next cycle. The kernel also
//!   marks the block behind the last record as one of the cycle before.
//! - A mount writes a record; the last unmount writes one that says so. `mkfs.xfs` and `xfs_db`
//!   write that record at the beginning of the log, without a checksum. `xfs_db` clears the
//!   log and starts a new cycle.
//! - The kernel mounts an XFS, and `xfs_db` changes it, only if the last record is intact and
//!   carries the UUID of the superblock, or zeros. This is stricter than the kernel, which does not
//!   verify the checksum after an unmount, and drops a torn record of a log that needs a replay.
//!
//! What records hold is not simulated: a replay changes nothing.

const MAGIC: u32 = 0xfeed_babe;
const BLOCK: usize = 512;
/// Bytes of a record and of the block behind it.
pub(super) const RECORD: usize = 3 * BLOCK;
/// What the checksum covers of a header, and where it is.
const HEADER: usize = 328;
const CHECKSUM: usize = 32;

/// Who writes a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordWriter {
    /// The kernel, with a checksum.
    Kernel,
    /// `mkfs.xfs` or `xfs_db`, without one.
    Program,
}

/// The place of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordPlace {
    /// The number of the pass over the log, from 1.
    pub(super) cycle: u32,
    /// The block in the log.
    pub(super) block: u32,
}

impl RecordPlace {
    pub(super) const FIRST: RecordPlace = RecordPlace { cycle: 1, block: 0 };

    /// The place behind the record, in a log of this many blocks. A record that does not fit before
    /// the end begins the next cycle; the kernel would split it.
    pub(super) fn next(self, blocks: u32) -> RecordPlace {
        let block = self.block + 2;
        match block + 2 < blocks {
            true => RecordPlace { block, ..self },
            false => self.new_cycle(),
        }
    }

    pub(super) fn new_cycle(self) -> RecordPlace {
        RecordPlace { cycle: self.cycle + 1, block: 0 }
    }

    pub(super) fn bits(self) -> u64 {
        u64::from(self.cycle) << 32 | u64::from(self.block)
    }

    pub(super) fn from_bits(bits: u64) -> RecordPlace {
        RecordPlace { cycle: (bits >> 32) as u32, block: bits as u32 }
    }
}

/// CRC32C of these bytes with the four bytes of the checksum as zeros.
pub(super) fn checksum(bytes: &[u8], field: usize) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..field]), &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[field + 4..])
}

/// The checksum of a record: of what it covers of the header, and of the payload.
fn record_checksum(record: &[u8; RECORD]) -> u32 {
    crc32c::crc32c_append(checksum(&record[..HEADER], CHECKSUM), &record[BLOCK..2 * BLOCK])
}

/// A record and the mark behind it.
pub(super) fn record(at: RecordPlace, uuid: &[u8; 16], unmounts: bool, writer: RecordWriter) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let operations: u32 = if unmounts { 1 } else { 5 };
    let block = BLOCK as u32;
    for (at, value) in [(0, MAGIC), (4, at.cycle), (8, 2), (12, block), (40, operations), (300, 1), (320, 32 << 10)] {
        put(at, &value.to_be_bytes());
    }
    put(16, &at.bits().to_be_bytes());
    put(24, &at.bits().to_be_bytes());
    put(304, uuid);
    // The first word of each block of the payload is the cycle.
    put(BLOCK, &at.cycle.to_be_bytes());
    put(BLOCK + 8, if unmounts { &[0xaa, 0x20] } else { &[0x69, 0x01] });
    put(2 * BLOCK, &(at.cycle - 1).to_be_bytes());
    if writer == RecordWriter::Kernel {
        let crc = record_checksum(&bytes);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// Whether the kernel accepts this as the last record of the log of an XFS with this UUID.
pub(super) fn is_accepted(record: &[u8; RECORD], at: RecordPlace, uuid: &[u8; 16]) -> bool {
    let crc = u32::from_le_bytes([record[32], record[33], record[34], record[35]]);
    record[..4] == MAGIC.to_be_bytes()
        && record[16..24] == at.bits().to_be_bytes()
        && (record[304..320] == *uuid || record[304..320] == [0; 16])
        && (crc == 0 || crc == record_checksum(record))
}
