//! Where in a file a key stands: by its text, because the parsed document no longer knows.

/// The line, counted from 1, of `key` below `field`, or of `field` alone. `None` if it is not written in a way that can
/// be told.
pub(super) fn line(text: &str, field: &str, key: Option<&str>) -> Option<usize> {
    let mut lines =
        text.lines().enumerate().map(|(number, line)| (number + 1, line.split(" #").next().unwrap_or(line)));
    let (start, first) = lines.find(|(_, line)| position(line, field).is_some())?;
    let Some(key) = key else { return Some(start) };
    // `evictionHard: {memory.available: 100Mi}`
    let rest = position(first, field).map_or("", |at| &first[at..]);
    if position(rest, key).is_some() {
        return Some(start);
    }
    lines.find(|(_, line)| position(line, key).is_some()).map(|(number, _)| number)
}

/// Behind `key:`, where the line has it as a key.
fn position(line: &str, key: &str) -> Option<usize> {
    line.match_indices(key).find_map(|(at, _)| {
        let before = line[..at].chars().next_back();
        let rest = line[at + key.len()..].trim_start_matches(['"', '\'']);
        let is_key =
            before.is_none_or(|c| c.is_whitespace() || "\"'{,".contains(c)) && rest.trim_start().starts_with(':');
        (is_key && !line.trim_start().starts_with('#')).then_some(at + key.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_both_styles() {
        let text = "kind: x\n# evictionHard:\nevictionSoft: {a.b: 1}\nevictionHard:\n  \"a.b\": 1 # a.c: 2\n  a.c: 2\n";
        assert_eq!(line(text, "evictionHard", None), Some(4));
        assert_eq!(line(text, "evictionHard", Some("a.b")), Some(5));
        assert_eq!(line(text, "evictionHard", Some("a.c")), Some(6));
        assert_eq!(line(text, "evictionSoft", Some("a.b")), Some(3));
        assert_eq!(line(text, "evictionMinimumReclaim", Some("a.b")), None);
        assert_eq!(line(text, "Hard", None), None, "a part of a key is none");
    }
}
