//! The number formats of Kubernetes: `resource.Quantity` (`100Mi`), percentages (`10%`).
//!
//! The expected values of the tests came out of the real libraries: k8s.io/apimachinery 0.36 and Go 1.26.

use crate::error::{Error, Result};

/// A `resource.Quantity` in whole units, a fraction rounded up, as its `Value()` does. Beyond what 127 bits hold it
/// stays at the largest: more than any machine has of anything.
///
/// # Errors
/// Malformed if the kubelet would not take it.
pub fn quantity(text: &str) -> Result<i128> {
    parse_quantity(text).ok_or_else(|| {
        Error::malformed(format!(
            "{text:?} is not a quantity like 100Mi, 1.5Gi or 5000 (quotes, spaces and K do not count)"
        ))
    })
}

fn parse_quantity(text: &str) -> Option<i128> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || fraction.contains('.') {
        return None;
    }
    let (factor, exponent) = scale(suffix)?;
    // The digits as one integer, and the power of ten that it is to be multiplied with. Digits beyond the 40th after
    // the point only decide whether there is something to round up.
    let kept = fraction.len().min(40);
    let rest = fraction[kept..].bytes().any(|digit| digit != b'0');
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction[..kept].bytes()) {
        mantissa = mantissa.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    let mut value = mantissa.saturating_mul(factor);
    let mut round_up = rest;
    let exponent = exponent.saturating_sub(i32::try_from(kept).ok()?);
    for _ in 0..exponent.unsigned_abs().min(80) {
        if exponent > 0 {
            value = value.saturating_mul(10);
        } else {
            round_up |= value % 10 != 0;
            value /= 10;
        }
    }
    value = value.saturating_add(i128::from(round_up));
    Some(if negative { -value } else { value })
}

/// The factor and the power of ten that a suffix stands for.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1 << (10 * power), 0));
    let decimal = |exponent: i32| Some((1, exponent));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
            // More digits than an i32 holds are as good as the largest exponent.
            decimal(exponent.parse().unwrap_or(if exponent.starts_with('-') { -1000 } else { 1000 }))
        }
    }
}

/// A percentage with its sign as a fraction, in the single precision that the kubelet computes with
/// (`pkg/kubelet/eviction/helpers.go:427`): this is why 10% of 100 GiB is 10,737,418,400 and not …240.
///
/// # Errors
/// Malformed if it is not a number.
pub fn percentage(text: &str) -> Result<f32> {
    match text.trim_end_matches('%').parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value / 100.0),
        _ => Err(Error::malformed(format!("{text:?} is not a percentage like 10%"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_apimachinery_reads_them() {
        let vectors: &[(&str, i128)] = &[
            ("100Mi", 104_857_600),
            ("1.5Gi", 1_610_612_736),
            ("0.5", 1),
            ("1", 1),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("100m", 1),
            ("1n", 1),
            ("3u", 1),
            ("5k", 5000),
            ("5Ki", 5120),
            ("+5", 5),
            ("-5", -5),
            (".5Gi", 536_870_912),
            ("5.", 5),
            (".", 0),
            ("0", 0),
            ("0Mi", 0),
            ("00100Mi", 104_857_600),
            ("1.0000000000000000001", 2),
            ("1e+3", 1000),
            ("1E-3", 1),
            ("100M", 100_000_000),
            ("1T", 1_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("1.1Ki", 1127),
            ("0.1Ki", 103),
            ("9223372036854775807", 9_223_372_036_854_775_807),
            // apimachinery's Value() overflows from here on; its comparison, which is what counts, does not.
            ("8Ei", 9_223_372_036_854_775_808),
            ("1e400", i128::MAX),
            ("1e99999999999", i128::MAX),
        ];
        for &(text, value) in vectors {
            assert_eq!(quantity(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in
            ["", " 5", "5 ", "5K", "1e", "5%", "1Mib", "0x10", "1_000", "1e3Mi", "1.2.3", "Mi", "-", "10 Gi", "é"]
        {
            assert!(quantity(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn percentages_in_single_precision() {
        for (text, value) in [("10%", 0.1_f32), ("15%", 0.15), ("0.5%", 0.005), ("33.333%", 0.333_33), ("1e1%", 0.1)] {
            assert_eq!(percentage(text).unwrap().to_bits(), value.to_bits(), "{text}");
        }
        for text in ["%", " 5%", "x%", "nan%", "inf%", "1e40%"] {
            assert!(percentage(text).is_err(), "{text:?}");
        }
    }
}
