//! Links of documents that lead to a file of this repository, and to a heading in it.
#![allow(clippy::disallowed_methods, reason = "tests look at the project with their own eyes")]

use std::path::Path;

/// How many a document has, and those that lead nowhere.
pub(crate) fn check(document: &Path) -> (usize, Vec<String>) {
    let text = std::fs::read_to_string(document).unwrap();
    let (mut seen, mut broken) = (0, Vec::new());
    for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
        if link.starts_with("https://") {
            continue;
        }
        seen += 1;
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
        let has_heading = || {
            let text = std::fs::read_to_string(&target).unwrap_or_default();
            text.lines().filter_map(|line| line.strip_prefix('#')).any(|line| anchor(line) == heading)
        };
        if !target.exists() || !(heading.is_empty() || has_heading()) {
            broken.push(format!("{}: {link}", document.display()));
        }
    }
    (seen, broken)
}

/// The anchor that a heading gets where it is published.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let document = directory.path().join("a.md");
    std::fs::write(&document, "# On it\n[good](#on-it) [bad](#off-it) [gone](b.md) [good](a.md)\n").unwrap();
    let (seen, broken) = check(&document);
    let broken = broken.join(" ");
    assert!(seen == 4 && broken.contains("#off-it") && broken.contains("b.md"), "{broken}");
    assert!(!broken.contains("a.md: #on-it"), "{broken}");
}
