//! The first steps of the runbooks, which are built in: in an incident the place where they are published may be down
//! too.
//!
//! Commands have placeholders, `<pod>`. What the finding's labels say is filled in; the rest stays as it is, for a
//! person to fill in. So a command that is copied is about this node, or does nothing.

use std::path::Path;

use super::promql::eval::Evaluator;
use super::promql::expression;
use super::rules::FOLDERS;
use super::{Finding, History};

/// Each placeholder that is filled in, and the label that has its value.
const PLACEHOLDERS: [(&str, &str); 13] = [
    ("<apiserver>", "peer"),
    ("<collector>", "collector"),
    ("<device>", "device"),
    ("<interface>", "interface"),
    ("<namespace>", "namespace"),
    ("<network>", "network"),
    ("<node>", "instance"),
    ("<pid>", "pid"),
    ("<pod>", "pod"),
    ("<pod_uid>", "pod_uid"),
    (PATTERN, "pod_uid"),
    ("<socket>", "socket"),
    ("<volume>", "volume"),
];

/// The uid as the name of a cgroup may have it: systemd's have `_` in the place of `-`.
const PATTERN: &str = "<pod_uid_pattern>";

/// Where a kubelet has its directory and its configuration if nobody says otherwise, as the runbooks have them.
const ROOT: &str = "/var/lib/kubelet";
const CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// What the runbook says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// The commands of its section Check, without their output.
    pub check: Vec<String>,
    /// Its section Mitigate, as plain text: one string for each paragraph, item of a list or line of commands.
    pub mitigate: Vec<String>,
}

/// The first steps for this finding, about this node. `kubelet_root` is its kubelet's directory, if that is known.
pub fn steps(finding: &Finding, history: &History, kubelet_root: Option<&Path>) -> Steps {
    let root = kubelet_root.and_then(Path::to_str).filter(|root| harmless(root));
    let config = kubelet_config(history).filter(|config| harmless(config));
    let fill = |text: &str| {
        let mut text = text.to_owned();
        for (placeholder, label) in PLACEHOLDERS {
            let value = finding.labels.get(label).filter(|value| !value.is_empty() && harmless(value));
            if let Some(value) = value {
                let value = if placeholder == PATTERN { value.replace('-', "?") } else { value.clone() };
                text = text.replace(placeholder, &value);
            }
        }
        of_this_kubelet(&text, root, config.as_deref())
    };
    let Steps { check, mitigate } = written(finding.alert);
    let fill_all = |texts: Vec<String>| texts.iter().map(|text| fill(text)).collect();
    Steps { check: fill_all(check), mitigate: fill_all(mitigate) }
}

/// Names come from the machine, and a command is there to be copied into a shell.
fn harmless(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/.:_-[]@".contains(&byte)) && !value.starts_with('-')
}

/// The file that the kubelet was told its configuration in, if there is one.
fn kubelet_config(history: &History) -> Option<String> {
    let (_, newest) = history.span()?;
    let expr = expression::parse("headroom_eviction_config_info{source=\"file\"}").ok()?;
    let files = Evaluator::new(&history.store, newest).vector(&expr).ok()?;
    let [file] = files.as_slice() else { return None };
    Some(file.labels.get("path").to_owned()).filter(|path| !path.is_empty())
}

/// Its own directory and configuration in the place of the usual ones. Its certificates are not below its directory:
/// `--cert-dir` has a default of its own.
fn of_this_kubelet(text: &str, root: Option<&str>, config: Option<&str>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(ROOT) {
        let (before, here) = rest.split_at(at);
        out.push_str(before);
        let behind = &here[ROOT.len()..];
        let goes_on = behind.starts_with(|next: char| next.is_ascii_alphanumeric() || "/_-.".contains(next));
        let (usual, own) = if here.starts_with(CONFIG) {
            (CONFIG, config)
        } else if !goes_on || behind.starts_with("/pods/") {
            (ROOT, root)
        } else {
            (ROOT, None)
        };
        out.push_str(own.unwrap_or(usual));
        rest = &here[usual.len()..];
    }
    out + rest
}

