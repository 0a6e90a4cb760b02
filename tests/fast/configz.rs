//! `/configz` of the running kubelet as the first source: what is made of it, whom it is asked of, and what becomes of
//! the token.
//!
//! The kubelet is a TLS server of our own; its answers are those that real ones gave
//! (`fixtures/eviction/configz-matrix`, `fixtures/node`).
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom::error::{Error, Reason};
use headroom::host::{Deadline, Host};
use headroom::kubelet::configuration::{Configuration, KubeletInputs, Text};
use headroom::kubelet::configz::{Address, Answer, Ask, Configz, Settings, drift};
use headroom::kubelet::flags::Flags;
use headroom::kubelet::handle;
use headroom::kubelet::process::KubeletProcess;
use headroom::metric::Samples;
use headroom::modes::{self, Context, eviction};
use headroom::services::Services;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

use crate::common::tls_server::{Act, Authority, Identity, Server};
use crate::machine::Files;

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.secret-of-the-first-hour.sig";

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a node 1.36 answered.
fn recorded() -> String {
    text(&fixture("node/k8s-1.36-cgroupv2/kubelet-http/configz.json"))
}

/// A machine made of files, and the files that we ourselves are given.
struct Machine {
    files: Files,
}

impl Machine {
    fn new() -> Self {
        let machine = Machine { files: Files::new() };
        machine.files.limit_pods();
        machine.write("proc/sys/kernel/hostname", "Node-7\n");
        machine.write("root/var/lib/kubelet/x", "");
        machine.write("token", &format!("{TOKEN}\n"));
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.files.path(path)
    }

    fn write(&self, path: &str, text: &str) {
        self.files.write(path, text);
    }

    fn host(&self) -> Host {
        self.files.host()
    }

    /// A kubelet process that started at this clock tick.
    fn kubelet(&self, started: u64, flags: &[&str]) {
        let mut line = vec!["/usr/bin/kubelet"];
        line.extend(flags);
        self.write("proc/1234/comm", "kubelet\n");
        let nothing = "0 ".repeat(17);
        self.write("proc/1234/stat", &format!("1234 (kubelet) S 1 {nothing}{started} 0 0\n"));
        self.write("proc/1234/cmdline", &(line.join("\0") + "\0"));
    }

    /// Asks this server, whom `pem` signed.
    fn settings(&self, server: &Server, pem: &str) -> Settings {
        self.write("ca.crt", pem);
        Settings {
            ask: Ask::At(Address::kubelet(&server.url()).unwrap()),
            token_file: Some(self.path("token")),
            ca_file: Some(self.path("ca.crt")),
            interval: Duration::ZERO,
            ..Settings::default()
        }
    }

    fn collector(&self, configz: Settings) -> Box<dyn modes::Collector> {
        let services = Services::with_kubelet(handle::Settings { configz, ..handle::Settings::default() });
        (eviction::MODE.build)(&Default::default(), &services)
    }

    fn page(&self, collector: &dyn modes::Collector) -> Samples {
        let host = self.host();
        let mut samples = collector.collect(Context::new(&host, soon())).unwrap();
        samples.refuse_undeclared(eviction::MODE.metrics);
        samples.refuse_duplicates();
        samples
    }

