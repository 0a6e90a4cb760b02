//! The verdict: has data of this connection waited for an acknowledgement for too long?
//!
//! No field of `struct tcp_info` says how long the oldest unacknowledged byte has waited. `last_ack_received` alone
//! would cry wolf: on a connection that was quiet for a minute it says one minute in the moment in which a request goes
//! out. Two lower bounds are to be had, and the larger one counts.
//!
//! **From one look.** A segment that is not acknowledged is sent again after the retransmission timeout, each time
//! twice as long after the last. At the n-th doubling the first transmission is at least `rto·(1 − 2⁻ⁿ)` before the
//! last one, whatever the first timeout was (`tcp_retransmit_timer` in net/ipv4/tcp_timer.c: rto is doubled with
//! `icsk_backoff`). The last one was `last_data_sent` ago. Of the kubelet's connection that was cut off on a real node
//! this says 6.9 s where 7.1 s was true.
//!
//! **From several looks.** If data was outstanding at each and the peer acknowledged nothing between them
//! (`bytes_acked`), the oldest byte is at least as old as the first of them.
//!
//! Data that the peer's closed window holds back is never sent, so never unacknowledged; the peer lives and
//! acknowledges the probes. There the age of the last acknowledgement counts as well: it must be too old, too. The same
//! fields show a packet filter on this machine's own way out (OUTPUT), where TCP takes a refused segment for one that
//! was not sent: it is found by several looks, and, while the peer still repeats data of its own, later than others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::host::sockets::{TcpConnection, TcpInfo};

/// What is known of one connection, by its cookie, from looks before this one.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    connections: HashMap<u64, Track>,
}

#[derive(Clone, Copy, Debug)]
struct Track {
    /// Acknowledged when data was first seen outstanding, and when that was.
    waiting: Option<(u64, Instant)>,
    stalled: bool,
}

/// The verdict on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// For how long, at least, data has waited for an acknowledgement; `None` if none is outstanding.
    pub(super) waiting: Option<Duration>,
    /// Longer than the threshold.
    pub(super) stalled: bool,
    /// It was not stalled at the last look.
    pub(super) begins: bool,
}

impl Tracker {
    /// Judges every connection, in their order, and forgets those that are not among them.
    pub(super) fn judge(&mut self, connections: &[TcpConnection], threshold: Duration, now: Instant) -> Vec<Verdict> {
        let mut before = std::mem::take(&mut self.connections);
        let judge = |connection: &TcpConnection| {
            let Some(info) = &connection.info else {
                return Verdict { waiting: None, stalled: false, begins: false };
            };
            let last = before.remove(&connection.cookie);
            let (verdict, track) = one(connection, info, last, threshold, now);
            self.connections.insert(connection.cookie, track);
            verdict
        };
        connections.iter().map(judge).collect()
    }
}

fn one(
    connection: &TcpConnection,
    info: &TcpInfo,
    last: Option<Track>,
    threshold: Duration,
    now: Instant,
) -> (Verdict, Track) {
    let outstanding = connection.send_queue_bytes > 0 || info.unacked_segments > 0;
    let since = match (outstanding, info.bytes_acked) {
        (true, Some(acked)) => {
            let same = last.and_then(|last| last.waiting).filter(|(before, _)| *before == acked);
            Some(same.unwrap_or((acked, now)))
        }
        _ => None,
    };
    let seen = since.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
    let waiting = outstanding.then(|| seen.max(waited_at_least(info)));
    let silent = info.unacked_segments > 0 || info.last_ack_received > threshold;
    let stalled = silent && waiting.is_some_and(|waiting| waiting > threshold);
    let begins = stalled && !last.is_some_and(|last| last.stalled);
    (Verdict { waiting, stalled, begins }, Track { waiting: since, stalled })
}

