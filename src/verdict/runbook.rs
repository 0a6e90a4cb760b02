//! The first steps of the runbooks, which are built in: in an incident the place where they are published may be down
//! too.

use super::rules::FOLDERS;

/// What the runbook says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// The commands of its section Check, without their output.
    pub check: Vec<&'static str>,
    /// Its section Mitigate, as plain text: one string for each paragraph, item of a list or line of commands.
    pub mitigate: Vec<String>,
}

/// The first steps for this alert; empty if its runbook has no such section.
pub fn steps(alert: &str) -> Steps {
    let section = FOLDERS.iter().find_map(|folder| section(folder.runbook, "## ", alert)).unwrap_or_default();
    let commands =
        |text: &'static str| text.lines().filter_map(|line| line.strip_prefix("$ ").or(line.strip_prefix("# ")));
    Steps {
        check: section_below(section, "Check").map(|text| commands(text).collect()).unwrap_or_default(),
        mitigate: section_below(section, "Mitigate").map(paragraphs).unwrap_or_default(),
    }
}

fn section_below(text: &'static str, title: &str) -> Option<&'static str> {
    section(text, "### ", title)
}

/// What stands below this heading, up to the next one of its rank.
fn section(text: &'static str, rank: &str, title: &str) -> Option<&'static str> {
    let heading = format!("{rank}{title}\n");
    let start = if text.starts_with(&heading) { 0 } else { text.find(&format!("\n{heading}"))? + 1 };
    let body = &text[start + heading.len()..];
    Some(&body[..body.find(&format!("\n{rank}")).unwrap_or(body.len())])
}

/// Markdown, as these runbooks use it, without its marks.
fn paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs: Vec<String> = Vec::new();
    let (mut code, mut open) = (false, false);
    for line in text.lines() {
        if line.starts_with("```") {
            (code, open) = (!code, false);
        } else if code {
            // Output of commands is an example from another machine.
            if let Some(command) = line.strip_prefix("$ ").or(line.strip_prefix("# ")) {
                paragraphs.push(format!("$ {command}"));
            }
        } else if line.trim().is_empty() {
            open = false;
        } else {
            let line = line.trim().replace("**", "").replace('`', "");
            let item =
                line.starts_with("- ") || line.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
            match paragraphs.last_mut() {
                Some(last) if open && !item => {
                    last.push(' ');
                    last.push_str(&line);
                }
                _ => paragraphs.push(line),
            }
            open = true;
        }
    }
    paragraphs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::rules;

    #[test]
    fn every_alert_has_its_first_steps() {
        for rule in rules::groups().iter().flat_map(|group| &group.rules) {
            let Some(alert) = &rule.alert else { continue };
            let steps = steps(alert);
            assert!(!steps.mitigate.is_empty(), "{alert} has no section Mitigate");
        }
        assert_eq!(steps("HeadroomUnheardOf"), Steps::default());
    }

    #[test]
    fn the_marks_of_markdown_go() {
        let text = "One `command`\ngoes on.\n\n- **first**\n  more\n- second\n```console\n$ ls\nfile\n```\n1. third\n";
        assert_eq!(paragraphs(text), ["One command goes on.", "- first more", "- second", "$ ls", "1. third"]);
    }

    #[test]
    fn a_section_ends_at_the_next_one() {
        let steps = steps("HeadroomMemcgIdsHigh");
        assert_eq!(steps.check, ["grep memory /proc/cgroups"]);
        assert!(steps.mitigate[0].starts_with("Cordon the node now"), "{steps:?}");
        assert_eq!(steps.mitigate.len(), 1);
    }
}
