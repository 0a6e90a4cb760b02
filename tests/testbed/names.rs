//! A name server that knows one name.

use std::net::{IpAddr, UdpSocket};

use crate::testbed::control::Names;

pub const NAME: &str = "api.test";

/// Answers until the process ends.
pub fn serve(socket: &UdpSocket, told: impl Fn() -> (Names, Vec<IpAddr>)) {
    let mut packet = [0; 512];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
        let (act, addresses) = told();
        if let Some(reply) = reply(&packet[..length], &addresses, act) {
            let _ = socket.send_to(&reply, from);
        }
    }
}

/// RFC 1035, section 4: a header of twelve bytes, the question as it came, the answers.
fn reply(query: &[u8], addresses: &[IpAddr], act: Names) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let mut name = String::new();
    let mut at = 0;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(question.get(at..at + length)?).ok()?);
        at += length;
    }
    let kind = u16::from_be_bytes(question.get(at..at + 2)?.try_into().ok()?);
    let question = question.get(..at + 4)?;
    let known = name.eq_ignore_ascii_case(NAME);
    let code = match act {
        Names::Silent => return None,
        Names::ServerFailure => 2,
        Names::NoSuchName => 3,
        Names::Answer if !known => 3,
        Names::Answer => 0,
    };
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter(|_| code == 0)
        .filter_map(|address| match (kind, address) {
            (1, IpAddr::V4(address)) => Some(address.octets().to_vec()),
            (28, IpAddr::V6(address)) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut reply = query[..2].to_vec();
    // A response, recursion asked for and available.
    reply.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    reply.extend(question);
    for record in records {
        // The name as in the question, the same type, class IN, not to be kept.
        reply.extend([0xC0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 0, 0, record.len() as u8]);
        reply.extend(record);
    }
    Some(reply)
}
