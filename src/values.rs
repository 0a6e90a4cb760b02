//! Texts that people write, on a command line or in a file, become values or one clear sentence.

use std::time::Duration;

use crate::error::{Error, Result};

/// A Go duration that is not negative.
///
/// # Errors
/// Malformed if Go would not take it, or if it is negative.
pub fn duration(text: &str) -> Result<Duration> {
    let nanos = parse_duration(text)
        .ok_or_else(|| Error::malformed(format!("{text:?} is not a duration like 90s, 1m30s or 1.5h")))?;
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| Error::malformed(format!("{text:?} is a negative duration")))
}

fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()?.into() };
        total += whole * unit;
        // A fraction of a nanosecond is dropped.
        let kept = &fraction[..fraction.len().min(18)];
        if let Ok(digits) = kept.parse::<i128>() {
            total += digits * unit / 10_i128.pow(u32::try_from(kept.len()).ok()?);
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A duration on the command line.
///
/// # Errors
/// What was expected.
pub fn duration_flag(text: &str) -> std::result::Result<Duration, String> {
    duration(text).map_err(|_| "expected a duration such as 500ms, 10s or 1m30s".to_owned())
}

/// A duration on the command line that is longer than nothing.
///
/// # Errors
/// What was expected.
pub fn some_time(text: &str) -> std::result::Result<Duration, String> {
    duration_flag(text)
        .and_then(|time| if time.is_zero() { Err("must be longer than 0s".to_owned()) } else { Ok(time) })
}

/// A number on the command line that is not 0.
///
/// # Errors
/// What was expected.
pub fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// The values of a flag group that nobody gave: what its declarations say.
pub fn defaults<T: clap::Args>() -> T {
    let command = T::augment_args(clap::Command::new("defaults").no_binary_name(true));
    let matches = command.try_get_matches_from(std::iter::empty::<&str>());
    #[expect(clippy::expect_used, reason = "a flag without a default is optional; a test builds every group")]
    matches.and_then(|matches| T::from_arg_matches(&matches)).expect("every flag has a default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        let vectors: &[(&str, u64)] = &[
            ("1m30s", 90_000_000_000),
            ("90s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("0", 0),
            ("+5s", 5_000_000_000),
            ("1us", 1000),
            ("1µs", 1000),
            ("1μs", 1000),
            ("1ns", 1),
            ("100ms", 100_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1h1h", 7_200_000_000_000),
            ("2562047h47m16.854775807s", 9_223_372_036_854_775_807),
            ("1.0000000000000000001s", 1_000_000_000),
        ];
        for &(text, nanos) in vectors {
            assert_eq!(duration(text).unwrap(), Duration::from_nanos(nanos), "{text}");
        }
        for text in
            ["", "5", ".s", "-", "3000000h", "2562047h47m16.854775808s", "1d", "1m ", "1m-30s", "-1s", "s", "1..s"]
        {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