/// The first steps for this alert as the runbook has them; empty if it has no such section.
fn written(alert: &str) -> Steps {
    let section = FOLDERS.iter().find_map(|folder| section(folder.alerts.runbook, "## ", alert)).unwrap_or_default();
    let commands =
        |text: &'static str| text.lines().filter_map(|line| line.strip_prefix("$ ").or(line.strip_prefix("# ")));
    Steps {
        check: section_below(section, "Check")
            .map(|text| commands(text).map(str::to_owned).collect())
            .unwrap_or_default(),
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
            let steps = written(alert);
            assert!(!steps.mitigate.is_empty(), "{alert} has no section Mitigate");
        }
        assert_eq!(written("HeadroomUnheardOf"), Steps::default());
    }

    /// What a person fills in, since no label has it.
    const BY_HAND: [&str; 5] = ["<bond>", "<local port>", "<pod ip>", "<prometheus>", "<token file>"];

    /// An address that is not the loopback's, or so many hexadecimal digits that they are an id.
    fn is_somebodys(word: &str) -> bool {
        let numbers: Vec<&str> = word.split('.').collect();
        let address = numbers.len() == 4 && numbers.iter().all(|number| number.parse::<u8>().is_ok());
        let id = word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        address && word != "127.0.0.1" || id && word.bytes().any(|byte| byte.is_ascii_digit())
    }

    #[test]
    fn no_command_names_the_node_on_which_it_was_recorded() {
        let recorded =
            ["tb-node", "memvol", "oomvol", "fullvol", "sleeps-", "eth0", "bond0", "/proc/1/", "-p 1 ", "/cache"];
        for rule in rules::groups().iter().flat_map(|group| &group.rules) {
            let Some(alert) = &rule.alert else { continue };
            let steps = written(alert);
            for text in steps.check.iter().chain(&steps.mitigate) {
                let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                let words: Vec<&str> = words.filter(|word| is_somebodys(word)).collect();
                assert!(words.is_empty(), "{alert}: {words:?} in {text}");
                for name in recorded {
                    assert!(!format!("{text} ").contains(name), "{alert}: {name} in {text}");
                }
                for name in text.split('<').skip(1).filter_map(|rest| rest.split_once('>')).map(|(name, _)| name) {
                    let placeholder = format!("<{name}>");
                    let known =
                        PLACEHOLDERS.iter().any(|(known, _)| *known == placeholder) || BY_HAND.contains(&&*placeholder);
                    assert!(known, "{alert}: {placeholder} is never filled in, in {text}");
                }
                for word in ["NODE", "POD", "PID", "NAMESPACE", "COLLECTOR"] {
                    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    assert!(!words.any(|other| other == word), "{alert}: {word} in {text}, where <…> is meant");
                }
            }
        }
    }

    fn finding(alert: &'static str, labels: &[(&str, &str)]) -> Finding {
        Finding {
            alert,
            severity: "warning".into(),
            mode: "open_files".into(),
            level: super::super::Level::Watch,
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            value: 1.0,
            summary: String::new(),
            description: String::new(),
            runbook: String::new(),
            holds_for: None,
            basis: super::super::Basis::Full,
        }
    }

    #[test]
    fn a_command_is_about_this_node() {
        let mut history = History::new("node-a", super::super::Limits::default());
        let check =
            |history: &History, finding: Finding| steps(&finding, history, Some(Path::new("/data/kubelet"))).check;
        let process = finding("HeadroomProcessNearFdLimit", &[("pid", "4711"), ("comm", "hungry")]);
        assert_eq!(check(&history, process)[..2], ["prlimit --nofile -p 4711", "ls /proc/4711/fd | wc -l"]);
        let volume = [("namespace", "shop"), ("pod", "web-0"), ("pod_uid", "5f-1e"), ("volume", "scratch")];
        let commands = check(&history, finding("HeadroomMemoryVolumeNearLimit", &volume));
        assert_eq!(commands[0], "kubectl exec -n shop web-0 -- df -k");
        assert!(
            commands[1].ends_with(" /data/kubelet/pods/5f-1e/volumes/kubernetes.io~empty-dir/scratch"),
            "{commands:?}"
        );
        assert!(commands[2].contains("'*pod5f?1e*'"), "{commands:?}");
        // No name that a shell would run, and nothing where a label is missing.
        let evil = [("namespace", "shop"), ("pod", "x;reboot"), ("volume", "$(reboot)")];
        let commands = check(&history, finding("HeadroomMemoryVolumeNearLimit", &evil));
        assert_eq!(commands[0], "kubectl exec -n shop <pod> -- df -k");
        assert!(commands[1].ends_with("/pods/<pod_uid>/volumes/kubernetes.io~empty-dir/<volume>"), "{commands:?}");
        // The usual file, until the page names this kubelet's; certificates are not below its directory.
        let commands = check(&history, finding("HeadroomEvictionSoftThresholdCrossed", &[]));
        assert_eq!(commands, ["grep -A8 evictionSoft /var/lib/kubelet/config.yaml"]);
        let file = [("source", "file"), ("path", "/etc/k.yaml")];
        history.add_rows(std::time::SystemTime::now(), [("headroom_eviction_config_info", file, 1.0)]);
        let commands = check(&history, finding("HeadroomEvictionSoftThresholdCrossed", &[]));
        assert_eq!(commands, ["grep -A8 evictionSoft /etc/k.yaml"]);
        let commands = check(&history, finding("HeadroomKubeletNotConnected", &[]));
        assert!(commands[1].ends_with(" /var/lib/kubelet/pki/kubelet-client-current.pem"), "{commands:?}");
    }

    #[test]
    fn the_marks_of_markdown_go() {
        let text = "One `command`\ngoes on.\n\n- **first**\n  more\n- second\n```console\n$ ls\nfile\n```\n1. third\n";
        assert_eq!(paragraphs(text), ["One command goes on.", "- first more", "- second", "$ ls", "1. third"]);
    }

    #[test]
    fn a_section_ends_at_the_next_one() {
        let steps = written("HeadroomMemcgIdsHigh");
        assert_eq!(steps.check, ["grep memory /proc/cgroups"]);
        assert!(steps.mitigate[0].starts_with("Cordon the node now"), "{steps:?}");
        assert_eq!(steps.mitigate.len(), 1);
    }
}
