//! How fast time goes in a replay: every duration of the rules, of Prometheus's intervals and of Alertmanager's is
//! divided by one factor.
//!
//! Divided: `interval`, `for`, `keep_firing_for`; range and subquery windows and their steps; `offset`, which is the
//! other end of a window; the horizon of `predict_linear`, and the seconds that a quotient by `deriv` is held to, since
//! noise seen through a shorter window and carried as far as before would cross any threshold. Not divided: every other
//! number of an expression. A threshold in bytes, a ratio, an age in seconds that the exporter reads somewhere are
//! figures of the real world, and a rate per second is compared as it is: the replay has to be that fast.

use std::time::Duration;

use serde_json::Value;

/// What replays run with unless `HEADROOM_REPLAY_FACTOR` says otherwise; 1 is real time.
const FACTOR: u32 = 30;

#[derive(Clone, Copy)]
pub struct Pace(u32);

impl Pace {
    pub fn of_this_run() -> Self {
        let told = std::env::var("HEADROOM_REPLAY_FACTOR").ok();
        Pace(told.map_or(FACTOR, |text| text.parse().expect("HEADROOM_REPLAY_FACTOR is a number from 1")))
    }

    pub fn factor(self) -> u32 {
        self.0
    }

    /// In real time nothing is shortened, flags of the exporter included.
    pub fn is_real(self) -> bool {
        self.0 == 1
    }

    pub fn short(self, real: Duration) -> Duration {
        real / self.0
    }

    /// The same as a duration of a configuration file.
    pub fn text(self, real: Duration) -> String {
        format!("{}ms", self.short(real).as_millis().max(1))
    }

    /// A file of rules.
    pub fn rules(self, yaml: &str) -> String {
        let mut file: Value = serde_saphyr::from_str(yaml).expect("a file of rules");
        for group in file["groups"].as_array_mut().expect("groups") {
            self.field(group, "interval");
            for rule in group["rules"].as_array_mut().expect("rules") {
                self.field(rule, "for");
                self.field(rule, "keep_firing_for");
                let expr = self.expression(rule["expr"].as_str().expect("an expression"));
                let by_trend = expr.contains("deriv(") || expr.contains("predicted_seconds");
                rule["expr"] = if by_trend { self.horizons(&expr) } else { expr }.into();
            }
        }
        // JSON is YAML.
        file.to_string()
    }

    fn field(self, of: &mut Value, name: &str) {
        if let Some(text) = of.get(name) {
            of[name] = self.duration(text.as_str().expect("a duration")).into();
        }
    }

    /// `1h30m` → `180000ms`; 0 stays 0.
    fn duration(self, text: &str) -> String {
        let mut rest = text.trim();
        let mut milliseconds = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let number: u64 = rest[..digits].parse().unwrap_or_else(|_| panic!("not a duration: {text}"));
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            milliseconds += number
                * match &rest[..letters] {
                    "ms" => 1,
                    "s" => 1000,
                    "m" => 60_000,
                    "h" => 3_600_000,
                    "d" => 86_400_000,
                    "w" => 7 * 86_400_000,
                    "y" => 365 * 86_400_000,
                    "" if number == 0 => 0,
                    unit => panic!("not a unit of time: {unit} in {text}"),
                };
            rest = &rest[letters..];
        }
        format!("{}ms", milliseconds.div_ceil(u64::from(self.0)))
    }

    /// Whole minutes or more behind a `<`: `< 4 * 3600` → `< (4 * 3600) / 30`. Ratios are less.
    fn horizons(self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("< ") {
            out += &rest[..at + 2];
            rest = &rest[at + 2..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && !" *.".contains(c)).unwrap_or(rest.len());
            let number = rest[..end].trim_end();
            let seconds: Option<u64> = number.split(" * ").map(|factor| factor.parse::<u64>().ok()).product();
            out += &match seconds {
                Some(seconds) if seconds >= 60 => format!("({number}) / {}", self.0),
                _ => number.to_owned(),
            };
            rest = &rest[number.len()..];
        }
        out + rest
    }

    fn expression(self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = match first {
                '"' | '\'' | '`' => string_end(rest),
                '#' => rest.find('\n').unwrap_or(rest.len()),
                '[' => {
                    let end = rest.find(']').expect("a bracket closes");
                    let parts = rest[1..end].split(':').map(str::trim);
                    let parts: Vec<String> =
                        parts.map(|part| if part.is_empty() { String::new() } else { self.duration(part) }).collect();
                    out += &format!("[{}]", parts.join(":"));
                    rest = &rest[end + 1..];
                    continue;
                }
                _ if starts_word(first) => {
                    let end = rest.find(|c| !starts_word(c) && !char::is_ascii_digit(&c)).unwrap_or(rest.len());
                    let word = &rest[..end];
                    out += word;
                    rest = &rest[end..];
                    match word {
                        "offset" => {
                            let sign = rest.find(|c: char| c.is_ascii_digit()).expect("offset has a duration");
                            let end = rest[sign..].find(|c: char| !c.is_ascii_alphanumeric());
                            let end = end.map_or(rest.len(), |end| sign + end);
                            out += &rest[..sign];
                            out += &self.duration(&rest[sign..end]);
                            rest = &rest[end..];
                        }
                        "predict_linear" => {
                            let open = rest.find('(').expect("predict_linear has arguments");
                            let (comma, close) = last_argument(&rest[open..]);
                            out += &format!(
                                "({}, ({}) / {})",
                                self.expression(&rest[open + 1..open + comma]),
                                self.expression(rest[open + comma + 1..open + close].trim()),
                                self.0
                            );
                            rest = &rest[open + close + 1..];
                        }
                        _ => {}
                    }
                    continue;
                }
                // A number may have letters in it: 1e9, 0x1f.
                _ if first.is_ascii_digit() => {
                    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len())
                }
                _ => first.len_utf8(),
            };
            out += &rest[..length];
            rest = &rest[length..];
        }
        out
    }
}