    fn ask(&self, configz: &Configz) -> Answer {
        let host = self.host();
        let kubelet = KubeletProcess { pid: 1234, arguments: Vec::new(), ..KubeletProcess::default() };
        let kubelet = self.path("proc/1234/stat").exists().then_some(kubelet);
        configz.ask(&host, kubelet.as_ref(), None, || None, soon())
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn rows(samples: &Samples) -> Vec<(&'static str, String, f64)> {
    let config = ["headroom_eviction_config_info", "headroom_eviction_config_drift"];
    let rows = samples.rows().iter().filter(|row| !config.contains(&row.metric.name));
    rows.map(|row| (row.metric.name, row.labels.join("|"), row.value)).collect()
}

fn sources(samples: &Samples) -> Vec<String> {
    let rows = samples.rows().iter().filter(|row| row.metric.name == "headroom_eviction_config_info");
    rows.map(|row| row.labels.join(" ")).collect()
}

/// The drifts on a page, as `signal type running → configured`, those that are none left out; and how many were
/// compared.
fn drifts(samples: &Samples) -> (Vec<String>, usize) {
    let rows: Vec<_> =
        samples.rows().iter().filter(|row| row.metric.name == "headroom_eviction_config_drift").collect();
    let differing = rows.iter().filter(|row| row.value == 1.0);
    let shown =
        differing.map(|row| format!("{} {} {} → {}", row.labels[0], row.labels[1], row.labels[2], row.labels[3]));
    (shown.collect(), rows.len())
}

fn failure(answer: &Answer) -> &Error {
    answer.error.as_ref().expect("a failure")
}

/// What was told to the kubelet of a fixture, by its files and flags.
fn told(flags: &str, config: Option<&Path>, dropins: Option<&Path>) -> KubeletInputs {
    let file = |path: PathBuf| Text { text: text(&path), path };
    let mut names: Vec<PathBuf> = dropins
        .into_iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    KubeletInputs {
        flags: Some(Flags::parse(flags.lines())),
        file: config.map(|path| file(path.to_owned())),
        dropins: dropins.map(|_| names.into_iter().map(file).collect()),
        version: None,
    }
}

/// A recorded configz with what its kubelet was told.
struct Case {
    name: String,
    configz: String,
    flags: String,
    config: Option<PathBuf>,
    dropins: Option<PathBuf>,
}

fn cases() -> Vec<Case> {
    let existing = |path: PathBuf| path.exists().then_some(path);
    let mut cases = Vec::new();
    for case in std::fs::read_dir(fixture("eviction/configz-matrix")).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(configz) = existing(case.join("configz.json")) else { continue };
        let (config, dropins) = (existing(case.join("config.yaml")), existing(case.join("conf.d")));
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let (configz, flags) = (text(&configz), text(&case.join("flags.txt")));
        cases.push(Case { name, configz, flags, config, dropins });
    }
    for name in ["k8s-1.36-cgroupv1", "k8s-1.36-cgroupv2"] {
        let node = fixture("node").join(name);
        let configz = text(&node.join("kubelet-http/configz.json"));
        let (config, dropins) = (node.join("config/kubelet-config.yaml"), node.join("config/kubelet.conf.d"));
        let (config, dropins) = (Some(config), Some(dropins));
        cases.push(Case { name: name.to_owned(), configz, flags: String::new(), config, dropins });
    }
    assert_eq!(cases.len(), 12);
    cases
}

#[test]
fn the_kubelets_word_equals_what_we_make_of_its_files() {
    for Case { name, configz, flags, config, dropins } in cases() {
        let running = Configuration::of_configz(&configz).unwrap();
        let mut ours = told(&flags, config.as_deref(), dropins.as_deref()).effective().unwrap();
        // A default that the kubelet fills in, and we do not, because it proves nothing about the runtime here.
        let endpoint = ours.runtime_endpoint.get_or_insert_with(|| "unix:///run/containerd/containerd.sock".to_owned());
        assert!(endpoint.starts_with("unix://"), "{name}");
        // The one that it has signed itself it names there too. Where it listens was not recorded with its flags.
        ours.tls_cert_file = ours.tls_cert_file.or_else(|| running.tls_cert_file.clone());
        if config.is_none() {
            (ours.address, ours.port) = (running.address.clone(), running.port);
        }
        assert_eq!(running, ours, "{name}");
        let drift = drift::compare(&running, &ours).unwrap();
        assert!(drift.iter().all(|row| !row.differs && row.running == row.configured), "{name}: {drift:?}");
    }
}

#[test]
fn the_page_is_the_same_by_either_way() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close);
    for Case { name, configz, flags, config, dropins } in cases() {
        let machine = Machine::new();
        let mut flags: Vec<&str> = flags.lines().filter(|line| !line.is_empty()).collect();
        if let Some(path) = config {
            machine.write("root/etc/config.yaml", &text(&path));
            flags.push("--config=/etc/config.yaml");
        }
        for entry in dropins.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()) {
            let path = entry.unwrap().path();
            machine.write(&format!("root/etc/conf.d/{}", path.file_name().unwrap().to_str().unwrap()), &text(&path));
        }
        if dropins.is_some() {
            flags.push("--config-dir=/etc/conf.d");
        }
        machine.kubelet(7, &flags);
        let by_files = machine.page(&*machine.collector(Settings::default()));
        server.act(Act::configz(&configz));
        let by_word = machine.page(&*machine.collector(machine.settings(&server, &ca.pem)));
        assert!(by_word.errors().is_empty(), "{name}: {:?}", by_word.errors());
        assert_eq!(rows(&by_word), rows(&by_files), "{name}");
        let (differing, compared) = drifts(&by_word);
        assert!(differing.is_empty() && compared >= 2, "{name}: {differing:?}");
        assert_eq!(drifts(&by_files).1, 0, "{name}: nothing to compare with");
        let (first, rest) = (sources(&by_word).remove(0), &sources(&by_word)[1..]);
        assert_eq!(first, format!("configz {}/configz", server.url()), "{name}");
        assert_eq!(rest, sources(&by_files), "{name}");
    }
}

