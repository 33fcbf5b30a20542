//! Sizes for people, in the largest unit that makes the number at least one, with two decimals,
//! rounded down.

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The text of a number of bytes.
pub fn readable(bytes: u128) -> String {
    let mut power = 0;
    while power + 1 < UNITS.len() && bytes >> (10 * (power + 1)) > 0 {
        power += 1;
    }
    let unit = 1u128 << (10 * power);
    // The remainder is below 2^60, so the product fits.
    let (whole, hundredths) = (bytes / unit, bytes % unit * 100 / unit);
    format!("{whole}.{hundredths:02} {}", UNITS[power])
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn sizes_are_not_rounded_up() {
        for (bytes, text) in [
            (0, "0.00 B"),
            (5, "5.00 B"),
            (1023, "1023.00 B"),
            (1035, "1.01 KiB"),
            (1_048_575, "1023.99 KiB"),
            (1_048_576, "1.00 MiB"),
            (1_935_000, "1.84 MiB"),
            (590_295_810_358_705_651_712, "512.00 EiB"),
            (u128::MAX, "295147905179352825855.99 EiB"),
        ] {
            assert_eq!(readable(bytes), text);
        }
    }
}
