//! What a Prometheus pays for a thousand nodes with this exporter: memory, samples, the evaluation of our rules, disk.
//!
//! `cargo bench --bench fleet [-- FOLDER]`: FOLDER holds the rules (`alerts` by default, `*/rules.yaml`). One server in
//! this process hands out a page for each node: the recorded node of the tests with what an apiserver adds, with values
//! that change and names of pods that differ. A real Prometheus (Debian package) scrapes them every 15 s. It takes
//! about three minutes and 2 GiB. `docs/performance.md` keeps a run.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark, not the exporter")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headroom::modes::MODES;

const NODES: usize = 1_000;
const INTERVAL: u64 = 15;
const RUN: Duration = Duration::from_secs(180);
/// No page is larger: what Prometheus may come to hold is bounded.
const SAMPLE_LIMIT: usize = 2_000;

fn main() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        println!("SKIP: prometheus (Debian package) is not installed");
        return;
    }
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let rules = rules(&project(folder.as_deref().unwrap_or("alerts")));
    assert!(!rules.is_empty(), "no rules in that folder");
    let pages = serve(Arc::new(Pages::read()));
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), pages);
    println!(
        "{NODES} nodes every {INTERVAL} s, {} files of rules in the second half, {} s …",
        rules.len(),
        RUN.as_secs()
    );
    let begun = Instant::now();
    // The first minute makes the series.
    std::thread::sleep(RUN / 3);
    let warm = prometheus.mark();
    std::thread::sleep((RUN * 2 / 3).saturating_sub(begun.elapsed()));
    let half = prometheus.mark();
    prometheus.give_rules(dir.path(), &rules);
    let mut rounds = Vec::new();
    while begun.elapsed() < RUN {
        std::thread::sleep(Duration::from_secs(INTERVAL));
        rounds.push(prometheus.evaluations());
    }
    let end = prometheus.mark();

    let samples = prometheus.metric("prometheus_tsdb_head_samples_appended_total");
    let rate = (end.samples - warm.samples) / (end.at - warm.at).as_secs_f64();
    let series = prometheus.metric("prometheus_tsdb_head_series");
    let resident = prometheus.metric("process_resident_memory_bytes");
    let without = (half.cpu - warm.cpu) / (half.at - warm.at).as_secs_f64();
    let with = (end.cpu - half.cpu) / (end.at - half.at).as_secs_f64();
    // CPU, since wall time on a busy machine is the machine's; rounds that were skipped for want of it do not count.
    let count = rounds.last().unwrap().len() as f64;
    let passes = prometheus.metric_sum("prometheus_rule_evaluations_total") / count;
    let per_pass = (with - without) * (end.at - half.at).as_secs_f64() / passes;
    let n = NODES as f64;
    println!("nodes up                      {:>12}", prometheus.ask("sum(up)"));
    println!("samples per scrape and node   {:>12}", prometheus.ask("avg(scrape_samples_scraped)"));
    println!("slowest scrape                {:>12}", prometheus.ask("max(scrape_duration_seconds)"));
    println!("samples per second            {rate:>12.0}  {:.1} per node", rate / n);
    println!("series in the head            {series:>12.0}  {:.0} per node", series / n);
    let per_series = resident / series;
    println!(
        "resident memory, MiB          {:>12.0}  {:.2} per node, {per_series:.0} bytes a series",
        mib(resident),
        mib(resident) / n
    );
    println!("CPU of scraping, cores        {without:>12.2}");
    println!(
        "CPU with the rules, cores     {with:>12.2}  {passes:.1} evaluations of {count} rules, {:.0} ms of CPU each",
        per_pass * 1e3
    );
    show_rules(&rounds);
    prometheus.disk(dir.path(), samples, n);
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn rules(folder: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = folders.map(|entry| entry.path().join("rules.yaml")).filter(|path| path.exists()).collect();
    files.sort();
    files
}

/// How far it was at a moment.
struct Mark {
    at: Instant,
    cpu: f64,
    samples: f64,
}

type Evaluations = BTreeMap<(String, String), f64>;

