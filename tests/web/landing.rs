//! `/` of the running exporter: the doctor's verdicts, within the deadline, in a real browser.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use headroom::modes::MODES;
use headroom::report::{self, Report, html};
use headroom::verdict::{History, Labels, Level, Limits, NAME};

use crate::common::browser::{self, Picture, Scheme};
use crate::common::hung;
use crate::common::hungry::Hungry;
use crate::common::recorded::{self, Page, Recorded};
use crate::common::{self, Exporter, eventually, has, is_root};

/// Nobody's runtime, nobody's apiserver: what the machine has of either must not decide a test.
const ALONE: [&str; 3] = ["--no-runtime", "--apiserver.url=off", "--kubelet.url=off"];

/// Class of each mode's article.
fn verdicts(page: &str) -> BTreeMap<&str, &str> {
    let articles = page.split("<article id=\"").skip(1);
    articles
        .map(|article| {
            let (mode, rest) = article.split_once("\" class=\"").unwrap();
            (mode, rest.split('"').next().unwrap())
        })
        .collect()
}

#[test]
fn it_says_what_the_doctor_says() {
    alone!();
    if !has("python3") {
        skip!("python3 is not installed");
    }
    let hungry = Hungry::new();
    let exporter = Exporter::start(&ALONE);
    let doctor = Command::new(env!("CARGO_BIN_EXE_headroom-exporter"))
        .args(["doctor", "--for=1s", "--json"])
        .args(ALONE)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let answer = exporter.get("/", &[]);
    let page = answer.text();
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let class = |verdict: &str| match verdict {
        "act_now" => "act",
        "cannot_tell" => "blind",
        "watch" => "watch",
        "ok" => "ok",
        other => panic!("{other}"),
    };
    let modes = report["modes"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let doctors: BTreeMap<String, &str> =
        modes.iter().map(|mode| (text(&mode["mode"]), class(mode["verdict"].as_str().unwrap()))).collect();
    let own: BTreeMap<String, &str> =
        verdicts(&page).into_iter().map(|(mode, class)| (mode.to_owned(), class)).collect();
    assert_eq!(own, doctors);
    assert_eq!(own["open_files"], "act", "the made situation");
    let order: Vec<&str> = page.split("<article id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    // Whatever else this machine is near, as a disk that is nearly full.
    let worst = order.iter().take_while(|mode| own[**mode] == "act").count();
    assert!(order[..worst].contains(&"open_files"), "the worst first: {order:?}");
    assert!(order[worst..].iter().all(|mode| own[*mode] != "act"), "{order:?} {own:?}");

    // The finding, with its evidence, its cure and its runbook.
    let pid = hungry.0.id();
    for part in [
        &format!("pid=&quot;{pid}&quot;"),
        "HeadroomProcessNearFdLimit",
        "<details open>",
        "<h4>Next</h4>",
        "<h4>Look</h4>\n<pre>",
        "alerts/open_files/runbook.md#",
        "href=\"/metrics?collect[]=kmem\"",
        "href=\"/metrics\"",
        "href=\"/healthz\"",
        "href=\"/readyz\"",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let node = text(&report["node"]);
    assert!(page.contains(&format!("<title>ACT NOW · {node} · headroom</title>")), "{page}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(page.contains(&format!("Linux {}", release.trim())));

    // Nothing to run, nothing to load, nothing to leak.
    for part in ["<script", " src=", "@import", "url(", "javascript:", "style=", "onclick"] {
        assert!(!page.contains(part), "{part}");
    }
    assert_eq!(answer.header("content-security-policy"), Some(html::POLICY));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn what_is_switched_off_is_said_to_be_off() {
    alone!();
    let exporter = Exporter::start(&[&ALONE[..], &["--no-collector.kmem"]].concat());
    let page = exporter.get("/", &[]).text();
    assert_eq!(verdicts(&page)["kmem"], "off");
    assert!(page.contains("1 switched off") && !page.contains("collect[]=kmem"), "{page}");
    assert!(page.rfind("<article id=\"kmem\"") > page.rfind("<article id=\"open_files\""), "it comes last");
    let bare: Vec<String> = MODES.iter().map(|mode| format!("--no-collector.{}", mode.id)).collect();
    let bare: Vec<&str> = bare.iter().map(String::as_str).collect();
    let page = Exporter::start(&bare).get("/", &[]).text();
    assert!(page.contains("<title>off · ") && page.contains(&format!("{} switched off", MODES.len())), "{page}");
}

#[test]
fn a_hung_collector_costs_its_own_verdict() {
    alone!();
    if !is_root() {
        skip!("root is needed to mount a FUSE file system");
    }
    let Ok(hung) = hung::HungFilesystem::mount() else { skip!("this kernel cannot mount FUSE (/dev/fuse)") };
    let root_dir = format!("--kubelet.root-dir={}", hung.path().display());
    let exporter = Exporter::start(&[&ALONE[..], &[&root_dir, "--web.scrape-timeout=2s"]].concat());
    for _ in 0..3 {
        let begun = Instant::now();
        let page = exporter.get("/", &[]).text();
        assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
        let verdicts = verdicts(&page);
        assert_eq!((verdicts.len(), verdicts["eviction"]), (MODES.len(), "blind"), "{page}");
        assert_ne!(verdicts["kmem"], "blind");
        assert!(page.contains("<h4>Not read</h4>"), "{page}");
    }
    let threads = || std::fs::read_dir(format!("/proc/{}/task", exporter.pid())).unwrap().count();
    let before = threads();
    // A page takes a thread more whenever a mode holds up the others, and those wait for the next one: never more than
    // there are modes.
    for _ in 0..2 * MODES.len() {
        exporter.get("/", &[]);
    }
    assert!(threads() <= before + MODES.len() + 2, "threads grow: {before}, {}", threads());
}

#[test]
fn without_a_free_permit_it_shows_what_it_has_and_says_how_old_that_is() {
    alone!();
    if !is_root() {
        skip!("root is needed to mount a FUSE file system");
    }
    let dir = tempfile::tempdir().unwrap();
    let root_dir = format!("--kubelet.root-dir={}", dir.path().display());
    let arguments = [&root_dir, "--web.scrape-timeout=4s", "--web.max-requests=1"];
    let exporter = Exporter::start(&[&ALONE[..], &arguments].concat());
    eventually("the first scrape is over", || exporter.get("/readyz", &[]).status == 200);
    let fresh = exporter.get("/", &[]).text();
    assert!(!fresh.contains("No scrape could be had now"), "{fresh}");
    // Of two at once one holds the only permit, and waits for a file system.
    let Ok(_hung) = hung::HungFilesystem::mount_at(dir.path()) else {
        skip!("this kernel cannot mount FUSE (/dev/fuse)")
    };
    let address = exporter.address;
    let asking = [(); 2].map(|()| std::thread::spawn(move || common::get(address, "/", &[]).text()));
    let pages = asking.map(|asking| asking.join().unwrap());
    let old: Vec<_> = pages.iter().filter(|page| page.contains("No scrape could be had now")).collect();
    assert_eq!(old.len(), 1, "{pages:?}");
    assert_eq!(verdicts(old[0]).len(), MODES.len());
    assert_ne!(verdicts(old[0])["eviction"], "blind", "it is from before: {}", old[0]);
}

/// A node as it was recorded, scraped every minute for some minutes; what a counter counts goes on on a failing one.
fn recorded_report(recorded: Recorded, node: &str) -> (Report, usize) {
    let page = recorded.page();
    let mut history = History::new(node, Limits::default());
    let (minutes, failing) = (15, recorded == Recorded::Failing);
    let mut at = recorded::start();
    for minute in 0..=minutes {
        at = recorded::start() + Duration::from_secs(60 * minute);
        let grown = |(labels, value): (&Labels, &f64)| {
            let grows = failing && labels.get(NAME).ends_with("_total");
            (labels.clone(), if grows { value + value.max(1.0) * minute as f64 } else { *value })
        };
        recorded::add(&mut history, at, &page.iter().map(grown).collect::<Page>());
    }
    let kernel = page.keys().find(|labels| labels.get(NAME) == "headroom_kernel_info");
    let report = Report {
        node: node.to_owned(),
        kernel: kernel.map(|labels| labels.get("release").to_owned()),
        at,
        sampled: Duration::from_secs(60 * minutes),
        rows: report::rows(&[], &history, at, None),
    };
    (report, history.pages())
}

fn render(report: &Report, pages: usize) -> String {
    html::render(report, html::Site { telemetry_path: "/metrics", uptime: None, pages, age: None })
}

#[test]
fn it_is_small() {
    let (report, pages) = recorded_report(Recorded::Healthy, "worker-3");
    assert_eq!(report.level(), Level::Ok);
    let size = render(&report, pages).len();
    assert!(size < 16 << 10, "{size} bytes when all is well");
    let (report, pages) = recorded_report(Recorded::Failing, "worker-7");
    assert!(report.rows.iter().all(|row| row.verdict.level >= Level::Watch), "everything fails");
    let size = render(&report, pages).len();
    assert!(size < 60 << 10, "{size} bytes when all fails");
}

/// Names that a process, a pod or a text of the system may have.
const ODD: &str = "<script>alert(1)</script>\"'&\u{1b}[31m\u{202e}\u{0}é";

#[test]
fn what_comes_from_the_machine_is_text() {
    let mut page = Recorded::Failing.page();
    let odd = |(labels, value): (Labels, f64)| {
        let odd = ["comm", "pod", "volume", "peer", "device"];
        let pairs = labels.iter().map(|(name, value)| (name, if odd.contains(&name) { ODD } else { value }));
        (Labels::from_pairs(pairs.collect::<Vec<_>>()), value)
    };
    page = page.into_iter().map(odd).collect();
    let mut history = History::new("n", Limits::default());
    recorded::add(&mut history, recorded::start(), &page);
    let rows = report::rows(&[], &history, recorded::start(), None);
    let mut report =
        Report { node: ODD.into(), kernel: Some(ODD.into()), at: recorded::start(), sampled: Duration::ZERO, rows };
    report.rows[0].unread.push(ODD.into());
    let page = render(&report, 1);
    assert!(!page.contains("<script") && !page.contains("&\u{1b}") && !page.contains(['\u{1b}', '\u{202e}', '\0']));
    let safe = "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;\u{fffd}[31m\u{fffd}\u{fffd}é";
    assert!(page.matches(safe).count() >= 3, "{page}");
    assert!(page.contains("comm=&quot;&lt;script&gt;"), "evidence");
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let file = dir.join(name);
    std::fs::write(&file, text).unwrap();
    format!("file://{}", file.display())
}

/// A colour of the style: the first one is the light one.
fn color(name: &str, scheme: Scheme) -> &'static str {
    let found = html::STYLE.split(&format!("--{name}:")).nth(if scheme == Scheme::Light { 1 } else { 2 }).unwrap();
    &found[..7]
}

#[test]
fn a_real_browser_shows_it_in_light_and_dark() {
    alone!();
    if !has("chromium") {
        skip!("chromium (Debian package) is not installed");
    }
    if !has("python3") {
        skip!("python3 is not installed");
    }
    let _hungry = Hungry::new();
    let exporter = Exporter::start(&ALONE);
    let dir = tempfile::tempdir().unwrap();
    for scheme in [Scheme::Light, Scheme::Dark] {
        let url = format!("http://{}/", exporter.address);
        let shot = browser::picture(&url, scheme, (1280, 900), &dir.path().join("shot.png"));
        assert_eq!((shot.width, shot.height), (1280, 900));
        // The style is applied, so the policy knows it; a page without it is white with black serifs.
        for (name, least) in [("bg", 50_000), ("card", 100_000), ("act-bg", 1_000)] {
            let count = shot.count(color(name, scheme));
            assert!(count >= least, "{scheme:?}: {count} pixels of {name}");
        }
        let other = if scheme == Scheme::Light { Scheme::Dark } else { Scheme::Light };
        assert_eq!(shot.count(color("bg", other)), 0, "{scheme:?}");
    }
}

/// A page that shows another one in a frame of some width, and then says how wide that one's content is and what sticks
/// out.
fn framed(page: &str, width: u32, height: u32, measure: bool) -> String {
    let inner = page.replace('&', "&amp;").replace('"', "&quot;");
    let script = if measure {
        "<script>onload=()=>{const d=frames[0].document,w=d.documentElement.scrollWidth,c=d.documentElement.clientWidth;\
         d.querySelectorAll('details').forEach(e=>e.open=true);\
         const out=[...d.body.querySelectorAll('*')].filter(e=>e.getBoundingClientRect().right>c+.5).map(e=>e.tagName+' '+e.className);\
         document.body.innerHTML='<p id=found>'+d.documentElement.scrollWidth+' of '+c+' '+d.querySelectorAll('article').length+' '+out.join(', ')+'</p>'}</script>"
    } else {
        ""
    };
    format!(
        "<!DOCTYPE html><meta charset=utf-8><style>body{{margin:24px 70px;background:#8b9199}}iframe{{border:0;border-radius:14px}}</style>{script}\
         <iframe width={width} height={height} srcdoc=\"{inner}\"></iframe>"
    )
}

#[test]
fn nothing_sticks_out_on_a_telephone() {
    if !has("chromium") {
        skip!("chromium (Debian package) is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let found = |page: &str, width: u32| {
        let dom = browser::dom(&write(dir.path(), "frame.html", &framed(page, width, 800, true)));
        let found = dom.split("<p id=\"found\">").nth(1).unwrap_or_else(|| panic!("{dom}"));
        found.split("</p>").next().unwrap().to_owned()
    };
    let (failing, pages) = recorded_report(Recorded::Failing, "ip-10-250-133-217.eu-central-1.compute.internal");
    let failing = render(&failing, pages);
    for width in [360, 1280] {
        assert_eq!(found(&failing, width), format!("{width} of {width} {} ", MODES.len()));
    }
    // The witness can tell: with words that cannot be broken something does stick out.
    let broken = failing.replace("overflow-wrap:anywhere", "").replace("pre-wrap", "pre");
    assert!(!found(&broken, 360).starts_with("360 of 360 "), "{}", found(&broken, 360));
}

fn image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images").join(name)
}

/// A picture in docs/doctor.md, of a recorded node.
struct Shot {
    name: &'static str,
    recorded: Recorded,
    node: &'static str,
    scheme: Scheme,
    size: (u32, u32),
}

const SHOTS: [Shot; 4] = [
    Shot {
        name: "landing-healthy.png",
        recorded: Recorded::Healthy,
        node: "worker-3",
        scheme: Scheme::Light,
        size: (1000, 800),
    },
    Shot {
        name: "landing-failing.png",
        recorded: Recorded::Failing,
        node: "worker-7",
        scheme: Scheme::Light,
        size: (1000, 780),
    },
    Shot {
        name: "landing-failing-dark.png",
        recorded: Recorded::Failing,
        node: "worker-7",
        scheme: Scheme::Dark,
        size: (1000, 780),
    },
    Shot {
        name: "landing-phone.png",
        recorded: Recorded::Failing,
        node: "worker-7",
        scheme: Scheme::Light,
        size: (500, 830),
    },
];

/// HEADROOM_UPDATE_DOCS=1 takes them anew.
#[test]
fn the_pictures_in_the_documentation() {
    if std::env::var_os("HEADROOM_UPDATE_DOCS").is_some() {
        assert!(has("chromium"), "chromium (Debian package) takes the pictures");
        let dir = tempfile::tempdir().unwrap();
        for Shot { name, recorded, node, scheme, size } in SHOTS {
            let (report, pages) = recorded_report(recorded, node);
            let page = render(&report, pages);
            let page = if size.0 < 600 { framed(&page, 360, size.1 - 48, false) } else { page };
            browser::picture(&write(dir.path(), "page.html", &page), scheme, size, &image(name));
        }
    }
    let documentation = std::fs::read_to_string(image("../doctor.md")).unwrap();
    for Shot { name, size: (width, height), .. } in SHOTS {
        let png = std::fs::read(image(name)).unwrap();
        assert!(png.len() < 150_000, "{name}: {} bytes", png.len());
        let picture = Picture::decode(&png);
        assert_eq!((picture.width, picture.height), (width as usize, height as usize), "{name}");
        assert!(documentation.contains(&format!("images/{name}")), "{name} is not in docs/doctor.md");
    }
}
