//! Every block of `docs/security-matrix.md`, by an exporter that runs without the right of that row; and that the
//! tables of `docs/security.md` say the same in fewer words.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod apiserver;
mod container;
mod deployed;
mod lab;

use std::collections::{BTreeMap, BTreeSet};

use headroom::modes::MODES;
use lab::{Lab, Without};

use crate::common::{self, Page};
use crate::common::{fake_runtime, generated};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// As the exporter's uid 0 with these capabilities, or another uid with these as ambient ones.
fn caps(uid: u32, caps: &[&str]) -> Vec<String> {
    let list = std::iter::once("-all".to_owned())
        .chain(caps.iter().map(|cap| format!("+{cap}")))
        .collect::<Vec<_>>()
        .join(",");
    let mut all = words(&["--no-new-privs", "--clear-groups"]);
    if uid == 0 {
        all.extend([format!("--bounding-set={list}"), "--inh-caps=-all".to_owned()]);
    } else {
        all.extend([format!("--reuid={uid}"), format!("--regid={uid}")]);
        all.extend([format!("--inh-caps={list}"), format!("--ambient-caps={list}"), format!("--bounding-set={list}")]);
    }
    all
}

/// The rows.
const KNOWN: [&str; 26] = [
    "full",
    "seccomp",
    "readonly-rootfs",
    "nobody-no-runtime",
    "nobody-in-a-container",
    "init-of-its-own",
    "no-ptrace",
    "no-dac-read-search",
    "no-capability",
    "nobody-both",
    "nobody-none",
    "nobody-override",
    "user-namespace",
    "no-host-pid",
    "no-host-network",
    "no-host-mount",
    "no-sys-mount",
    "hidepid",
    "socket-absent",
    "no-runtime",
    "no-nodes",
    "no-leases",
    "no-endpointslices",
    "no-nodes-proxy",
    "no-public",
    "no-configz",
];

/// What each id in the tables takes away.
fn without(id: &str, lab: &Lab) -> Option<Without> {
    let none = Without::default();
    let at = |name: &str| lab.at(name).display().to_string();
    Some(match id {
        "full" => none,
        "no-ptrace" => Without { setpriv: caps(0, &["dac_read_search"]), ..none },
        "no-dac-read-search" => Without { setpriv: caps(0, &["sys_ptrace"]), ..none },
        "no-capability" => Without { setpriv: caps(0, &[]), ..none },
        "nobody-both" => Without { setpriv: caps(65_534, &["sys_ptrace", "dac_read_search"]), ..none },
        "nobody-none" => Without { setpriv: caps(65_534, &[]), ..none },
        "nobody-override" => Without { setpriv: caps(65_534, &["sys_ptrace", "dac_override"]), ..none },
        "nobody-no-runtime" => Without {
            setpriv: caps(65_534, &["sys_ptrace", "dac_read_search"]),
            flags: words(&["--no-runtime"]),
            ..none
        },
        "user-namespace" => {
            Without { unshare: vec!["--user", "--map-root-user"], setpriv: words(&["--no-new-privs"]), ..none }
        }
        "no-host-pid" => Without { unshare: vec!["--pid", "--fork", "--kill-child", "--mount-proc"], ..none },
        "init-of-its-own" => Without {
            unshare: vec!["--pid", "--fork", "--kill-child", "--mount-proc"],
            script: "export KUBERNETES_SERVICE_HOST=10.96.0.1".to_owned(),
            before: words(&["sh", "-c", "\"$@\"; exit", "init"]),
            ..none
        },
        "no-host-network" => Without { unshare: vec!["--net"], script: "ip link set lo up".to_owned(), ..none },
        "no-host-mount" => Without { script: format!("umount -l {}", at("host")), ..none },
        "no-sys-mount" => Without { script: format!("umount -l {}", at("sys")), ..none },
        "hidepid" => Without { script: "mount -o remount,hidepid=2 /proc".to_owned(), ..none },
        "socket-absent" => {
            Without { script: format!("mount -t tmpfs tmpfs {}/{}", at("host"), &at("run")[1..]), ..none }
        }
        "no-runtime" => Without { flags: words(&["--no-runtime"]), ..none },
        "no-nodes" => Without { refused: vec!["nodes"], ..none },
        "no-leases" => Without { refused: vec!["leases"], ..none },
        "no-endpointslices" => Without { refused: vec!["endpointslices"], ..none },
        "no-nodes-proxy" => Without { refused: vec!["nodes/proxy"], ..none },
        "no-public" => Without { refused: vec!["public"], ..none },
        "no-configz" => Without { refused: vec!["nodes/configz"], ..none },
        _ => return None,
    })
}

