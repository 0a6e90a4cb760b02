//! Each operator and function on random series, by us and by Prometheus: promtool is given what we computed. Prometheus
//! 3 is the authority; the other one is asked where both are to say the same.

use std::fmt::Write as _;

use headroom::verdict::Store;
use headroom::verdict::promql::eval::{Evaluator, Value};
use headroom::verdict::promql::expression;

use crate::common::prometheus::Release;
use crate::common::series;

/// `a`, `b`: gauges by x and y. `c`: counters with resets. `one`: a series for each x. `s`: with gaps and stale
/// markers.
const EXPRESSIONS: &[&str] = &[
    "a",
    "a{x=\"1\"}",
    "a{x!=\"1\"}",
    "a{x=~\"1|2\"}",
    "a{x=~\"1\",z=\"\"}",
    "a{x!~\"1|3\"}",
    "a{z=~\".*\"}",
    "a{z!=\"\"}",
    "{__name__=~\"a|b\",x=\"1\"}",
    "a offset 2m",
    "a offset -2m",
    "s",
    "s offset 3m",
    "avg_over_time(s[10m])",
    "-a",
    "-a == -a",
    "a + b",
    "a - b",
    "a * b",
    "a / b",
    "a % 7",
    "-a % 7",
    "a ^ 2",
    "2 ^ 3 ^ 2",
    "1 - 2 * 3",
    "1 < bool 2",
    "3 - a",
    "a > 50",
    "50 < a",
    "a >= bool 50",
    "50 >= bool a",
    "a != b",
    "a == bool a",
    "a > b",
    "a <= bool b",
    "a + on (x, y) b",
    "a > on (x, y) b",
    "a * ignoring (y) group_left () one",
    "a * on (x) group_left (tier) one",
    "a > on (x) group_left (tier) one",
    "one / on (x) group_right (tier) a",
    "one < on (x) group_right () a",
    "one > bool on (x) group_right () a",
    "a and b > 40",
    "a and on (x) (one > 30)",
    "a unless on (x) (one > 30)",
    "a or b",
    "a or on (x) b",
    "a or ignoring (y) one",
    "a unless b > 40 or one",
    "a > 20 and b > 20 unless a > 90",
    "sum(a)",
    "sum by (x) (a)",
    "sum without (x) (a)",
    "sum by (nothing) (a)",
    "min by (y) (a)",
    "max by (y) (a)",
    "avg by (x) (a)",
    "count by (x) (a > 40)",
    "topk(2, a)",
    "topk by (x) (1, a)",
    "sum(a) / count(a)",
    "rate(c[5m])",
    "rate(c[5m] offset 1m)",
    "increase(c[5m])",
    "increase(c[37m])",
    "increase(c[50s])",
    "deriv(a[10m])",
    "deriv(one[10m])",
    "changes(a[10m])",
    "changes(c[10m])",
    "min_over_time(a[5m])",
    "max_over_time(a[5m])",
    "max_over_time(a[5m] offset 5m)",
    "avg_over_time(a[5m])",
    "absent(a)",
    "absent(nothing)",
    "absent(nothing{x=\"1\",y=~\"2\"})",
    "absent(sum(nothing))",
    "time()",
    "time() - timestamp(a)",
    "timestamp(a offset 1m)",
    "timestamp(a * 1)",
    "(b - a) / (deriv(a[10m]) > 0) < 86400",
    "a / 0 > 1",
    "0 / (a * 0)",
    "max by (x) (0 / (a * 0))",
    "min by (x) (0 / (a * 0) or b)",
];

fn inputs(random: &mut fastrand::Rng) -> Vec<(String, String)> {
    let mut inputs = Vec::new();
    // Fractions, so that no two are equal: which of them `topk` takes is left open.
    let gauge = |random: &mut fastrand::Rng| {
        (0..60).map(|_| (f64::from(random.u32(0..100_000)) / 1000.0).to_string()).collect::<Vec<_>>().join(" ")
    };
    for name in ["a", "b"] {
        for (x, y) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
            if random.u8(0..6) > 0 {
                inputs.push((format!("{name}{{x=\"{x}\",y=\"{y}\"}}"), gauge(random)));
            }
        }
    }
    for x in 1..4 {
        let rise = random.u8(0..9);
        inputs.push((format!("one{{x=\"{x}\",tier=\"t{x}\"}}"), format!("{}+{rise}x60", random.u8(0..50))));
        let mut count = u32::from(random.u8(0..30));
        let counter = (0..60).map(|_| {
            count =
                if random.u8(0..12) == 0 { u32::from(random.u8(0..3)) } else { count + u32::from(random.u8(0..20)) };
            count.to_string()
        });
        inputs.push((format!("c{{x=\"{x}\"}}"), counter.collect::<Vec<_>>().join(" ")));
        let gaps = (0..60).map(|_| match random.u8(0..10) {
            0 => "stale".into(),
            1..4 => "_".into(),
            value => value.to_string(),
        });
        inputs.push((format!("s{{x=\"{x}\"}}"), gaps.collect::<Vec<_>>().join(" ")));
    }
    inputs
}

#[test]
fn prometheus_3_agrees() {
    if Release::Three.runs(&["promtool"]) {
        agrees(Release::Three, 0);
    }
}

