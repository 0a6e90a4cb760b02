//! x
/// x
/// # Errors
/// x
pub fn parse_duration(t: &str) -> Result<std::time::Duration, String> {
    let n = t.trim_end_matches(|c: char| c.is_alphabetic());
    let v: f64 = n.parse().map_err(|_| "x".to_string())?;
    let m = if t.ends_with("ms") {
        0.001
    } else if t.ends_with('m') {
        60.0
    } else if t.ends_with('s') {
        1.0
    } else {
        return Err("x".into());
    };
    Ok(std::time::Duration::from_secs_f64(v * m))
}
