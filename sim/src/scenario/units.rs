//! Durations and shares as people write them, both ways.

use crate::fault::{MS, SECOND};

/// The units of durations with their nanoseconds, the longest first.
const UNITS: [(&str, u64); 6] =
    [("h", 3_600 * SECOND), ("m", 60 * SECOND), ("s", SECOND), ("ms", MS), ("us", 1_000), ("ns", 1)];
/// The longest duration that is read: a month.
const LONGEST: u128 = 31 * 24 * 3_600 * SECOND as u128;

/// Reads a duration in nanoseconds: a number, whole or with decimals, and its unit.
pub(crate) fn duration(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(digits);
    let nanos = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.len() > 9 {
        return None;
    }
    let fraction = u128::from(decimals.parse::<u64>().ok()?) * u128::from(nanos);
    let scale = 10_u128.pow(decimals.len() as u32);
    let total = u128::from(whole.parse::<u64>().ok()?) * u128::from(nanos) + fraction / scale;
    (total <= LONGEST && fraction.is_multiple_of(scale)).then_some(total as u64)
}

/// Reads a share in thousandths, such as `2.5%`.
pub(crate) fn permille(text: &str) -> Option<u64> {
    let (whole, tenths) = text.strip_suffix('%')?.split_once('.').unwrap_or((text.strip_suffix('%')?, "0"));
    if tenths.len() != 1 {
        return None;
    }
    let permille = whole.parse::<u64>().ok()?.checked_mul(10)? + tenths.parse::<u64>().ok()?;
    (permille <= 1_000).then_some(permille)
}

/// Writes a duration so that [`duration`] reads the same: in the longest unit that leaves it whole, in decimals of a
/// second where that would be many digits.
pub(crate) fn tell_duration(nanos: u64) -> String {
    let whole = UNITS.iter().find(|(_, unit)| nanos >= *unit && nanos.is_multiple_of(*unit));
    match whole {
        Some((name, unit)) if *unit >= SECOND || nanos < SECOND && (*unit >= MS || nanos < MS) => {
            format!("{}{name}", nanos / unit)
        }
        Some(_) => {
            let decimals = format!("{:09}", nanos % SECOND);
            format!("{}.{}s", nanos / SECOND, decimals.trim_end_matches('0'))
        }
        None => "0s".to_owned(),
    }
}

/// Writes a share so that [`permille`] reads the same.
pub(crate) fn tell_permille(permille: u64) -> String {
    match permille % 10 {
        0 => format!("{}%", permille / 10),
        tenths => format!("{}.{tenths}%", permille / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("2s"), Some(2 * SECOND));
        assert_eq!(duration("1.5s"), Some(1_500 * MS));
        assert_eq!(duration("10m"), Some(600 * SECOND));
        assert_eq!(duration("300us"), Some(300_000));
        for wrong in ["", "s", "2", "-2s", "2 weeks", "1.s", ".5s", "99999999999999999999s", "9999h", "0.5ns"] {
            assert_eq!(duration(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn shares_are_read_in_tenths() {
        assert_eq!(permille("2.5%"), Some(25));
        assert_eq!(permille("100%"), Some(1_000));
        for wrong in ["", "%", "2.5", "2.55%", "101%", "-1%"] {
            assert_eq!(permille(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for nanos in [0, 1, 999, 1_000, 300_000, MS, 1_500 * MS, 2_000_000_007, 90 * SECOND, 3_600 * SECOND] {
            assert_eq!(duration(&tell_duration(nanos)), Some(nanos), "{}", tell_duration(nanos));
        }
        for share in [0, 1, 25, 990, 1_000] {
            assert_eq!(permille(&tell_permille(share)), Some(share));
        }
    }
}