/// What is compared: not the exporter's own process or who started it, and nothing that depends on the moment.
fn keys(page: &Page) -> BTreeSet<String> {
    let own = |series: &str| {
        let ours = ["comm=\"exporter\"", "comm=\"runc\""].iter().any(|comm| series.contains(comm));
        // Where the runtime of the test has its socket.
        let of_lab = series.starts_with("headroom_system_path_info{") && series.contains("/priv");
        // What failed, and why, has lines of its own.
        let failed = series.starts_with("headroom_collector_errors_total{");
        ours || of_lab || failed || series.starts_with("process_")
    };
    let ours = page.0.keys().filter(|series| !own(series) && !series.contains("_bucket{"));
    ours.cloned().collect()
}

/// A row of the tables: what is taken away, and what the page then says.
#[derive(Debug, Default)]
struct Row {
    id: String,
    /// Mode → what is said of it.
    outcomes: BTreeMap<String, String>,
    missing: Vec<Pattern>,
    instead: Vec<Pattern>,
}

/// `name{label="value"}`: a series of this name (`name*`: that begins so; none: of any) with these labels among its
/// own.
#[derive(Debug)]
struct Pattern {
    name: String,
    labels: Vec<String>,
}

impl Pattern {
    fn parse(text: &str) -> Self {
        let (name, labels) = text.split_once('{').unwrap_or((text, ""));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        Pattern { name: name.to_owned(), labels: labels.map(str::to_owned).collect() }
    }

    fn matches(&self, series: &str) -> bool {
        let name = series.split('{').next().unwrap_or_default();
        let named = match self.name.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => self.name.is_empty() || name == self.name,
        };
        named && self.labels.iter().all(|label| series.contains(label.as_str()))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)?;
        if self.labels.is_empty() { Ok(()) } else { write!(f, "{{{}}}", self.labels.join(",")) }
    }
}

const SECURITY: &str = include_str!("../../docs/security.md");
const MATRIX: &str = "docs/security-matrix.md";

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Which collectors fail, by their reasons, that of the most first.
fn failing(row: &Row) -> String {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (mode, reason) in &row.outcomes {
        reasons.entry(reason).or_default().push(format!("`{mode}`"));
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, modes)| std::cmp::Reverse(modes.len()));
    let parts: Vec<_> = reasons.iter().map(|(reason, modes)| format!("{reason}: {}", modes.join(", "))).collect();
    if parts.is_empty() { "—".to_owned() } else { parts.join("; ") }
}

/// A row of the tables for people: id, without, collectors that fail, what is lost.
fn told() -> Vec<[&'static str; 4]> {
    let lines = SECURITY.lines().filter(|line| line.starts_with("| `"));
    let cells = lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>());
    cells
        .filter_map(|cells| cells.try_into().ok())
        .filter(|row: &[&str; 4]| KNOWN.contains(&quoted(row[0])[0]))
        .collect()
}

/// Head of the matrix, and its rows.
fn matrix() -> (String, Vec<Row>) {
    let text = std::fs::read_to_string(common::board::project(MATRIX)).unwrap();
    let mut sections = text.split("\n## ");
    let head = sections.next().unwrap().to_owned();
    let rows = sections.map(|section| {
        let (id, rest) = section.split_once('\n').unwrap();
        let mut row = Row { id: id.to_owned(), ..Row::default() };
        let block = rest.split("```").nth(1).unwrap_or_else(|| panic!("{id}: no block"));
        for line in block.lines().skip(1).filter(|line| *line != NOTHING) {
            let (kind, what) = line.split_once(' ').unwrap_or_else(|| panic!("{id}: {line}"));
            let what = what.trim_start();
            match kind {
                "failed" => {
                    let (mode, reason) = what.split_once(' ').unwrap_or_else(|| panic!("{id}: {line}"));
                    row.outcomes.insert(mode.to_owned(), reason.to_owned());
                }
                "missing" => row.missing.push(Pattern::parse(what)),
                "instead" => row.instead.push(Pattern::parse(what)),
                _ => panic!("{id}: {line}"),
            }
        }
        row
    });
    (head, rows.collect())
}