#[test]
fn what_is_no_configz_is_refused() {
    let refused = |text: &str| Configuration::of_configz(text).unwrap_err();
    for text in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"kubeletconfig": []}"#,
        r#"{"kubeletconfig": {}}"#,
        r#"{"kubeletconfig":{"imageGCHighThresholdPercent":"85"}}"#,
    ] {
        assert_eq!(refused(text).reason(), Reason::Malformed, "{text}");
    }
    let least = r#"{"kubeletconfig": {"imageGCHighThresholdPercent": 85, "evictionHard": null}}"#;
    let least = Configuration::of_configz(least).unwrap();
    assert!(least.eviction_hard.is_empty(), "null: none, and not the defaults");
    assert!(least.enforce_node_allocatable.is_empty(), "not written because it is empty");
}

#[test]
fn drift_is_a_difference_of_meaning() {
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let of = |yaml: &str| {
        let file = Some(Text { path: "/k".into(), text: format!("{head}{yaml}") });
        KubeletInputs { flags: Some(Flags::default()), file, ..KubeletInputs::default() }.effective().unwrap()
    };
    let vectors: [(&str, &str, &[&str]); 10] = [
        ("evictionHard: {memory.available: 1Gi}", "evictionHard: {memory.available: 1024Mi}", &[]),
        ("evictionHard: {nodefs.available: 10%}", "evictionHard: {nodefs.available: 10.0%}", &[]),
        ("evictionHard: {nodefs.available: 0%}", "evictionHard: {}", &[]),
        ("evictionHard: {containerfs.available: 1%}", "evictionHard: {}", &[]),
        (
            "evictionHard: {nodefs.available: 10%}",
            "evictionHard: {nodefs.available: 15%}",
            &["nodefs.available hard 10% → 15%"],
        ),
        (
            "evictionHard: {nodefs.available: 10%, pid.available: 5%}",
            "evictionHard: {memory.available: 100Mi, nodefs.available: 10%}",
            &["memory.available hard none → 100Mi", "pid.available hard 5% → none"],
        ),
        (
            "evictionHard: {memory.available: 100Mi}",
            "evictionHard: {memory.available: 100Mi}\nevictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 1m30s}",
            &["memory.available soft none → 1Gi for 1m30s"],
        ),
        (
            "evictionHard: {}\nevictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 90s}",
            "evictionHard: {}\nevictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 2m}",
            &["memory.available soft 1Gi for 90s → 1Gi for 2m"],
        ),
        (
            "evictionHard: {}\nevictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 90s}",
            "evictionHard: {}\nevictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 1m30s}",
            &[],
        ),
        (
            "imageGCHighThresholdPercent: 85",
            "imageGCHighThresholdPercent: 90\nimageGCLowThresholdPercent: 70",
            &["imagefs.available image_gc_high 85% → 90%", "imagefs.available image_gc_low 80% → 70%"],
        ),
    ];
    for (running, configured, expected) in vectors {
        let rows = drift::compare(&of(running), &of(configured)).unwrap();
        let shown: Vec<String> = rows
            .iter()
            .filter(|row| row.differs)
            .map(|row| format!("{} {} {} → {}", row.signal.as_str(), row.kind, row.running, row.configured))
            .collect();
        assert_eq!(shown, expected, "{running} / {configured}");
    }
}

