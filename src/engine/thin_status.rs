//! Parses what the kernel says about a thin pool and about thin devices
//! (`docs/spec/engine/storage-stack.md` §7.6).

use crate::base::units::{DataBlocks, Sectors};

/// State of a thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Read-write.
    ReadWrite,
    /// Read-only: the metadata could not be written and must be checked.
    ReadOnly,
    /// Read-only until there are free metadata blocks. Nothing else is wrong.
    OutOfMetadataSpace,
    /// No data blocks are left.
    OutOfDataSpace,
    /// Failed. Nothing more is known about the thin pool.
    Failed,
}

impl State {
    /// The state in words, to follow "the thin pool" in a message.
    pub fn says(self) -> &'static str {
        match self {
            State::ReadWrite => "works normally",
            State::ReadOnly => "can only be read: its metadata could not be written, and has to be checked",
            State::OutOfMetadataSpace => "can only be read: it has no free metadata blocks left",
            State::OutOfDataSpace => "has no free data blocks left",
            State::Failed => "has failed",
        }
    }
}

/// Status of a working thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// Metadata blocks in use, of 8 sectors each.
    pub metadata_used: u64,
    /// All metadata blocks.
    pub metadata_total: u64,
    /// Data blocks in use.
    pub data_used: DataBlocks,
    /// All data blocks.
    pub data_total: DataBlocks,
    /// Its state.
    pub state: State,
    /// Writes fail when no data blocks are left, instead of waiting for more.
    pub errors_if_no_space: bool,
    /// The metadata must be checked before it is written again.
    pub needs_check: bool,
    /// Low-water mark for metadata blocks: the kernel raises an event when fewer are free. Older
    /// kernels do not report it.
    pub metadata_low_water: Option<u64>,
}

impl PoolStatus {
    /// Parses the status text of a thin-pool target. `None` if the text is not understood, or if
    /// the thin pool has failed and reports no usage; [`state`] tells these cases apart.
    pub fn parse(text: &str) -> Option<PoolStatus> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let pair = |word: &str| -> Option<(u64, u64)> {
            let (used, total) = word.split_once('/')?;
            Some((used.parse().ok()?, total.parse().ok()?))
        };
        let (metadata_used, metadata_total) = pair(words.get(1)?)?;
        let (data_used, data_total) = pair(words.get(2)?)?;
        let state = match *words.get(4)? {
            "rw" => State::ReadWrite,
            // Whenever the kernel aborts a transaction, it also asks for a check.
            "ro" if words.contains(&"needs_check") => State::ReadOnly,
            "ro" => State::OutOfMetadataSpace,
            "out_of_data_space" => State::OutOfDataSpace,
            _ => return None,
        };
        Some(PoolStatus {
            metadata_used,
            metadata_total,
            data_used: DataBlocks(data_used),
            data_total: DataBlocks(data_total),
            state,
            errors_if_no_space: words.contains(&"error_if_no_space"),
            needs_check: words.contains(&"needs_check"),
            metadata_low_water: words.get(8).and_then(|word| word.parse().ok()),
        })
    }

    /// Whether there are no free metadata blocks. The kernel notices that at its next commit.
    pub fn is_out_of_metadata(&self) -> bool {
        self.state == State::OutOfMetadataSpace || self.metadata_used >= self.metadata_total
    }

    /// Whether the metadata must be checked before anything can change.
    pub fn is_damaged(&self) -> bool {
        self.needs_check || matches!(self.state, State::ReadOnly | State::Failed)
    }
}

/// The state alone, which a failed thin pool also reports.
pub fn state(text: &str) -> Option<State> {
    match text.split_ascii_whitespace().next()? {
        "Fail" | "Error" => Some(State::Failed),
        _ => PoolStatus::parse(text).map(|status| status.state),
    }
}

/// Mapped sectors of a thin device, from its status text; `None` if the text does not contain them.
pub fn mapped(text: &str) -> Option<Sectors> {
    text.split_ascii_whitespace().next()?.parse().ok().map(Sectors)
}

/// End of the last mapped data block of a thin device, in sectors of the device; `None` if no block
/// is mapped.
pub fn mapped_end(text: &str) -> Option<Sectors> {
    let highest: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    highest.checked_add(1).map(Sectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let text = "1 141/3072 259/9406 - rw no_discard_passdown queue_if_no_space - 1024 ";
        let status = PoolStatus::parse(text).unwrap();
        assert_eq!((status.metadata_used, status.metadata_total), (141, 3072));
        assert_eq!((status.data_used, status.data_total), (DataBlocks(259), DataBlocks(9406)));
        assert_eq!(status.state, State::ReadWrite);
        assert!(!status.errors_if_no_space && !status.needs_check);
        assert_eq!(status.metadata_low_water, Some(1024));

        let text = "7 200/3072 9406/9406 - out_of_data_space no_discard_passdown error_if_no_space needs_check 1024";
        let status = PoolStatus::parse(text).unwrap();
        assert_eq!(status.state, State::OutOfDataSpace);
        assert!(status.errors_if_no_space && status.needs_check);
        // The metadata must be checked, whatever else is wrong.
        assert!(status.is_damaged());
    }

    /// A thin pool that was read-only for lack of metadata space counted as damaged, and only
    /// stopping the pool ended that state.
    #[test]
    fn want_of_metadata_space_is_no_damage() {
        let status = PoolStatus::parse("1 64/64 9/94 - ro no_discard_passdown queue_if_no_space - 16 ").unwrap();
        assert_eq!((status.state, status.is_damaged()), (State::OutOfMetadataSpace, false));
        let status =
            PoolStatus::parse("1 64/64 9/94 - ro no_discard_passdown queue_if_no_space needs_check 16 ").unwrap();
        assert_eq!((status.state, status.is_damaged()), (State::ReadOnly, true));
    }

    #[test]
    fn failed_and_garbled_are_told_apart() {
        assert_eq!(state("Fail"), Some(State::Failed));
        assert_eq!(state("Error"), Some(State::Failed));
        for garbled in ["", "1", "1 2 3 - rw", "1 1/2 a/b - rw x", "1 1/2 3/4 - perhaps"] {
            assert_eq!(state(garbled), None, "{garbled:?}");
        }
        assert_eq!(mapped("2048 4095"), Some(Sectors(2048)));
        assert_eq!(mapped_end("2048 4095"), Some(Sectors(4096)));
        assert_eq!(mapped_end("0 -"), None);
        assert_eq!(mapped_end("Fail"), None);
        assert_eq!(mapped("-"), None);
        assert_eq!(mapped("Fail"), None);
    }
}
