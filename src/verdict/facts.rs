//! What a person wants to see beside a verdict though no alert asks for it: which way the kubelet takes to the
//! apiserver, leg by leg, each with the series that says so.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use promql_parser::parser::Expr;

use super::History;
use super::promql::eval::Evaluator;
use super::promql::expression;
use super::promql::labels::Labels;
use crate::humanize;

/// Rows of one leg at the most.
const MOST: usize = 4;

struct Parsed {
    way: Expr,
    counts: Expr,
    stalled: Expr,
    unacknowledged: Expr,
    unread: Expr,
    received: Expr,
}

static PARSED: LazyLock<Parsed> = LazyLock::new(|| {
    let parse = |text: &str| expression::parse(text).expect("the expressions that are built in can be parsed");
    let of_legs = |name: &str| parse(&format!("headroom_apiserver_connection{name}{{leg=~\"kubelet|onward\"}}"));
    Parsed {
        way: parse("headroom_kubelet_apiserver_way_info"),
        counts: of_legs("s"),
        stalled: of_legs("_stalled"),
        unacknowledged: of_legs("_unacknowledged_seconds"),
        unread: of_legs("_unread_seconds"),
        received: of_legs("_last_data_received_seconds"),
    }
});

impl Parsed {
    fn all(&self) -> [&Expr; 6] {
        [&self.way, &self.counts, &self.stalled, &self.unacknowledged, &self.unread, &self.received]
    }
}

pub(super) fn names(wanted: &mut BTreeSet<String>) {
    PARSED.all().into_iter().for_each(|expr| expression::names(expr, wanted));
}

/// Every expression that a fact is found with.
#[cfg(test)]
pub(super) fn expressions() -> impl Iterator<Item = &'static Expr> {
    PARSED.all().into_iter()
}

/// The facts of a mode at the newest page, a line each.
pub fn facts(mode: &str, history: &History) -> Vec<String> {
    match (mode, history.span()) {
        ("apiserver_connection", Some((_, newest))) => way(&Evaluator::new(&history.store, newest)),
        _ => Vec::new(),
    }
}

fn way(at: &Evaluator<'_>) -> Vec<String> {
    let of = |expr: &Expr| at.vector(expr).unwrap_or_default();
    let mut lines: Vec<String> = of(&PARSED.way).iter().map(|element| way_in_words(&element.labels)).collect();
    let (unacknowledged, unread) = (of(&PARSED.unacknowledged), of(&PARSED.unread));
    let (received, counts) = (of(&PARSED.received), of(&PARSED.counts));
    for leg in ["kubelet", "onward"] {
        let is_of_leg = |labels: &Labels| labels.get("leg") == leg;
        for none in counts.iter().filter(|element| is_of_leg(&element.labels) && element.value == 0.0) {
            lines.push(format!("{}: no connection to an apiserver", who(&none.labels)));
        }
        for stalled in of(&PARSED.stalled).iter().filter(|element| is_of_leg(&element.labels)).take(MOST) {
            let labels = stalled.labels.without_name();
            let seconds = |vector: &[super::promql::eval::Element]| {
                let same = vector.iter().find(|element| element.labels.without_name() == labels);
                same.map(|element| element.value)
            };
            let duration = |value: f64| humanize::duration((value * 10.0).round() / 10.0);
            let mut line = format!("{} to {}: ", who(&labels), labels.get("peer"));
            if stalled.value == 1.0 {
                let waiting = seconds(&unacknowledged).unwrap_or(0.0);
                let unread = seconds(&unread).unwrap_or(0.0);
                line += &if waiting >= unread {
                    format!("STALLED, {} without an acknowledgement", duration(waiting))
                } else {
                    format!("STALLED, {} unread", duration(unread))
                };
            } else {
                line += "not stalled";
            }
            if let Some(received) = seconds(&received) {
                line += &format!(", data came in {} ago", duration(received));
            }
            lines.push(line);
        }
    }
    lines
}

fn way_in_words(labels: &Labels) -> String {
    let via = labels.get("via");
    match labels.get("way") {
        "direct" => "the kubelet's way to the apiserver: directly".to_owned(),
        "balancer" => format!("the kubelet's way to the apiserver: through {via} on this machine"),
        "proxy" => format!("the kubelet's way to the apiserver: by the proxy {via}"),
        _ => format!("the kubelet's way to the apiserver: unknown beyond {via}, where it connects"),
    }
}

fn who(labels: &Labels) -> String {
    match labels.get("leg") {
        "onward" => format!("from there on, {}", labels.get("owner")),
        _ => "the kubelet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::Limits;
    use super::*;

    type Row = (&'static str, Vec<(&'static str, &'static str)>, f64);

    fn told(page: Vec<Row>) -> Vec<String> {
        let mut history = History::new("node-a", Limits::default());
        history.add_rows(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), page);
        facts("apiserver_connection", &history)
    }

    #[test]
    fn a_way_leg_by_leg() {
        let kubelet = || vec![("owner", "kubelet"), ("peer", "127.0.0.1:6443"), ("leg", "kubelet")];
        let nginx = || vec![("owner", "nginx"), ("peer", "10.0.0.1:6443"), ("leg", "onward")];
        let lines = told(vec![
            ("headroom_kubelet_apiserver_way_info", vec![("way", "balancer"), ("via", "nginx")], 1.0),
            ("headroom_apiserver_connections", vec![("owner", "kubelet"), ("leg", "kubelet")], 1.0),
            ("headroom_apiserver_connections", vec![("owner", "nginx"), ("leg", "onward")], 1.0),
            ("headroom_apiserver_connection_stalled", kubelet(), 0.0),
            ("headroom_apiserver_connection_last_data_received_seconds", kubelet(), 2.04),
            ("headroom_apiserver_connection_stalled", nginx(), 1.0),
            ("headroom_apiserver_connection_unacknowledged_seconds", nginx(), 12.0),
            ("headroom_apiserver_connection_unread_seconds", nginx(), 0.0),
        ]);
        assert_eq!(
            lines,
            [
                "the kubelet's way to the apiserver: through nginx on this machine",
                "the kubelet to 127.0.0.1:6443: not stalled, data came in 2s ago",
                "from there on, nginx to 10.0.0.1:6443: STALLED, 12s without an acknowledgement",
            ]
        );
    }

    #[test]
    fn what_is_unknown_and_what_there_is_none_of() {
        let lines = told(vec![
            ("headroom_kubelet_apiserver_way_info", vec![("way", "unknown"), ("via", "127.0.0.1:6443")], 1.0),
            ("headroom_apiserver_connections", vec![("owner", "kubelet"), ("leg", "kubelet")], 0.0),
        ]);
        assert_eq!(
            lines,
            [
                "the kubelet's way to the apiserver: unknown beyond 127.0.0.1:6443, where it connects",
                "the kubelet: no connection to an apiserver",
            ]
        );
        assert!(told(vec![]).is_empty());
    }
}