/// From this one look alone.
fn waited_at_least(info: &TcpInfo) -> Duration {
    if info.unacked_segments == 0 {
        return Duration::ZERO;
    }
    // Beyond some doublings the rest is less than a millisecond.
    let before_last = info.rto.mul_f64(1.0 - 0.5_f64.powi(info.backoff.into()));
    before_last + info.last_data_sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::ss;

    const BLACKHOLED: &str = include_str!("../../../tests/fixtures/apiserver_connection/blackholed-v1.txt");
    const INBOUND_ONLY: &str = include_str!("../../../tests/fixtures/apiserver_connection/inbound-only-v1.txt");
    const V2: &str = include_str!("../../../tests/fixtures/apiserver_connection/blackholed-v2.txt");
    const THRESHOLD: Duration = Duration::from_secs(10);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A connection on which all is well and nothing outstanding.
    fn quiet() -> TcpConnection {
        let info = TcpInfo {
            rtt: Some(millis(4)),
            rtt_variance: Some(millis(7)),
            min_rtt: None,
            rto: millis(208),
            retransmitted_segments: 0,
            unacked_segments: 0,
            retransmits: 0,
            backoff: 0,
            probes: 0,
            last_ack_received: millis(60_000),
            last_data_sent: millis(60_000),
            last_data_received: millis(60_000),
            bytes_acked: Some(1_000),
            bytes_received: Some(1_000),
            unsent_bytes: Some(0),
            busy: None,
        };
        TcpConnection {
            state: crate::host::sockets::TcpState::Established,
            local: "10.250.0.1:52678".parse().unwrap(),
            peer: "10.250.0.1:6443".parse().unwrap(),
            inode: 7,
            cookie: 130,
            uid: 0,
            send_queue_bytes: 0,
            receive_queue_bytes: 0,
            info: Some(info),
        }
    }

    fn with(change: impl FnOnce(&mut TcpConnection, &mut TcpInfo)) -> TcpConnection {
        let mut connection = quiet();
        let mut info = connection.info.take().unwrap();
        change(&mut connection, &mut info);
        connection.info = Some(info);
        connection
    }

    /// A line of `ss -tinepmo`, and the second of the experiment that it belongs to. Lines of states other than ESTAB
    /// are not what we ask for.
    fn looks(recorded: &str) -> Vec<(f64, TcpConnection)> {
        let mut at = 0.0;
        let mut looks = Vec::new();
        for line in recorded.lines() {
            if let Some(rest) = line.strip_prefix("--- t=") {
                at = rest.split(' ').next().unwrap().parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("ESTAB ") {
                looks.push((at, ss::connection(rest)));
            }
        }
        assert!(looks.len() > 10, "the recording is gone");
        looks
    }

    /// The second of the experiment in which the verdict falls, judged at each look as a first one, and as one of all.
    fn falls_at(recorded: &str) -> (f64, f64) {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        let (mut alone, mut together) = (None, None);
        for (at, connection) in looks(recorded) {
            let now = start + Duration::from_secs_f64(at.max(0.0));
            let connection = std::slice::from_ref(&connection);
            if Tracker::default().judge(connection, THRESHOLD, now)[0].stalled {
                alone.get_or_insert(at);
            }
            if tracker.judge(connection, THRESHOLD, now)[0].stalled {
                together.get_or_insert(at);
            }
        }
        (alone.unwrap(), together.unwrap())
    }

    #[test]
    fn a_real_kubelets_connection_is_judged_ten_seconds_after_its_first_lost_write() {
        // The path died at 0; the first write on it came between 2.3 and 3.4 s, and the kubelet gave up at 37.5 s.
        let (alone, together) = falls_at(BLACKHOLED);
        assert!((12.3..=14.6).contains(&together), "{together}");
        assert!((together..=18.0).contains(&alone), "{alone}");
    }

    #[test]
    fn of_a_path_that_only_loses_replies_the_same_is_said() {
        for recorded in [INBOUND_ONLY, V2] {
            let (alone, together) = falls_at(recorded);
            assert!(together < 25.0 && alone < 30.0, "{together} {alone}");
        }
    }

    #[test]
    fn before_the_fault_nothing_is_said() {
        for recorded in [BLACKHOLED, INBOUND_ONLY, V2] {
            for (at, connection) in looks(recorded).into_iter().filter(|(at, _)| *at < 10.0) {
                let verdict = Tracker::default().judge(&[connection], THRESHOLD, Instant::now())[0];
                assert!(!verdict.stalled, "at {at}");
            }
        }
    }

    #[test]
    fn a_request_after_a_long_silence_is_no_stall() {
        let fresh = with(|connection, info| {
            connection.send_queue_bytes = 543;
            info.unacked_segments = 1;
            info.last_data_sent = millis(0);
        });
        let verdict = Tracker::default().judge(&[quiet(), fresh], THRESHOLD, Instant::now());
        assert_eq!(verdict[0], Verdict { waiting: None, stalled: false, begins: false });
        assert_eq!(verdict[1], Verdict { waiting: Some(Duration::ZERO), stalled: false, begins: false });
    }

    #[test]
    fn acknowledgements_in_between_start_the_clock_anew() {
        let start = Instant::now();
        let look = |acked| {
            with(|connection, info| {
                connection.send_queue_bytes = 10;
                info.unacked_segments = 1;
                info.last_data_sent = millis(5);
                info.bytes_acked = Some(acked);
            })
        };
        let mut tracker = Tracker::default();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            assert!(!tracker.judge(&[look(second)], THRESHOLD, now)[0].stalled, "a busy connection, at {second}");
        }
        let begins: Vec<bool> = (60..75)
            .map(|second| tracker.judge(&[look(0)], THRESHOLD, start + Duration::from_secs(second))[0].begins)
            .collect();
        assert_eq!(begins.iter().filter(|begins| **begins).count(), 1, "a stall is counted once: {begins:?}");
        assert!(begins[11], "more than ten seconds after the first look: {begins:?}");
    }

    #[test]
    fn a_closed_window_is_no_stall_while_the_peer_answers_its_probes() {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        let look = |last_ack| {
            with(|connection, info| {
                connection.send_queue_bytes = 100_000;
                info.unsent_bytes = Some(100_000);
                info.last_ack_received = last_ack;
            })
        };
        assert!(!tracker.judge(&[look(millis(100))], THRESHOLD, start)[0].stalled);
        let later = start + Duration::from_secs(60);
        assert!(!tracker.judge(&[look(millis(100))], THRESHOLD, later)[0].stalled);
        assert!(tracker.judge(&[look(millis(11_000))], THRESHOLD, later)[0].stalled, "nor does it answer those");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut tracker = Tracker::default();
        tracker.judge(&[quiet()], THRESHOLD, Instant::now());
        assert_eq!(tracker.connections.len(), 1);
        tracker.judge(&[], THRESHOLD, Instant::now());
        assert!(tracker.connections.is_empty());
    }
}
