//! Durations as Go writes them in Kubernetes' configuration: `1h0m0s`, `1.5s`, `100ms`, `0`.

use std::time::Duration;

/// Reads a duration that is not negative.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (nanos_per_unit, tail) = unit(tail)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: u128 = match whole {
            "" => 0,
            whole => whole.parse().ok()?,
        };
        let mut nanos = whole.checked_mul(nanos_per_unit)?;
        let mut digit_nanos = nanos_per_unit;
        for digit in fraction.bytes() {
            digit_nanos /= 10;
            nanos += u128::from(digit - b'0') * digit_nanos;
        }
        total = total.checked_add(nanos)?;
        rest = tail;
    }
    Some(Duration::from_nanos(u64::try_from(total).ok()?))
}

/// The unit at the front of `text` in nanoseconds, and what follows it.
fn unit(text: &str) -> Option<(u128, &str)> {
    // Longer names before those they begin with.
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    UNITS.iter().find_map(|(name, nanos)| Some((*nanos, text.strip_prefix(name)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_prints_them() {
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        assert_eq!(parse_duration("24h0m0s"), Some(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("1m30.5s"), Some(Duration::from_millis(90_500)));
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(parse_duration(".5h"), Some(Duration::from_secs(1_800)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "1", "s", "-1s", "1d", "1.2.3s", "1s2", ".s", "600000000000000h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