#[test]
fn the_token_goes_to_who_verifies_and_to_nobody_else() {
    let (cluster, other) = (Authority::new("cluster"), Authority::new("other"));
    let machine = Machine::new();
    let answer = |server: &Server, settings: Settings| {
        let answer = machine.ask(&Configz::new(settings));
        let shown = format!("{:?}", answer.error);
        assert!(!shown.contains("secret"), "{shown}");
        (answer, server.heads())
    };
    let bearer = |head: &str| {
        head.lines()
            .any(|line| line.to_ascii_lowercase() == format!("authorization: bearer {}", TOKEN.to_ascii_lowercase()))
    };

    // For the address, for the machine's own name (loopback only), for a name that was asked for.
    for (names, wanted) in [(["127.0.0.1"], None), (["node-7"], None), (["kubelet.example"], Some("kubelet.example"))] {
        let server = Server::start(&cluster.issue(&names), Act::configz(&recorded()));
        let settings = Settings { server_name: wanted.map(str::to_owned), ..machine.settings(&server, &cluster.pem) };
        let (answer, heads) = answer(&server, settings);
        assert_eq!(answer.error, None, "{names:?}");
        assert!(answer.running.is_some());
        assert!(
            heads.len() == 1 && bearer(&heads[0]) && heads[0].starts_with("GET /configz HTTP/1.1\r\n"),
            "{heads:?}"
        );
        assert!(heads[0].to_ascii_lowercase().contains(&format!("host: {}\r\n", server.address)));
    }

    let untrusted = [
        (other.issue(&["127.0.0.1"]), None, "--kubelet.ca-file"),
        (Identity::self_signed(&["127.0.0.1"]), None, "--kubelet.ca-file"),
        (cluster.issue(&["node-8"]), None, "--kubelet.server-name"),
        (cluster.issue(&["127.0.0.1"]), Some("node-7"), "--kubelet.server-name"),
    ];
    for (identity, name, advice) in untrusted {
        let server = Server::start(&identity, Act::configz(&recorded()));
        let settings = Settings { server_name: name.map(str::to_owned), ..machine.settings(&server, &cluster.pem) };
        let (answer, heads) = answer(&server, settings);
        assert_eq!(server.connections(), 1);
        assert!(heads.is_empty(), "not a byte of a request: {heads:?}");
        assert_eq!(answer.running, None);
        let text = failure(&answer).to_string();
        assert_eq!(failure(&answer).reason(), Reason::Denied, "{text}");
        for word in ["does not verify", advice, "--kubelet.insecure-skip-verify", "the token was not sent"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    // Only that flag makes it go there.
    let server = Server::start(&Identity::self_signed(&["elsewhere"]), Act::configz(&recorded()));
    let settings = Settings { insecure_skip_verify: true, ca_file: None, ..machine.settings(&server, "") };
    let (answer, heads) = answer(&server, settings);
    assert!(answer.running.is_some() && bearer(&heads[0]), "{:?}", answer.error);
}

#[test]
fn a_redirect_is_not_followed() {
    let ca = Authority::new("cluster");
    let identity = ca.issue(&["127.0.0.1"]);
    let elsewhere = Server::start(&identity, Act::configz(&recorded()));
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let location =
            format!("HTTP/1.1 {status}\r\nLocation: {}/configz\r\nContent-Length: 0\r\n\r\n", elsewhere.url());
        let server = Server::start(&identity, Act::Say(location.into_bytes()));
        let machine = Machine::new();
        let answer = machine.ask(&Configz::new(machine.settings(&server, &ca.pem)));
        assert_eq!((failure(&answer).reason(), answer.running.is_some()), (Reason::Malformed, false), "{status}");
        assert!(failure(&answer).to_string().contains("redirect"));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn what_a_kubelet_may_answer_instead() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close);
    let machine = Machine::new();
    let huge_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let promised = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{{", 50 << 20);
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"kubeletconfig\"";
    let unknown =
        r#"{"kubeletconfig": {"imageGCHighThresholdPercent": 85, "evictionHard": {"swap.available": "1Gi"}}}"#;
    let acts = [
        (Act::answer("401 Unauthorized", "Unauthorized"), Reason::Denied, "does not accept the token"),
        (Act::answer("403 Forbidden", "Forbidden"), Reason::Denied, "verb get on nodes/configz"),
        (Act::answer("500 Internal Server Error", "oops"), Reason::Io, "500"),
        (Act::answer("429 Too Many Requests", ""), Reason::Io, "429"),
        (Act::answer("204 No Content", ""), Reason::Io, "204"),
        (Act::configz("<html>"), Reason::Malformed, "not JSON"),
        (Act::configz("{}"), Reason::Malformed, "no kubeletconfig"),
        (Act::configz(&"[".repeat(1 << 20)), Reason::Malformed, "not JSON"),
        (Act::configz(unknown), Reason::Malformed, "swap.available"),
        (Act::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec()), Reason::Malformed, "not text"),
        (Act::Say(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), Reason::Malformed, "HTTP"),
        (Act::Say(huge_head.into_bytes()), Reason::Malformed, "HTTP"),
        (Act::Say(promised.into_bytes()), Reason::Malformed, "larger than"),
        (Act::Pour(50 << 20), Reason::Malformed, "larger than"),
        (Act::Say(cut.into()), Reason::Io, "HTTP"),
        (Act::Plain, Reason::Malformed, "TLS"),
        (Act::Close, Reason::Io, "HTTP"),
    ];
    for (index, (act, reason, words)) in acts.into_iter().enumerate() {
        server.act(act);
        let answer = machine.ask(&Configz::new(machine.settings(&server, &ca.pem)));
        let text = failure(&answer).to_string();
        assert_eq!(failure(&answer).reason(), reason, "{index}: {text}");
        assert!(text.contains(words) && !text.contains("secret") && !text.contains('\n'), "{index}: {text}");
        assert_eq!(answer.running, None);
    }
    // 404: enableDebuggingHandlers is false there. Nothing failed, there is just nobody who says it.
    server.act(Act::answer("404 Not Found", "404 page not found"));
    assert_eq!(machine.ask(&Configz::new(machine.settings(&server, &ca.pem))), Answer::default());
}

#[test]
fn who_never_answers_costs_the_deadline() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::Close);
    let machine = Machine::new();
    for (act, phase) in [(Act::Listen, "no answer"), (Act::Ignore, "TLS handshake")] {
        server.act(act);
        let configz = Configz::new(machine.settings(&server, &ca.pem));
        let answer = configz.ask(&machine.host(), None, None, || None, Deadline::after(Duration::from_secs(1)));
        assert_eq!(failure(&answer).reason(), Reason::Timeout);
        assert!(failure(&answer).to_string().contains(phase), "{}", failure(&answer));
    }
}