fn starts_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

/// Behind the quote that closes the string at the start.
fn string_end(text: &str) -> usize {
    let quote = text.chars().next().unwrap();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote != '`' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    panic!("a string does not end: {text}");
}

/// The last comma at the top of the parentheses at the start, and where they close.
fn last_argument(text: &str) -> (usize, usize) {
    let (mut depth, mut comma, mut at) = (0, None, 0);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'"' | b'\'' | b'`' => {
                at += string_end(&text[at..]);
                continue;
            }
            b'(' | b'{' | b'[' => depth += 1,
            b')' | b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return (comma.expect("two arguments"), at);
                }
            }
            b',' if depth == 1 => comma = Some(at),
            _ => {}
        }
        at += 1;
    }
    panic!("parentheses do not close: {text}");
}

#[test]
fn durations_are_divided() {
    let pace = Pace(30);
    for (real, short) in
        [("15s", "500ms"), ("5m", "10000ms"), ("1h30m", "180000ms"), ("0s", "0ms"), ("0", "0ms"), ("1d", "2880000ms")]
    {
        assert_eq!(pace.duration(real), short);
    }
    assert_eq!(pace.duration("10ms"), "1ms", "never to nothing");
    assert_eq!(pace.text(Duration::from_secs(15)), "500ms");
}

#[test]
fn windows_are_divided_and_figures_are_not() {
    let pace = Pace(30);
    for (real, short) in [
        ("rate(x_total[5m]) > 0.5", "rate(x_total[10000ms]) > 0.5"),
        ("max_over_time(x[1h:1m])", "max_over_time(x[120000ms:2000ms])"),
        ("max_over_time(x[1h:])", "max_over_time(x[120000ms:])"),
        ("x - x offset 10m > 3600", "x - x offset 20000ms > 3600"),
        ("x offset -1m", "x offset -2000ms"),
        ("x{a=\"[5m] offset 5m\"} > 1e9", "x{a=\"[5m] offset 5m\"} > 1e9"),
        ("x{a='it\\'s [5m]'}[1m]", "x{a='it\\'s [5m]'}[2000ms]"),
        ("time() - x > 5 # not [5m]\n and y", "time() - x > 5 # not [5m]\n and y"),
        ("offset_total[1m]", "offset_total[2000ms]"),
        ("predict_linear(x{a=\"),\"}[1h], 4 * 3600) < y", "predict_linear(x{a=\"),\"}[120000ms], (4 * 3600) / 30) < y"),
        (
            "predict_linear((a - b)[30m:1m], 3600) < on (cluster, instance) c",
            "predict_linear((a - b)[60000ms:2000ms], (3600) / 30) < on (cluster, instance) c",
        ),
        ("instance:headroom_x:rate5m > 2", "instance:headroom_x:rate5m > 2"),
    ] {
        assert_eq!(pace.expression(real), short);
    }
}

#[test]
fn horizons_are_divided_and_ratios_are_not() {
    let pace = Pace(30);
    for (real, short) in [
        ("(x / -deriv(x[15m]) > 0) < 900\nand x < 0.2", "(x / -deriv(x[15m]) > 0) < (900) / 30\nand x < 0.2"),
        ("x / deriv(x[1h]) < 4 * 86400 and y < 10", "x / deriv(x[1h]) < (4 * 86400) / 30 and y < 10"),
        ("x < on (instance) y", "x < on (instance) y"),
    ] {
        assert_eq!(pace.horizons(real), short);
    }
}

#[test]
fn a_file_of_rules_is_divided() {
    let yaml = "groups:\n- name: g\n  interval: 1m\n  rules:\n  - alert: A\n    expr: |\n      x[5m] > 1\n    for: 2m\n    labels: {severity: warning}\n    annotations: {summary: 'in 5m'}\n  - record: r\n    expr: x\n";
    let file: Value = serde_json::from_str(&Pace(30).rules(yaml)).unwrap();
    let [alert, record] = [0, 1].map(|rule| &file["groups"][0]["rules"][rule]);
    assert_eq!(file["groups"][0]["interval"], "2000ms");
    assert_eq!((&alert["for"], &alert["expr"]), (&"4000ms".into(), &"x[10000ms] > 1\n".into()));
    assert_eq!((&alert["annotations"]["summary"], &alert["labels"]["severity"]), (&"in 5m".into(), &"warning".into()));
    assert_eq!((record.get("for"), &record["expr"]), (None, &"x".into()));
}