/// The median over the rounds of each rule, summed by group; the slowest rules by name.
fn show_rules(rounds: &[Evaluations]) {
    let median = |key: &(String, String)| {
        let mut times: Vec<f64> = rounds.iter().filter_map(|round| round.get(key).copied()).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2] * 1e3
    };
    let mut groups: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    let mut rules: Vec<_> = rounds[0].keys().map(|key| (median(key), key)).collect();
    for (time, (group, _)) in &rules {
        let sum = groups.entry(group).or_default();
        *sum = (sum.0 + 1, sum.1 + time);
    }
    for (group, (count, time)) in &groups {
        println!("  {group:<44} {count:>3} rules {time:>8.1} ms");
    }
    let sum: f64 = groups.values().map(|(_, time)| time).sum();
    println!("all rules, one after the other{sum:>11.1} ms  wall time, median of {} rounds", rounds.len());
    rules.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (time, (group, rule)) in rules.iter().take(5) {
        println!("  slowest: {group}: {rule} {time:.1} ms");
    }
}

/// The recorded page as rows, and what stands for a pod in it.
struct Pages(Vec<(String, f64)>);

impl Pages {
    fn read() -> Self {
        let mut rows = Vec::new();
        let of_modes = MODES.iter().map(|mode| mode.id).chain(["exporter"]).map(|id| format!("{id}/healthy.prom"));
        let files = std::iter::once("node/k8s-1.36-cgroupv2/page.prom".to_owned()).chain(of_modes);
        let files = files.map(|file| project("tests/fixtures").join(file)).filter(|file| file.exists());
        for file in files {
            let text = fs::read_to_string(file).unwrap();
            for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
                let (series, value) = line.rsplit_once(' ').unwrap();
                rows.retain(|(known, _)| known != series);
                rows.push((series.to_owned(), value.parse().unwrap()));
            }
        }
        Pages(rows)
    }

    /// Counters grow, large and broken numbers waver as those of a live node do, flags and small counts stay.
    fn page(&self, node: usize, seconds: f64) -> String {
        let mut text = String::with_capacity(64 << 10);
        for (series, value) in &self.0 {
            let name = series.split('{').next().unwrap();
            let counts = ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
            let lives = *value > 5_000.0 || value.fract() != 0.0;
            let fixed = name.ends_with("_limit") || name.contains("threshold") || name.contains("capacity");
            let value = match (counts, lives && !fixed) {
                (true, _) => (value * (1.0 + seconds / 60.0)).floor(),
                (false, true) => value * (1.0 + (fastrand::f64() - 0.5) / 100.0),
                (false, false) => *value,
            };
            let series = series.replace("dffe967d-a11f", &format!("{node:08x}-a11f"));
            let series = series
                .replace("d88fcaa715e9", &format!("a{node:011x}"))
                .replace("fbac8099e388", &format!("b{node:011x}"));
            let _ = writeln!(text, "{series} {value}");
        }
        text
    }
}

fn serve(pages: Arc<Pages>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let begun = Instant::now();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let pages = Arc::clone(&pages);
            std::thread::spawn(move || answer(stream, &pages, begun.elapsed().as_secs_f64()));
        }
    });
    address
}

fn answer(mut stream: TcpStream, pages: &Pages, seconds: f64) {
    let mut request = [0; 4096];
    let length = stream.read(&mut request).unwrap_or(0);
    let request = String::from_utf8_lossy(&request[..length]);
    let node = request.split('/').nth(2).and_then(|node| node.parse().ok()).unwrap_or(0);
    let page = pages.page(node, seconds);
    let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n{page}");
}

struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(dir: &Path, pages: SocketAddr) -> Self {
        let targets: Vec<String> = (0..NODES).map(|node| format!("'{node}'")).collect();
        let config = format!(
            "global: {{scrape_interval: {INTERVAL}s, evaluation_interval: {INTERVAL}s}}
scrape_configs:
- job_name: headroom-exporter
  sample_limit: {SAMPLE_LIMIT}
  static_configs: [{{targets: [{}], labels: {{cluster: bench}}}}]
  relabel_configs:
  - {{source_labels: [__address__], target_label: __metrics_path__, replacement: /node/$1/metrics}}
  - {{source_labels: [__address__], target_label: instance, replacement: node-$1}}
  - {{target_label: __address__, replacement: '{pages}'}}
",
            targets.join(", ")
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        // A port that was free a moment ago; Prometheus cannot be asked to pick one and tell.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--web.enable-admin-api", "--web.enable-lifecycle"])
            .stderr(fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let prometheus = Prometheus { child, address };
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < until, "Prometheus does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        prometheus
    }

    fn request(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: prometheus\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Has it evaluate these from now on.
    fn give_rules(&self, dir: &Path, rules: &[PathBuf]) {
        let file = dir.join("prometheus.yml");
        let config = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("rule_files: {rules:?}\n{config}")).unwrap();
        let answer = self.request("POST", "/-/reload");
        assert!(answer.is_empty(), "{answer}");
    }

    fn mark(&self) -> Mark {
        let samples = self.metric("prometheus_tsdb_head_samples_appended_total");
        Mark { at: Instant::now(), cpu: self.metric("process_cpu_seconds_total"), samples }
    }

    /// The sum over the rows of one of its own metrics.
    fn metric_sum(&self, name: &str) -> f64 {
        let page = self.request("GET", "/metrics");
        let rows = page.lines().filter_map(|line| line.rsplit_once(' '));
        rows.filter(|(series, _)| series.split('{').next() == Some(name)).map(|(_, v)| v.parse::<f64>().unwrap()).sum()
    }

    /// A number of Prometheus's own page.
    fn metric(&self, name: &str) -> f64 {
        let page = self.request("GET", "/metrics");
        let mut rows = page.lines().filter_map(|line| line.rsplit_once(' '));
        // One row for floats and one for native histograms, of which there are none, in later versions.
        let row = rows.find(|(series, _)| series.split('{').next() == Some(name) && !series.contains("histogram"));
        row.unwrap_or_else(|| panic!("no {name}")).1.parse().unwrap()
    }

    /// The first value of an answer.
    fn ask(&self, query: &str) -> String {
        let answer = self.request("GET", &format!("/api/v1/query?query={query}"));
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        answer["data"]["result"][0]["value"][1].as_str().unwrap_or("none").to_owned()
    }

    /// Seconds that each rule took when it was last evaluated, by the name of its group and its own.
    fn evaluations(&self) -> Evaluations {
        let answer: serde_json::Value = serde_json::from_str(&self.request("GET", "/api/v1/rules")).unwrap();
        let mut times = Evaluations::new();
        for group in answer["data"]["groups"].as_array().unwrap() {
            for (at, rule) in group["rules"].as_array().unwrap().iter().enumerate() {
                let name = format!("{:02} {}", at + 1, rule["name"].as_str().unwrap());
                let key = (group["name"].as_str().unwrap().to_owned(), name);
                times.insert(key, rule["evaluationTime"].as_f64().unwrap());
            }
        }
        times
    }

    /// The head as a block, as Prometheus would write one: chunks by sample, the index by series.
    fn disk(&self, dir: &Path, samples: f64, nodes: f64) {
        let answer = self.request("POST", "/api/v1/admin/tsdb/snapshot");
        assert!(answer.contains("success"), "{answer}");
        let (mut chunks, mut index) = (0, 0);
        let mut folders = vec![dir.join("data/snapshots")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let size = entry.metadata().unwrap().len();
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path if path.ends_with("index") => index += size,
                    path if path.parent().is_some_and(|parent| parent.ends_with("chunks")) => chunks += size,
                    _ => {}
                }
            }
        }
        let per_sample = chunks as f64 / samples;
        let daily = samples / nodes / RUN.as_secs_f64() * 86_400.0 * per_sample;
        // A block holds two hours before blocks are merged: at most twelve indexes a day.
        let indexes = index as f64 / nodes * 12.0;
        println!("chunks, bytes a sample        {per_sample:>12.2}");
        println!("disk per node and day, MiB    {:>12.1}  and at most {:.1} of index", mib(daily), mib(indexes));
    }
}