#[test]
fn it_is_asked_once_per_process() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::configz(&recorded()));
    let machine = Machine::new();
    machine.kubelet(7, &[]);
    let day = Duration::from_secs(86_400);
    let configz = Configz::new(Settings { interval: day, ..machine.settings(&server, &ca.pem) });
    for _ in 0..5 {
        assert!(machine.ask(&configz).running.is_some());
    }
    assert_eq!(server.connections(), 1);
    // Same pid, another process: the answer of the first says nothing about it.
    machine.kubelet(8, &[]);
    server.act(Act::answer("403 Forbidden", ""));
    for _ in 0..5 {
        let answer = machine.ask(&configz);
        assert_eq!((answer.running.is_some(), failure(&answer).reason()), (false, Reason::Denied));
    }
    assert_eq!(server.connections(), 2, "after a failure it is left alone for a while");
    machine.kubelet(9, &[]);
    server.act(Act::configz(&recorded()));
    assert!(machine.ask(&configz).running.is_some());
    assert_eq!(server.connections(), 3);
}

#[test]
fn the_last_answer_holds_for_the_same_process_only() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::configz(&recorded()));
    let machine = Machine::new();
    machine.kubelet(7, &[]);
    let configz = Configz::new(machine.settings(&server, &ca.pem));
    let first = machine.ask(&configz);
    server.act(Act::answer("500 Internal Server Error", ""));
    for status in ["500 Internal Server Error", "401 Unauthorized"] {
        // With the apiserver away a kubelet cannot judge our token: 401.
        server.act(Act::answer(status, ""));
        assert_eq!(machine.ask(&configz), first, "{status}");
    }
    machine.kubelet(8, &[]);
    assert!(machine.ask(&configz).running.is_none(), "another process");
    // A kubelet that cannot be seen may be another one by now: its last answer is the best there is.
    std::fs::remove_dir_all(machine.path("proc/1234")).unwrap();
    server.act(Act::configz(&recorded()));
    assert!(machine.ask(&configz).running.is_some());
    server.act(Act::answer("500 Internal Server Error", ""));
    let later = machine.ask(&configz);
    assert_eq!(later.running, first.running);
    assert!(failure(&later).to_string().contains("its last answer stays in use"), "{}", failure(&later));
}