const NOTHING: &str = "nothing";

/// The block of this row, as it stands in the matrix.
fn block(row: &Row) -> String {
    let failed = row.outcomes.iter().map(|(mode, reason)| format!("failed   {mode} {reason}\n"));
    let sorted = |kind: &str, patterns: &[Pattern]| {
        patterns.iter().map(|pattern| format!("{kind}  {pattern}\n")).collect::<BTreeSet<_>>()
    };
    let mut lines: String = failed.collect();
    lines.extend(sorted("missing", &row.missing));
    lines.extend(sorted("instead", &row.instead));
    if lines.is_empty() {
        lines = format!("{NOTHING}\n");
    }
    format!("\n## {}\n\n```text\n{lines}```\n", row.id)
}

/// Labels that say what a series is of; others (a pid, a container's id) differ from run to run.
const TELLING: [&str; 12] =
    ["signal", "role", "comm", "owner", "kind", "state", "source", "object", "phase", "type", "scope", "result"];

/// The fewest patterns for `wanted` that match none of `others`: those that were written and still hold come first.
fn patterns(written: Vec<Pattern>, wanted: &BTreeSet<&String>, others: &BTreeSet<&String>) -> Vec<Pattern> {
    let holds = |pattern: &Pattern| {
        wanted.iter().any(|series| pattern.matches(series)) && !others.iter().any(|series| pattern.matches(series))
    };
    let mut patterns: Vec<Pattern> = written.into_iter().filter(holds).collect();
    for series in wanted {
        if patterns.iter().any(|pattern| pattern.matches(series)) {
            continue;
        }
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels =
            labels.trim_end_matches('}').split("\",").map(|label| format!("{}\"", label.trim_end_matches('"')));
        let telling = labels.filter(|label| TELLING.iter().any(|name| label.starts_with(&format!("{name}=\""))));
        let candidates = std::iter::once(name.to_owned()).chain(telling.map(|label| format!("{name}{{{label}}}")));
        let found = candidates.map(|text| Pattern::parse(&text)).find(holds);
        patterns.push(found.unwrap_or_else(|| Pattern::parse(series)));
    }
    patterns
}