/// The series above have no gap as long as the lookback.
#[test]
fn prometheus_3_agrees_on_a_sample_as_old_as_the_lookback() {
    if !Release::Three.runs(&["promtool"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    series::fill(&mut store, "a", "7", 1000);
    let mut yaml =
        "rule_files: []\ntests:\n  - input_series: [{series: a, values: '7'}]\n    promql_expr_test:\n".to_owned();
    for expr in ["a", "a offset 1m", "max_over_time(a[5m])", "max_over_time(a[4m] offset 1m)"] {
        for at in [299_999, 300_000, 300_001, 359_999, 360_000] {
            expect(&mut yaml, expr, at, &store, 0.0);
        }
    }
    let wrong = disagreements(&promtool(Release::Three, folder.path(), &yaml));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Prometheus 2 counts a sample that lies exactly at the older end of a range or of the lookback: at half a second past
/// there is none. Before 2.52 it stretches a counter further that begins within the range (`increase` in
/// `src/verdict/promql/functions.rs`): none does in the second half.
#[test]
fn prometheus_2_agrees_where_it_is_the_same() {
    if Release::Installed.runs(&["promtool"]) {
        agrees(Release::Installed, 500);
    }
}

/// On 12 sets of series, at random seconds and this many milliseconds.
fn agrees(release: Release, milliseconds: i64) {
    let three = release == Release::Three;
    let earliest = if three { 60 } else { 400 };
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(8);
    let (mut yaml, mut checks) = (String::from("rule_files: []\ntests:\n"), 0);
    // Every third range of whole minutes begins at a sample of the second kind, and hardly one of the first.
    for (interval, every) in [(17, 1), (15, 5)].into_iter().cycle().take(12) {
        let inputs = inputs(&mut random);
        let mut store = Store::default();
        writeln!(yaml, "  - interval: {interval}s\n    input_series:").unwrap();
        for (labels, values) in &inputs {
            series::fill(&mut store, labels, values, interval * 1000);
            writeln!(yaml, "      - {{series: '{labels}', values: '{values}'}}").unwrap();
        }
        yaml.push_str("    promql_expr_test:\n");
        for expr in EXPRESSIONS.iter().filter(|expr| three || !expr.contains("[37m]")) {
            let at = random.i64(earliest..1100) / every * every * 1000 + milliseconds;
            checks += 1;
            expect(&mut yaml, expr, at, &store, 0.0);
        }
    }
    let wrong = disagreements(&promtool(release, folder.path(), &yaml));
    assert!(wrong.is_empty(), "{release:?}: {wrong:#?}");
    eprintln!("{release:?}: {checks} checks of {} expressions", EXPRESSIONS.len());
    assert!(checks > 1000);
}

#[test]
fn what_is_wrong_by_a_millionth_is_seen() {
    for release in Release::with(&["promtool"]) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::default();
        series::fill(&mut store, "a", "7", 17_000);
        for (off, wrong) in [(0.0, 0), (1e-6, 1)] {
            let mut yaml =
                "rule_files: []\ntests:\n  - input_series: [{series: a, values: '7'}]\n    promql_expr_test:\n"
                    .to_owned();
            expect(&mut yaml, "a / 3", 0, &store, off);
            let said = promtool(release, folder.path(), &yaml);
            assert_eq!(disagreements(&said).len(), wrong, "{release:?}: {said:?}");
        }
        assert_eq!(disagreements(&promtool(release, folder.path(), "tests: [{nonsense: 1}]")).len(), 1, "{release:?}");
    }
}

fn expect(yaml: &mut String, expr: &str, at: i64, store: &Store, off: f64) {
    let value = Evaluator::new(store, at).eval(&expression::parse(expr).unwrap());
    let quoted = expr.replace('\'', "''");
    writeln!(yaml, "      - expr: '{quoted}'\n        eval_time: {at}ms\n        exp_samples:").unwrap();
    let samples = match value.unwrap_or_else(|error| panic!("{expr}: {error}")) {
        Value::Scalar(value) => vec![("{}".to_owned(), value)],
        Value::Vector(vector) => vector.into_iter().map(|one| (one.labels.to_string(), one.value)).collect(),
        Value::Text(_) => unreachable!(),
    };
    for (labels, value) in samples {
        let value = match value {
            value if value.is_nan() => ".nan".to_owned(),
            value if value.is_infinite() => if value > 0.0 { ".inf" } else { "-.inf" }.to_owned(),
            value => format!("{:e}", value + off),
        };
        writeln!(yaml, "          - {{labels: '{labels}', value: {value}}}").unwrap();
    }
}

/// Whether it passed, and what it said.
fn promtool(release: Release, folder: &std::path::Path, yaml: &str) -> (bool, String) {
    let file = folder.join("test.yaml");
    std::fs::write(&file, yaml).unwrap();
    release.run("promtool", &["test", "rules"], &[file])
}

/// promtool compares to the last bit, and no NaN equals another. What it reports as different is compared again: to
/// 1e-9.
fn disagreements((passed, said): &(bool, String)) -> Vec<String> {
    let blocks: Vec<&str> = said.split("    expr: ").skip(1).collect();
    if blocks.is_empty() && !passed {
        return vec![said.clone()];
    }
    let same = |block: &&&str| {
        let side = |name: &str| Some(samples(block.lines().find_map(|line| line.trim_start().strip_prefix(name))?));
        match (side("exp: "), side("got: ")) {
            (Some(ours), Some(theirs)) => {
                ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| a.0 == b.0 && near(a.1, b.1))
            }
            _ => false,
        }
    };
    blocks.iter().filter(|block| !same(block)).map(|block| (*block).to_owned()).collect()
}

/// `{x="1"} 7E+01, {x="2"} NaN`
fn samples(line: &str) -> Vec<(String, f64)> {
    let (mut samples, mut rest) = (Vec::new(), line);
    while let Some((labels, after)) = rest.split_once("} ") {
        let (value, more) = after.split_once(", ").unwrap_or((after, ""));
        samples.push((labels.to_owned(), value.trim().parse().unwrap()));
        rest = more;
    }
    samples
}

fn near(a: f64, b: f64) -> bool {
    a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}
