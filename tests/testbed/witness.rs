//! What `ss` says about sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

#[derive(Debug)]
pub struct Socket {
    /// `ESTAB`, `FIN-WAIT-1` …
    pub state: String,
    pub receive_queue: u64,
    pub send_queue: u64,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Who holds it, as numbered outside of the namespaces; nobody if it is an orphan.
    pub pids: Vec<u32>,
    fields: BTreeMap<String, String>,
}

impl Socket {
    /// Of a line of `ss -tinpH -O`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let state = words.next()?.to_owned();
        let receive_queue = words.next()?.parse().ok()?;
        let send_queue = words.next()?.parse().ok()?;
        let (local, peer) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let pids = line.split("pid=").skip(1).filter_map(|rest| rest.split(',').next()?.parse().ok()).collect();
        let fields =
            words.filter_map(|word| word.split_once(':')).map(|(key, value)| (key.to_owned(), value.to_owned()));
        Some(Socket { state, receive_queue, send_queue, local, peer, pids, fields: fields.collect() })
    }

    /// A field that is a number, say `lastrcv` (milliseconds). `None`: not shown, which for most means zero.
    pub fn number(&self, field: &str) -> Option<f64> {
        self.fields.get(field)?.parse().ok()
    }

    /// Smoothed round trip time and its variance in seconds.
    pub fn rtt(&self) -> (f64, f64) {
        let (rtt, variance) = self.fields["rtt"].split_once('/').unwrap();
        (rtt.parse::<f64>().unwrap() / 1000.0, variance.parse::<f64>().unwrap() / 1000.0)
    }

    /// Retransmitted segments since the connection began.
    pub fn retransmits(&self) -> u64 {
        self.fields.get("retrans").map_or(0, |both| both.split_once('/').unwrap().1.parse().unwrap())
    }
}
