//! What a test writes into the repository, whole files and parts of them: it fails where they differ from what there is
//! now, and `HEADROOM_UPDATE_DOCS=1` lets it write them instead.

use super::board::project;

/// A file that is generated as a whole.
pub fn file(path: &str, generated: &str) {
    let committed = std::fs::read_to_string(project(path)).unwrap_or_default();
    if committed == generated {
        return;
    }
    if std::env::var_os("HEADROOM_UPDATE_DOCS").is_some() {
        return std::fs::write(project(path), generated).unwrap();
    }
    let differs = committed.lines().zip(generated.lines()).find(|(a, b)| a != b);
    panic!("{path} is stale (HEADROOM_UPDATE_DOCS=1 and this test write it): {differs:?}");
}

/// The part of a Markdown file between `<!-- NAME: generated from … -->` and `<!-- end of NAME -->`.
pub fn part(path: &str, name: &str, generated: &str) {
    let text = std::fs::read_to_string(project(path)).unwrap();
    let begin = format!("<!-- {name}: generated from ");
    let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{path}: no {begin}"));
    let (from, rest) = rest.split_once(" -->\n").unwrap_or_else(|| panic!("{path}: {begin} has no end"));
    let end = format!("<!-- end of {name} -->\n");
    let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{path}: no {end}"));
    file(path, &format!("{head}{begin}{from} -->\n{generated}{end}{tail}"));
}
