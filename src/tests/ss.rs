//! What `ss -tinepmo` printed on a recorded node, as the sockets that the kernel told it.

use std::time::Duration;

use crate::host::sockets::{TcpConnection, TcpInfo, TcpState};

/// Every established connection of a recording, one or two lines each; other states are not what we ask for.
pub(crate) fn connections(recorded: &str) -> Vec<TcpConnection> {
    let joined = recorded.replace("\n\t", " ");
    joined.lines().filter_map(|line| line.strip_prefix("ESTAB ")).map(connection).collect()
}

/// A connection by what follows `ESTAB`.
pub(crate) fn connection(line: &str) -> TcpConnection {
    let words: Vec<&str> = line.split_whitespace().collect();
    let text = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let number = |name: &str| text(name).map_or(0, |value| value.trim_end_matches("ms").parse::<u64>().unwrap());
    let millis = |name: &str| Duration::from_millis(number(name));
    // Of the words that begin with "rtt:" the round trip is the one with a deviation.
    let rtt = words.iter().find_map(|word| word.strip_prefix("rtt:")?.split_once('/'));
    let fraction = |millis: &str| Duration::from_secs_f64(millis.parse::<f64>().unwrap() / 1000.0);
    TcpConnection {
        state: TcpState::Established,
        local: words[2].parse().unwrap(),
        peer: words[3].parse().unwrap(),
        inode: number("ino:") as u32,
        cookie: text("sk:").map_or(0, |hex| u64::from_str_radix(hex, 16).unwrap()),
        uid: 0,
        receive_queue_bytes: words[0].parse().unwrap(),
        send_queue_bytes: words[1].parse().unwrap(),
        info: Some(TcpInfo {
            rtt: rtt.map(|(rtt, _)| fraction(rtt)),
            rtt_variance: rtt.map(|(_, variance)| fraction(variance)),
            min_rtt: text("minrtt:").map(fraction),
            rto: millis("rto:"),
            // "retrans:0/1": now and in all.
            retransmitted_segments: words
                .iter()
                .find_map(|word| word.strip_prefix("retrans:")?.split_once('/')?.1.parse().ok())
                .unwrap_or(0),
            unacked_segments: number("unacked:") as u32,
            retransmits: 0,
            backoff: number("backoff:") as u8,
            probes: 0,
            last_ack_received: millis("lastack:"),
            last_data_sent: millis("lastsnd:"),
            last_data_received: millis("lastrcv:"),
            bytes_acked: Some(number("bytes_acked:")),
            bytes_received: Some(number("bytes_received:")),
            unsent_bytes: Some(number("notsent:") as u32),
            busy: Some(millis("busy:")),
        }),
    }
}
