//! The notation of promtool's cases: `0+1x3 _x2 stale`.

use headroom::verdict::promql::expression;
use headroom::verdict::{Labels, NAME, STALE, Store};
use promql_parser::parser::Expr;

pub(crate) fn labels(text: &str) -> Labels {
    if text.starts_with('{') && text.ends_with('}') && text.trim_matches(['{', '}']).trim().is_empty() {
        return Labels::default();
    }
    let Ok(Expr::VectorSelector(selector)) = expression::parse(text) else { panic!("{text}: no series") };
    let mut labels = Labels::from_pairs(selector.matchers.matchers.into_iter().map(|one| (one.name, one.value)));
    if let Some(name) = selector.name {
        labels.set(NAME, &name);
    }
    labels
}

pub(crate) fn values(text: &str) -> Vec<Option<f64>> {
    let mut values = Vec::new();
    for item in text.split_whitespace() {
        let (head, times) = match item.rsplit_once('x') {
            Some((head, times)) => (head, times.parse::<usize>().unwrap()),
            None => (item, 0),
        };
        match head {
            "_" => values.extend(std::iter::repeat_n(None, times.max(1))),
            "stale" => values.push(Some(STALE)),
            _ => {
                let (start, step) = head.parse().map_or_else(|_| sloped(head), |start| (start, 0.0));
                values.extend((0..=times).scan(start, |value: &mut f64, _| {
                    let now = *value;
                    *value += step;
                    Some(Some(now))
                }));
            }
        }
    }
    values
}

fn sloped(text: &str) -> (f64, f64) {
    let signs =
        text.char_indices().skip(1).filter(|(place, c)| matches!(c, '+' | '-') && !text[..*place].ends_with('e'));
    let (place, _) = signs.last().unwrap_or_else(|| panic!("{text}: no values"));
    (text[..place].parse().unwrap(), text[place..].parse().unwrap())
}

#[allow(dead_code, reason = "not every test binary fills a store")]
pub(crate) fn fill(store: &mut Store, series: &str, text: &str, interval: i64) {
    let labels = labels(series);
    for (place, value) in values(text).into_iter().enumerate() {
        if let Some(value) = value {
            store.append(labels.clone(), place as i64 * interval, value);
        }
    }
}