/// This row as the pages have it.
fn seen(row: Row, full: &Page, page: &Page) -> Row {
    let (before, after) = (keys(full), keys(page));
    let missing = before.difference(&after).collect();
    let instead = after.difference(&before).collect();
    let stayed = after.intersection(&before).collect();
    let failed = MODES.iter().map(|mode| mode.id).filter(|mode| page.outcome(mode) == "failed").map(|mode| {
        let reasons = page
            .family("headroom_collector_errors_total")
            .filter(|(series, errors)| *errors > 0.0 && series.contains(&format!("collector=\"{mode}\"")));
        let reason = |series: &str| series.split("reason=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        ((*mode).to_owned(), reasons.map(|(series, _)| reason(series)).next().unwrap_or_default())
    });
    Row {
        outcomes: failed.collect(),
        missing: patterns(row.missing, &missing, &stayed),
        // A series of this name may be there before: what is said is that there are more.
        instead: patterns(row.instead, &instead, &BTreeSet::new()),
        id: row.id,
    }
}

/// What is lost without the rights of this row: its families, and those of the rows that it names.
fn lost(id: &str) -> Vec<Pattern> {
    let told = told();
    let row = told.iter().find(|row| quoted(row[0]) == [id]).unwrap_or_else(|| panic!("no row {id}"));
    let of = |word: &str| if KNOWN.contains(&word) { lost(word) } else { vec![Pattern::parse(word)] };
    quoted(row[3]).into_iter().filter(|word| !word.contains("=\"") || word.contains('{')).flat_map(of).collect()
}

#[test]
fn the_tables_for_people_say_what_the_matrix_says() {
    let (told, (_, rows)) = (told(), matrix());
    let ids = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        ids(told.iter().map(|row| quoted(row[0])[0]).collect()),
        ids(rows.iter().map(|r| r.id.as_str()).collect())
    );
    let (mut wrong, mut text) = (Vec::new(), SECURITY.to_owned());
    for (said, row) in told.iter().zip(&rows) {
        let [id, without, fail, lost_words] = *said;
        let line = format!("| {id} | {without} | {fail} | {lost_words} |");
        assert!(text.contains(&line), "not as the other rows are written: {line}");
        text = text.replace(&line, &format!("| {id} | {without} | {} | {lost_words} |", failing(row)));
        if said[3].len() > 700 {
            wrong.push(format!("{}: {} characters are for nobody to read", row.id, said[3].len()));
        }
        let lost = lost(&row.id);
        // A family covers a pattern whose name it has, and a `*` covers what begins like it.
        let covers = |family: &Pattern, pattern: &Pattern| match family.name.strip_suffix('*') {
            Some(start) => pattern.name.starts_with(start) || start == pattern.name.trim_end_matches('*'),
            None => family.name == pattern.name,
        };
        let every = row.missing.iter().chain(&row.instead);
        wrong.extend(
            row.missing
                .iter()
                .filter(|pattern| !lost.iter().any(|family| covers(family, pattern)))
                .map(|pattern| format!("{}: nobody is told that {pattern} is lost", row.id)),
        );
        let idle = |family: &&Pattern| !every.clone().any(|pattern| covers(family, pattern));
        wrong.extend(lost.iter().filter(idle).map(|family| format!("{}: {family} is not lost", row.id)));
    }
    generated::file("docs/security.md", &text);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What fails without the runtime is what `alerts/exporter` takes for explained by its outage.
#[test]
fn who_fails_without_the_runtime_has_said_so() {
    let (_, rows) = matrix();
    let without = rows.iter().find(|row| row.id == "socket-absent").expect("a row without the runtime");
    let silent: Vec<_> =
        without.outcomes.keys().filter(|id| !MODES.iter().any(|m| m.id == **id && m.needs_runtime)).collect();
    assert!(silent.is_empty(), "they fail without the runtime, and do not say needs_runtime: {silent:?}");
}

/// The lines of the code block of this name.
fn listed(name: &str) -> BTreeSet<&'static str> {
    let (_, block) = SECURITY.split_once(&format!("```text {name}\n")).unwrap_or_else(|| panic!("no block {name}"));
    block.lines().take_while(|line| *line != "```").collect()
}

/// What this row's page says otherwise than the document.
fn differences(row: &Row, full: &Page, page: &Page) -> Vec<String> {
    let mut wrong = Vec::new();
    for mode in MODES.iter().map(|mode| mode.id) {
        let (outcome, reason) = match row.outcomes.get(mode).map(String::as_str) {
            Some("not_applicable") => ("not_applicable", None),
            Some(reason) => ("failed", Some(reason)),
            None => (full.outcome(mode), None),
        };
        if page.outcome(mode) != outcome || reason.is_some_and(|reason| page.errors(mode, reason) == 0.0) {
            wrong.push(format!("{mode}: {} and not {outcome} {reason:?}", page.outcome(mode)));
        }
    }
    let (before, after) = (keys(full), keys(page));
    let matching = |patterns: &[Pattern], series: &str| patterns.iter().any(|pattern| pattern.matches(series));
    for series in before.difference(&after).filter(|series| !matching(&row.missing, series)) {
        wrong.push(format!("missing, and not said to be: {series}"));
    }
    for series in after.difference(&before).filter(|series| !matching(&row.instead, series)) {
        wrong.push(format!("there, and not said to be: {series}"));
    }
    for pattern in &row.missing {
        if !before.iter().any(|series| pattern.matches(series)) {
            wrong.push(format!("would not be there with every right: {pattern:?}"));
        }
        let still = after.intersection(&before).filter(|series| pattern.matches(series));
        wrong.extend(still.map(|series| format!("said to be missing: {series}")));
    }
    let unseen = row.instead.iter().filter(|pattern| !after.difference(&before).any(|series| pattern.matches(series)));
    wrong.extend(unseen.map(|pattern| format!("not there: {pattern:?}")));
    for (series, value) in full.0.iter().filter(|(series, _)| still(series)) {
        if let Some(other) = page.get(series).filter(|other| other != value) {
            wrong.push(format!("{series}: {other} and not {value}"));
        }
    }
    wrong
}