#[test]
fn a_rotated_token_is_used() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::configz(&recorded()));
    let machine = Machine::new();
    let configz = Configz::new(machine.settings(&server, &ca.pem));
    assert!(machine.ask(&configz).running.is_some());
    machine.write("token", "of-the-second-hour");
    assert!(machine.ask(&configz).running.is_some());
    let heads = server.heads();
    assert!(heads[0].contains(TOKEN) && !heads[0].contains("of-the-second-hour"));
    assert!(heads[1].contains("Bearer of-the-second-hour\r\n") && !heads[1].contains(TOKEN));
    for (text, words) in [("", "holds no token"), ("a secret\nin two lines", "cannot be a token")] {
        machine.write("token", text);
        let error = machine.ask(&configz).error.unwrap().to_string();
        assert!(error.contains(words) && !error.contains("secret"), "{error}");
    }
    std::fs::remove_file(machine.path("token")).unwrap();
    let answer = machine.ask(&configz);
    assert!(failure(&answer).to_string().contains("--kubelet.token-file"), "{}", failure(&answer));
    assert_eq!(server.connections(), 2, "without its token it is not asked");
}

#[test]
fn nobody_to_ask() {
    let ca = Authority::new("cluster");
    let machine = Machine::new();
    // Ours, so that no other test gets the port, and nobody listens on it.
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let SocketAddr::V4(address) = getsockname(&socket).unwrap().try_into().unwrap() else { panic!("no IPv4") };
    machine.write("ca.crt", &ca.pem);
    let refused = Settings {
        ask: Ask::At(Address::kubelet(&format!("https://{address}")).unwrap()),
        token_file: Some(machine.path("token")),
        ca_file: Some(machine.path("ca.crt")),
        ..Settings::default()
    };
    // The address was named: that nobody is there is worth a word.
    let answer = machine.ask(&Configz::new(refused));
    assert_eq!(failure(&answer).reason(), Reason::Io);
    assert!(failure(&answer).to_string().contains("connection refused"), "{}", failure(&answer));
    // Not configured, and not in a pod: nothing is asked and nothing is wrong.
    let quiet = Settings::default();
    assert_eq!(machine.ask(&Configz::new(quiet)), Answer::default());
    if !Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists() {
        let in_no_pod = Settings { ask: Ask::IfToken, ..Settings::default() };
        machine.kubelet(7, &[]);
        assert_eq!(machine.ask(&Configz::new(in_no_pod)), Answer::default());
    }
}

#[test]
fn with_a_token_the_kubelet_of_this_machine_is_asked() {
    alone!();
    let ca = Authority::new("cluster");
    let identity = ca.issue(&["node-7"]);
    let machine = Machine::new();
    let elsewhere = Server::start(&identity, Act::Close);
    let settings = Settings { ask: Ask::IfToken, ..machine.settings(&elsewhere, &ca.pem) };
    let Ok(probe) = std::net::TcpListener::bind("127.0.0.1:10250") else {
        skip!("port 10250 is taken on this machine");
    };
    drop(probe);
    // Nobody listens. Without a kubelet to be seen there is none; with one it should.
    assert_eq!(machine.ask(&Configz::new(settings.clone())), Answer::default());
    machine.kubelet(7, &[]);
    assert_eq!(failure(&machine.ask(&Configz::new(settings.clone()))).reason(), Reason::Io);
    let server = Server::start_at("127.0.0.1:10250".parse().unwrap(), &identity, Act::configz(&recorded()));
    let answer = machine.ask(&Configz::new(settings));
    assert_eq!(answer.error, None);
    assert_eq!(answer.running.unwrap().url, "https://127.0.0.1:10250/configz");
    assert_eq!((server.heads().len(), elsewhere.connections()), (1, 0));
}

