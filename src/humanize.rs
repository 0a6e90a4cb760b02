//! Numbers for people, most of them as Prometheus's templates write them: Go's formats, and `humanize*`
//! (template/template.go).

/// Go's `%.4g`.
pub fn short(value: f64) -> String {
    general(value, Some(4))
}

/// Go's `%v` of a float64: as short as it can be read back, with an exponent from 21 digits on.
pub fn plain(value: f64) -> String {
    general(value, None)
}

fn general(value: f64, precision: Option<usize>) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let scientific = match precision {
        Some(precision) => format!("{value:.*e}", precision - 1),
        None => format!("{value:e}"),
    };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    let last = precision.map_or(21, |precision| precision as i32);
    if exponent < -4 || exponent >= last {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let digits = mantissa.trim_start_matches('-').len().saturating_sub(1 + usize::from(mantissa.contains('.')));
    let digits = if mantissa.contains('.') { digits } else { 0 };
    format!("{value:.*}", (digits as i32 - exponent).max(0) as usize)
}

/// `humanize`: with the prefixes of powers of 1000.
pub fn humanize(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return short(value);
    }
    let (value, prefix) = if value.abs() >= 1.0 {
        scale(value, &["k", "M", "G", "T", "P", "E", "Z", "Y"], 1000.0, |size| size < 1000.0)
    } else {
        scale(value, &["m", "u", "n", "p", "f", "a", "z", "y"], 1e-3, |size| size >= 1.0)
    };
    format!("{}{prefix}", short(value))
}

/// `humanize1024`: with the prefixes of powers of 1024.
pub fn humanize1024(value: f64) -> String {
    if value.abs() <= 1.0 || !value.is_finite() {
        return short(value);
    }
    let (value, prefix) = scale(value, &["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"], 1024.0, |size| size < 1024.0);
    format!("{}{prefix}", short(value))
}

/// `humanizeDuration`: of seconds.
pub fn duration(value: f64) -> String {
    if !value.is_finite() {
        return short(value);
    }
    if value == 0.0 {
        return format!("{}s", short(value));
    }
    if value.abs() < 1.0 {
        let (value, prefix) = scale(value, &["m", "u", "n", "p", "f", "a", "z", "y"], 1e-3, |size| size >= 1.0);
        return format!("{}{prefix}s", short(value));
    }
    let (sign, size) = (if value < 0.0 { "-" } else { "" }, value.abs());
    let whole = size as i64;
    let (days, hours, minutes, seconds) = (whole / 86400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{sign}{}s", short(size)),
        (0, 0, _) => format!("{sign}{minutes}m {seconds}s"),
        (0, ..) => format!("{sign}{hours}h {minutes}m {seconds}s"),
        _ => format!("{sign}{days}d {hours}h {minutes}m {seconds}s"),
    }
}

/// A whole number with its thousands apart: 12,034.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `humanizePercentage`: of a ratio.
pub fn percentage(value: f64) -> String {
    format!("{}%", short(value * 100.0))
}

fn scale<'a>(mut value: f64, prefixes: &[&'a str], by: f64, enough: impl Fn(f64) -> bool) -> (f64, &'a str) {
    let mut prefix = "";
    for next in prefixes {
        if enough(value.abs()) {
            break;
        }
        prefix = next;
        value = if by < 1.0 { value * (1.0 / by) } else { value / by };
    }
    (value, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_go() {
        for (value, text) in [
            (3.0, "3"),
            (0.1, "0.1"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (1e-5, "1e-05"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(plain(value), text);
        }
        for (value, text) in
            [(0.0, "0"), (100.0, "100"), (12345.0, "1.234e+04"), (0.00012345, "0.0001234"), (99.999, "100")]
        {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn humanized_as_by_prometheus() {
        assert_eq!(humanize(1234567.0), "1.235M");
        assert_eq!(humanize(0.0123), "12.3m");
        assert_eq!(humanize1024(1048576.0), "1Mi");
        assert_eq!(percentage(0.1234567), "12.35%");
        assert_eq!((grouped(999.0), grouped(1_234_567.0)), ("999".into(), "1,234,567".into()));
        for (value, text) in
            [(0.0, "0s"), (1.0, "1s"), (899.99, "14m 59s"), (93784.0, "1d 2h 3m 4s"), (-60.0, "-1m 0s"), (0.001, "1ms")]
        {
            assert_eq!(duration(value), text);
        }
    }
}