/// Series of what was prepared, which does not move.
fn still(series: &str) -> bool {
    if series == "headroom_inotify_unexamined_fds" {
        // It says how much could not be looked at.
        return false;
    }
    let named = |name: &str| series.contains(&format!("comm=\"{name}\""));
    let of_process = series.starts_with("headroom_process_") && (named("tail") || named("kubelet"));
    let families = [
        "headroom_memory_volume_",
        "headroom_pods_with",
        "headroom_kubepods_cgroups",
        "headroom_inotify_",
        "headroom_eviction_threshold",
    ];
    of_process || families.iter().any(|family| series.starts_with(family))
}

#[test]
fn every_row_of_the_document_is_true() {
    let (head, mut rows) = matrix();
    assert!(rows.len() >= 15, "{} rows in {MATRIX}", rows.len());
    let Some(lab) = Lab::new() else { return };
    let known = KNOWN.iter().copied().collect::<BTreeSet<_>>();
    let written: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(known, written, "rows of the test and of {MATRIX}");

    let full = lab.page(&lab.exporter(&Without { setpriv: words(&["--no-new-privs"]), ..Without::default() }));
    for mode in MODES.iter().map(|mode| mode.id) {
        assert_eq!(full.outcome(mode), "ok", "{mode} with every right");
    }
    let fds = full.family("headroom_process_open_fds").find(|(series, _)| series.contains("comm=\"tail\""));
    assert!(fds.is_some_and(|(_, fds)| fds >= lab::FDS as f64), "{fds:?}");
    let mut wrong = Vec::new();
    let contained = [(0, "0000000000080004"), (65_534, "0000000000000000")].map(|(uid, has)| contained(&lab, uid, has));
    let [of_root, of_nobody] = &contained;
    let update = std::env::var_os("HEADROOM_UPDATE_DOCS").is_some();
    for row in &mut rows {
        let page = match row.id.as_str() {
            // A SKIP was said.
            "seccomp" | "readonly-rootfs" if of_root.is_none() => continue,
            "nobody-in-a-container" if of_nobody.is_none() => continue,
            "seccomp" | "readonly-rootfs" => of_root.as_ref().unwrap(),
            "nobody-in-a-container" => of_nobody.as_ref().unwrap(),
            id => &lab.page(&lab.exporter(&without(id, &lab).unwrap())),
        };
        if update {
            *row = seen(std::mem::take(row), &full, page);
        }
        wrong.extend(differences(row, &full, page).into_iter().map(|what| format!("{}: {what}", row.id)));
    }
    if update {
        let blocks: String = rows.iter().map(block).collect();
        std::fs::write(common::board::project(MATRIX), format!("{head}{blocks}")).unwrap();
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));

    asked_about_a_scraper(&lab);

    // Nothing but what is listed was ever sent, in all these scrapes.
    let paths = lab.runtime.as_ref().unwrap().paths();
    let paths: BTreeSet<&str> = paths.iter().map(String::as_str).collect();
    assert_eq!(paths, listed("runtime"), "what the runtime was asked");
    let seen = lab.apiserver.seen();
    let seen: BTreeSet<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, listed("apiserver"), "what the apiserver and the kubelet were asked");
}

/// The page of the exporter in a container, with the system calls that a runtime leaves it and a root that is
/// read-only. `has`: its capabilities, given both.
fn contained(lab: &Lab, uid: u32, has: &str) -> Option<Page> {
    if let Some(what) = container::lacking() {
        common::say_skip(format_args!("privileges in a container: no {what}"));
        return None;
    }
    let container = lab.container(uid);
    let page = lab.page(&container.exporter);
    let status = container.proc("status");
    let fields: BTreeMap<&str, &str> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
    assert_eq!((fields["Seccomp"], fields["NoNewPrivs"]), ("2", "1"), "{status}");
    // It may have both, and has them only as root: no runtime gives them as ambient ones.
    assert_eq!((fields["CapBnd"], fields["CapEff"], fields["CapPrm"]), ("0000000000080004", has, has));
    let mounts = container.proc("mountinfo");
    let root =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|row| row[4] == "/").expect("a root");
    assert!(root[5].split(',').any(|option| option == "ro"), "{root:?}");
    Some(page)
}

