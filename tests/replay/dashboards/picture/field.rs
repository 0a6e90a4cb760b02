//! How Grafana shows one value: unit, decimals, mapping, colour. What this file does not know is a failure, so that no
//! dashboard uses it unseen.

use serde_json::Value;

/// The settings of one column or series: the panel's, and what an override says of it.
pub(super) struct Field<'a> {
    defaults: &'a Value,
    overrides: Vec<&'a Value>,
}

const PROPERTIES: [&str; 10] = [
    "color",
    "custom.cellOptions",
    "custom.lineWidth",
    "custom.minWidth",
    "custom.width",
    "decimals",
    "links",
    "max",
    "min",
    "thresholds",
];

impl<'a> Field<'a> {
    pub(super) fn of(panel: &'a Value, name: &str) -> Self {
        let mut overrides = Vec::new();
        for rule in panel["fieldConfig"]["overrides"].as_array().unwrap() {
            assert_eq!(rule["matcher"]["id"], "byName", "{}: an unknown matcher", panel["title"]);
            let properties = rule["properties"].as_array().unwrap();
            for property in properties {
                let id = property["id"].as_str().unwrap();
                assert!(id == "unit" || PROPERTIES.contains(&id), "{}: an unknown override: {id}", panel["title"]);
            }
            if rule["matcher"]["options"] == name {
                overrides.extend(properties);
            }
        }
        Field { defaults: &panel["fieldConfig"]["defaults"], overrides }
    }

    pub(super) fn get(&self, id: &str) -> Option<&'a Value> {
        let own = self.overrides.iter().rfind(|property| property["id"] == id).map(|property| &property["value"]);
        own.or_else(|| self.defaults.pointer(&format!("/{}", id.replace('.', "/"))))
    }

    pub(super) fn number(&self, id: &str) -> Option<f64> {
        self.get(id).and_then(Value::as_f64)
    }

    pub(super) fn no_value(&self) -> &'a str {
        self.get("noValue").and_then(Value::as_str).unwrap_or("No data")
    }

    pub(super) fn text(&self, value: f64) -> String {
        if let Some(text) = self.mapped(value).and_then(|mapped| mapped["text"].as_str()) {
            return text.to_owned();
        }
        let decimals = self.number("decimals").map(|decimals| decimals as usize);
        formatted(value, self.get("unit").and_then(Value::as_str).expect("a unit"), decimals)
    }

    pub(super) fn color(&self, value: f64) -> &'static str {
        if let Some(name) = self.mapped(value).and_then(|mapped| mapped["color"].as_str()) {
            return color(name);
        }
        let at_least = |step: &&Value| step["value"].as_f64().is_none_or(|least| value >= least);
        let step = self.steps().iter().rfind(at_least).expect("a first step without a value");
        color(step["color"].as_str().unwrap())
    }

    pub(super) fn steps(&self) -> &'a [Value] {
        let thresholds = self.get("thresholds").expect("thresholds");
        assert_eq!(thresholds["mode"], "absolute");
        thresholds["steps"].as_array().unwrap()
    }

    fn mapped(&self, value: f64) -> Option<&'a Value> {
        let mappings = self.get("mappings")?.as_array()?;
        assert!(mappings.iter().all(|mapping| mapping["type"] == "value"), "an unknown kind of mapping: {mappings:?}");
        mappings.iter().find_map(|mapping| mapping["options"].get(value.to_string()))
    }
}

/// Grafana's palette of the dark theme.
pub(super) fn color(name: &str) -> &'static str {
    match name {
        "green" => "#73bf69",
        "orange" => "#ff9830",
        "red" => "#f2495c",
        "blue" => "#5794f2",
        "semi-dark-blue" => "#3274d9",
        "semi-dark-purple" => "#a352cc",
        "text" => "#ccccdc",
        _ => panic!("an unknown colour: {name}"),
    }
}

/// As `valueFormats` of @grafana/data has them.
pub(super) fn formatted(value: f64, unit: &str, decimals: Option<usize>) -> String {
    let number = |value: f64| fixed(value, decimals);
    let scaled = |factor: f64, units: &[&str]| {
        let steps = if value == 0.0 { 0.0 } else { (value.abs().ln() / factor.ln() + 1e-12).floor() };
        let index = (steps.max(0.0) as usize).min(units.len() - 1);
        format!("{}{}", number(value / factor.powi(index as i32)), units[index])
    };
    match unit {
        "short" => scaled(1000.0, &["", " K", " Mil", " Bil", " Tri"]),
        "bytes" => scaled(1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"]),
        "percentunit" => number(value * 100.0) + "%",
        "s" => {
            const UNITS: [(f64, &str); 9] = [
                (31_536_000.0, "years"),
                (604_800.0, "weeks"),
                (86_400.0, "days"),
                (3600.0, "hours"),
                (60.0, "mins"),
                (1.0, "s"),
                (1e-3, "ms"),
                (1e-6, "µs"),
                (1e-9, "ns"),
            ];
            let fits = |(size, _): &&(f64, &str)| value.abs() >= *size;
            let (size, name) = UNITS.iter().find(fits).unwrap_or(&UNITS[5]);
            format!("{} {name}", number(value / size))
        }
        _ => panic!("an unknown unit: {unit}"),
    }
}

/// Three significant digits unless told otherwise.
fn fixed(value: f64, decimals: Option<usize>) -> String {
    let automatic = || {
        let digits = 2.0 - value.abs().log10().floor();
        if value.fract() == 0.0 { 0 } else { digits.clamp(0.0, 12.0) as usize }
    };
    format!("{value:.*}", decimals.unwrap_or_else(automatic))
}

#[test]
fn values_are_shown_as_grafana_shows_them() {
    for (value, unit, decimals, text) in [
        (0.903, "percentunit", None, "90.3%"),
        (0.903, "percentunit", Some(0), "90%"),
        (0.0, "percentunit", Some(1), "0.0%"),
        (963_221.0, "short", None, "963 K"),
        (1000.0, "short", None, "1 K"),
        (3.0, "short", None, "3"),
        (4_110_828_800.0, "bytes", None, "3.83 GiB"),
        (37.4, "s", None, "37.4 s"),
        (0.0, "s", None, "0 s"),
        (0.19, "s", Some(0), "190 ms"),
        (8_640_000.0, "s", None, "14.3 weeks"),
    ] {
        assert_eq!(formatted(value, unit, decimals), text);
    }
}
