//! Formats lists as tables: columns without lines between them, each three blanks wider than its
//! longest text.
//!
//! Must never know: where the values come from.

use std::path::PathBuf;

use super::sizes::readable;
use crate::base::ids::{FsUuid, PoolUuid};

/// Blanks beside the longest text of a column.
const GAP: usize = 3;

enum Side {
    Left,
    Right,
}

struct Column {
    heading: &'static str,
    side: Side,
    values: Vec<String>,
}

fn left(heading: &'static str, values: Vec<String>) -> Column {
    Column { heading, side: Side::Left, values }
}

fn right(heading: &'static str, values: Vec<String>) -> Column {
    Column { heading, side: Side::Right, values }
}

fn table(columns: &[Column]) -> String {
    let rows = columns.iter().map(|column| column.values.len()).min().unwrap_or(0);
    let mut text = String::new();
    for row in 0..=rows {
        for Column { heading, side, values } in columns {
            let cell = |row: usize| if row == 0 { heading } else { values[row - 1].as_str() };
            let longest = (0..=rows).map(|row| cell(row).len()).max().unwrap_or(0);
            let blanks = " ".repeat(longest + GAP - cell(row).len());
            match side {
                Side::Left => text.extend([cell(row), &blanks]),
                Side::Right => text.extend([&blanks, cell(row)]),
            }
        }
        text.push('\n');
    }
    text
}

/// The key descriptions.
pub fn keys(keys: Vec<String>) -> String {
    table(&[left("Key Description", keys)])
}

/// The pools.
pub fn pools(
    names: Vec<String>,
    sizes: Vec<(u128, Option<u128>)>,
    properties: Vec<(bool, bool)>,
    uuids: Vec<PoolUuid>,
) -> String {
    let sizes = sizes.into_iter().map(|(total, used)| {
        let known = |size: Option<u128>| size.map_or_else(|| "FAILURE".to_owned(), readable);
        let free = used.map(|used| total.saturating_sub(used));
        format!("{} / {} / {}", readable(total), known(used), known(free))
    });
    let flag = |has: bool, word: &str| format!("{}{word}", if has { ' ' } else { '~' });
    let properties =
        properties.into_iter().map(|(cache, encrypted)| [flag(cache, "Ca"), flag(encrypted, "Cr")].join(","));
    table(&[
        left("Name", names),
        right("Total Physical", sizes.collect()),
        right("Properties", properties.collect()),
        right("UUID", uuids.iter().map(PoolUuid::hyphenated).collect()),
    ])
}

/// The filesystems.
pub fn filesystems(
    [pools, names, created]: [Vec<String>; 3],
    used: Vec<Option<u128>>,
    devices: Vec<PathBuf>,
    uuids: Vec<FsUuid>,
) -> String {
    table(&[
        left("Pool Name", pools),
        left("Name", names),
        left("Used", used.into_iter().map(|used| used.map_or_else(|| "FAILURE".to_owned(), readable)).collect()),
        left("Created", created),
        left("Device", devices.iter().map(|device| device.display().to_string()).collect()),
        left("UUID", uuids.iter().map(FsUuid::hyphenated).collect()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_padded_by_three_blanks() {
        assert_eq!(keys(vec![]), "Key Description   \n");
        assert_eq!(keys(vec!["kd2".into()]), "Key Description   \nkd2               \n");
        let uuid = "c39a5365-d9d7-49b6-9981-b3115cd8cea3";
        let pools = pools(
            vec!["p1".into(), "penc".into()],
            vec![(590_295_810_358_705_651_712, Some(0)), (1 << 30, None)],
            vec![(false, false), (true, true)],
            vec![uuid.parse().unwrap(), uuid.parse().unwrap()],
        );
        assert_eq!(
            pools,
            "Name                        Total Physical   Properties                                   UUID\n\
             p1        512.00 EiB / 0.00 B / 512.00 EiB      ~Ca,~Cr   c39a5365-d9d7-49b6-9981-b3115cd8cea3\n\
             penc          1.00 GiB / FAILURE / FAILURE       Ca, Cr   c39a5365-d9d7-49b6-9981-b3115cd8cea3\n"
        );
    }
}