/// Whom `--web.kubernetes-auth` lets in takes two questions, and no answer lets nobody in.
fn asked_about_a_scraper(lab: &Lab) {
    let without = Without { flags: words(&["--web.kubernetes-auth"]), ..Without::default() };
    let exporter = lab.exporter(&without);
    assert_eq!(lab.status(&exporter, None), 401);
    assert_eq!(lab.status(&exporter, Some(apiserver::SCRAPER)), 200);
    assert_eq!(lab.status(&exporter, Some("somebody")), 401);
    drop(exporter);
    for right in ["tokenreviews", "subjectaccessreviews"] {
        let exporter = lab.exporter(&Without { refused: vec![right], ..without.clone() });
        assert_eq!(lab.status(&exporter, Some(apiserver::SCRAPER)), 503, "without the right to create {right}");
    }
    lab.apiserver.refuse(&[]);
}

#[test]
fn docker_is_asked_to_list_and_nothing_else() {
    use headroom::host::{Deadline, Host, Roots};
    use headroom::runtime::{Runtime, Settings};
    use std::io::{Read as _, Write as _};
    use std::sync::{Arc, Mutex};

    let root = tempfile::tempdir().unwrap();
    let seen = Arc::<Mutex<BTreeSet<String>>>::default();
    let writer = Arc::clone(&seen);
    let container = r#"[{"Id":"c0ffee","Names":["/plain"],"ImageID":"sha256:1","State":"running","Labels":{}}]"#;
    let _docker = fake_runtime::Raw::start(&root.path().join("run/docker.sock"), move |mut stream| {
        let (mut request, mut byte) = (Vec::new(), [0]);
        while stream.read(&mut byte).is_ok_and(|read| read == 1) {
            request.push(byte[0]);
            if !request.ends_with(b"\r\n\r\n") {
                continue;
            }
            let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            let asked = line.trim_end_matches(" HTTP/1.1").to_owned();
            let body = match asked.as_str() {
                "GET /version" => r#"{"Version":"20.10.24"}"#,
                "GET /info" => r#"{"DockerRootDir":"/var/lib/docker"}"#,
                "GET /containers/json?all=1" => container,
                _ => "[]",
            };
            writer.lock().unwrap().insert(asked);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            request.clear();
        }
    });
    let host = Host::new(Roots { root: root.path().to_owned(), ..Roots::default() });
    let runtime = Runtime::new(Settings { fresh: std::time::Duration::ZERO, ..Settings::default() });
    for _ in 0..3 {
        let inventory = runtime.inventory(&host, Deadline::after(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!((inventory.containers.len(), inventory.images.is_some()), (1, true));
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed("docker"));
}

#[test]
fn nothing_is_written_signalled_or_traced() {
    if !common::has("strace") {
        skip!("no strace here (Debian: strace)");
    }
    let Some(lab) = Lab::new() else { return };
    let trace = lab.at("trace");
    let calls = "openat,open,openat2,creat,execve,execveat,unlink,unlinkat,mkdir,mkdirat,rmdir,rename,renameat,renameat2,chmod,fchmod,\
        fchmodat,chown,fchown,fchownat,link,linkat,symlink,symlinkat,truncate,ftruncate,kill,tkill,pidfd_send_signal,ptrace,mount,umount2,\
        mknod,mknodat,setns,unshare,bpf,perf_event_open,process_vm_readv,process_vm_writev,setxattr,fsetxattr,utimensat,fallocate";
    let before = ["strace", "-f", "-qq", "-e", &format!("trace={calls}"), "-e", "signal=none", "-o"];
    let before = before.iter().map(|word| (*word).to_owned()).chain([trace.display().to_string()]).collect();
    let exporter = lab.exporter(&Without { before, ..Without::default() });
    for _ in 0..5 {
        lab.page(&exporter);
    }
    let text = std::fs::read_to_string(&trace).unwrap();
    let start = text.find(&format!("execve(\"{}\"", lab.at("exporter").display())).expect("the exporter was traced");
    let lines: Vec<&str> = text[start..].lines().skip(1).collect();
    assert!(lines.iter().any(|line| line.contains("/sys/kernel/osrelease")), "it did read: {lines:#?}");
    let reads = |line: &str| {
        let opens = ["openat(", "open(", "openat2("].iter().any(|call| line.contains(call));
        // The second half of a call that another thread interrupted has no flags of its own.
        line.contains(" resumed>")
            || opens && !["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"].iter().any(|flag| line.contains(flag))
    };
    let wrong: Vec<_> = lines.into_iter().filter(|line| !reads(line) && !line.contains("\"/dev/null\"")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