#[test]
fn a_kubelet_that_does_not_tell_has_no_known_thresholds() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::answer("403 Forbidden", ""));
    let machine = Machine::new();
    // No process to be seen, but something answers as a kubelet: the defaults would be a guess.
    let page = machine.page(&*machine.collector(machine.settings(&server, &ca.pem)));
    assert_eq!(page.errors().len(), 1, "{:?}", page.errors());
    assert!(sources(&page).is_empty());
    assert_eq!(page.value(&eviction::THRESHOLD_BYTES, &["memory.available", "hard"]), None);
    assert!(page.value(&eviction::AVAILABLE_BYTES, &["memory.available"]).is_some());
}

#[test]
fn files_that_cannot_be_read_do_not_matter() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::configz(&recorded()));
    let machine = Machine::new();
    machine.kubelet(7, &["--config=/etc/not-mounted.yaml"]);
    let page = machine.page(&*machine.collector(machine.settings(&server, &ca.pem)));
    assert!(page.errors().is_empty(), "{:?}", page.errors());
    assert_eq!(sources(&page).len(), 1, "{:?}", sources(&page));
    assert_eq!(drifts(&page).1, 0);
    let pids = page.value(&eviction::THRESHOLD_PIDS, &["pid.available", "hard"]);
    assert_eq!(pids, Some(1500.0), "5 % of 30,000");
    // No process to be seen either, as in a pod without hostPID.
    std::fs::remove_dir_all(machine.path("proc/1234")).unwrap();
    let page = machine.page(&*machine.collector(machine.settings(&server, &ca.pem)));
    assert!(page.errors().is_empty(), "{:?}", page.errors());
    assert_eq!(sources(&page), [format!("configz {}/configz", server.url())]);
    assert_eq!(page.value(&eviction::THRESHOLD_PIDS, &["pid.available", "hard"]), Some(1500.0));
}

#[test]
fn files_that_a_kubelet_would_not_start_with_are_told() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::configz(&recorded()));
    let machine = Machine::new();
    machine.kubelet(7, &["--config=/etc/k.yaml"]);
    machine.write(
        "root/etc/k.yaml",
        "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nevictionHard: {memory.available: 5}\n",
    );
    let page = machine.page(&*machine.collector(machine.settings(&server, &ca.pem)));
    let error = page.errors()[0].to_string();
    assert!(page.errors().len() == 1 && error.contains("/etc/k.yaml") && error.contains("would not start"), "{error}");
    assert_eq!(page.value(&eviction::THRESHOLD_PIDS, &["pid.available", "hard"]), Some(1500.0));
    assert_eq!(drifts(&page).1, 0);
}

/// No kubelet's certificate is made out to 127.0.0.1: on the machine itself the node's name will do, whoever knows it.
#[test]
fn a_certificate_that_is_made_out_to_the_node() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["worker-7"]), Act::configz(&recorded()));
    let machine = Machine::new();
    machine.kubelet(7, &[]);
    let settings = machine.settings(&server, &ca.pem);
    let host = machine.host();
    let kubelet = KubeletProcess { pid: 1234, arguments: Vec::new(), ..KubeletProcess::default() };
    let ask = |name: Option<&str>, flags: &[&str]| {
        let configz = Configz::new(settings.clone()).of_node(name.map(str::to_owned));
        configz.ask(&host, Some(&kubelet), Some(&Flags::parse(flags.iter().copied())), || None, soon())
    };
    assert!(ask(Some("worker-7"), &[]).running.is_some(), "ours, --node-name");
    assert!(ask(None, &["--hostname-override=Worker-7"]).running.is_some(), "the kubelet's own");
    let answer = ask(Some("worker-8"), &[]);
    assert!(failure(&answer).to_string().contains("not valid for"), "{}", failure(&answer));
}

/// A node with a kubelet whose files tell `config`, with a token, and nobody's CA.
fn default_node(config: &str, flags: &[&str]) -> (Machine, Settings) {
    let machine = Machine::new();
    let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
    machine.write("root/etc/k.yaml", &format!("{head}{config}"));
    machine.kubelet(7, &[&["--config=/etc/k.yaml"], flags].concat());
    let settings = Settings {
        ask: Ask::IfToken,
        token_file: Some(machine.path("token")),
        interval: Duration::ZERO,
        ..Settings::default()
    };
    (machine, settings)
}

