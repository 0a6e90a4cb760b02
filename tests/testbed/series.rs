//! The series that the network side's tests look at, by short names.

use crate::common::Page;

/// A series of a page as it is written there.
pub fn series(name: &str, labels: &[(&str, &str)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

fn leg(owner: &str) -> &'static str {
    if owner == "kubelet" { "kubelet" } else { "other" }
}

pub trait Series {
    fn of(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64>;

    /// A figure of a connection that somebody has with a peer, `headroom_apiserver_connection_…`. Nobody's is a leg of
    /// the kubelet's way but its own.
    fn connection(&self, figure: &str, owner: &str, peer: &str) -> Option<f64> {
        let labels = [("owner", owner), ("peer", peer), ("leg", leg(owner))];
        self.of(&format!("headroom_apiserver_connection_{figure}"), &labels)
    }

    fn connections(&self, owner: &str) -> Option<f64> {
        self.of("headroom_apiserver_connections", &[("owner", owner), ("leg", leg(owner))])
    }

    /// Probes that ended so, 0 if there is no such series.
    fn probes(&self, connection: &str, result: &str) -> f64 {
        let labels = [("connection", connection), ("result", result)];
        self.of("headroom_apiserver_probe_total", &labels).unwrap_or(0.0)
    }

    fn failures(&self, connection: &str, phase: &str, result: &str) -> f64 {
        let labels = [("connection", connection), ("phase", phase), ("result", result)];
        self.of("headroom_apiserver_probe_failures_total", &labels).unwrap_or(0.0)
    }

    /// Every probe that did not end well.
    fn all_failures(&self, connection: &str) -> f64;

    /// How the last probe ended.
    fn success(&self, connection: &str) -> Option<bool> {
        let success = self.of("headroom_apiserver_probe_success", &[("connection", connection)])?;
        Some(success == 1.0)
    }

    fn both(&self, success: bool) -> bool {
        ["reused", "fresh"].iter().all(|connection| self.success(connection) == Some(success))
    }

    fn reconnects(&self, reason: &str) -> f64 {
        self.of("headroom_apiserver_probe_reconnects_total", &[("reason", reason)]).unwrap_or(0.0)
    }

    /// Sum and count of a phase's durations.
    fn phase(&self, connection: &str, phase: &str) -> Option<(f64, f64)> {
        let of = |part: &str| {
            let name = format!("headroom_apiserver_probe_duration_seconds_{part}");
            self.of(&name, &[("connection", connection), ("phase", phase)])
        };
        Some((of("sum")?, of("count")?))
    }
}

impl Series for Page {
    fn of(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.get(&series(name, labels))
    }

    fn all_failures(&self, connection: &str) -> f64 {
        let ours = format!("connection=\"{connection}\"");
        let rows = self.family("headroom_apiserver_probe_failures_total");
        rows.filter(|(series, _)| series.contains(&ours)).map(|(_, value)| value).sum()
    }
}