/// The way to the kubelet is its own: address, port, and the very certificate on its disk, whoever signed it, whatever
/// name is in it and however old it is.
#[test]
fn on_a_default_node_it_is_the_kubelet_whose_certificate_lies_on_the_disk() {
    let authority = Authority::new("worker-7-ca@1719398400");
    let identities = [
        ("signed by the kubelet", Identity::self_signed(&["worker-7"])),
        ("signed by some authority", authority.issue(&["10.9.8.7"])),
        ("expired", authority.issue_expired(&["worker-7"])),
    ];
    let files = ["root/var/lib/kubelet/pki/kubelet.crt", "root/var/lib/kubelet/pki/kubelet-server-current.pem"];
    for (what, identity) in &identities {
        for file in files {
            let server = Server::start_at("127.0.0.4:0".parse().unwrap(), identity, Act::configz(&recorded()));
            let config = format!("address: 127.0.0.4\nport: {}\n", server.address.port());
            let (machine, settings) = default_node(&config, &[]);
            let page = || machine.page(&*machine.collector(settings.clone()));
            let known = [format!("file {}", "/etc/k.yaml")];
            assert_eq!(sources(&page()), known, "{what}: nothing proves that it is the kubelet");
            assert!(server.heads().is_empty(), "{what}: the token was sent");
            machine.write(file, &identity.pem());
            assert_eq!(sources(&page())[0], format!("configz https://127.0.0.4:{}/configz", server.address.port()));
            // Somebody else in its place is not believed.
            machine.write(file, &authority.issue(&["worker-7"]).pem());
            let heads = server.heads().len();
            assert_eq!((sources(&page()), server.heads().len()), (known.to_vec(), heads), "{what}");
        }
    }
}

#[test]
fn its_flags_say_where_it_listens_and_with_which_certificate() {
    let identity = Identity::self_signed(&["worker-7"]);
    let server = Server::start_at("127.0.0.5:0".parse().unwrap(), &identity, Act::configz(&recorded()));
    let flags = [format!("--port={}", server.address.port())];
    let flags = ["--address=127.0.0.5", &flags[0], "--tls-cert-file=/etc/pki/own.pem"];
    let (machine, settings) = default_node("tlsCertFile: /etc/pki/other.pem\nport: 1\n", &flags);
    machine.write("root/etc/pki/own.pem", &identity.pem());
    let page = machine.page(&*machine.collector(settings.clone()));
    assert!(sources(&page)[0].starts_with("configz https://127.0.0.5:"), "{:?}", page.notes());
    // Whoever names an authority believes that alone.
    machine.write("ca.crt", &Authority::new("cluster").pem);
    let settings = Settings { ca_file: Some(machine.path("ca.crt")), ..settings };
    let page = machine.page(&*machine.collector(settings));
    assert!(page.notes()[0].contains("does not verify"), "{:?}", page.notes());
}

/// What the files tell is known, whatever the kubelet answers: no failure, and a word on what is missing.
#[test]
fn a_kubelet_that_does_not_let_us_ask_has_the_thresholds_of_its_files() {
    let ca = Authority::new("cluster");
    let server = Server::start(&ca.issue(&["127.0.0.1"]), Act::configz(&recorded()));
    let (machine, _) = default_node("evictionHard: {memory.available: 500Mi}\n", &[]);
    let settings = machine.settings(&server, &ca.pem);
    for act in ["401 Unauthorized", "403 Forbidden", "500 Internal Server Error"] {
        server.act(Act::answer(act, ""));
        let page = machine.page(&*machine.collector(settings.clone()));
        assert_eq!(page.errors(), [], "{act}");
        assert_eq!(sources(&page), ["file /etc/k.yaml"]);
        assert_eq!(page.value(&eviction::THRESHOLD_BYTES, &["memory.available", "hard"]), Some((500 << 20) as f64));
        let note = &page.notes()[0];
        assert!(note.contains("config_drift is missing") && note.contains(&act[..3]), "{note}");
    }
    // Neither its word nor its files: not known.
    machine.kubelet(8, &["--config=/etc/gone.yaml"]);
    let page = machine.page(&*machine.collector(settings));
    let errors: Vec<String> = page.errors().iter().map(ToString::to_string).collect();
    assert!(errors.len() == 2 && errors.iter().any(|error| error.contains("500")), "{errors:?}");
    assert_eq!((sources(&page), page.notes().len()), (Vec::new(), 0));
}
