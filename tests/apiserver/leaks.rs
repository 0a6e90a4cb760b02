//! The client of the apiserver through two hundred faults: nothing of any connection stays. Alone in its binary,
//! because it counts the descriptors of its own process.
#![allow(clippy::disallowed_methods, reason = "a test makes its own files")]

use std::sync::Arc;
use std::time::Duration;

use headroom::apiserver::{Address, Ask, Client, Outcome, ReconnectReason, Settings};
use headroom::host::{Host, Roots};

use crate::common;
use crate::common::apiserver as http2;
use crate::common::apiserver::{Act, Fate};
use crate::common::tls_server::Authority;

const CYCLES: usize = 200;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_faults_leave_nothing_behind() {
    alone!();
    let ca = Authority::new("cluster");
    let dir = tempfile::tempdir().unwrap();
    let (token, authority) = (dir.path().join("token"), dir.path().join("ca.crt"));
    std::fs::write(&token, "abc").unwrap();
    std::fs::write(&authority, &ca.pem).unwrap();
    let config = ca.issue(&["127.0.0.1"]).config(None);
    let server = http2::Server::start(config, Act::ok("ok"));
    let settings = Settings {
        ask: Ask::At(Address::apiserver(&server.url()).unwrap()),
        token_file: Some(token),
        ca_file: Some(authority),
        timeout: Duration::from_millis(400),
        ..Settings::default()
    };
    let client = Client::new(settings, Arc::new(Host::new(Roots::default()))).unwrap();
    // On a loaded machine a check may fail for want of time; the one after it tries anew.
    let well = async || {
        for _ in 0..20 {
            if client.check("/livez").await.unwrap().outcome().0 == Outcome::Ok {
                return;
            }
        }
        panic!("twenty checks in a row failed");
    };
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    well().await;
    assert_eq!(client.fresh("/livez").await.unwrap().outcome, Outcome::Ok);
    common::eventually("one connection", || server.open() == 1);
    let (descriptors_before, tasks_before) = (descriptors(), tasks());

    let mut seen = std::collections::BTreeSet::new();
    for cycle in 0..CYCLES {
        server.act(Act::ok("ok"));
        // Those that cost a timeout are fewer.
        match cycle % 20 {
            0 => server.fate(Fate::Freeze),
            7 => server.act(Act::Silence),
            14 => server.act(Act::Head),
            other if other % 4 == 1 => server.fate(Fate::Goaway),
            other if other % 4 == 2 => server.fate(Fate::Close),
            other if other % 4 == 3 => server.fate(Fate::Reset),
            _ => server.act(Act::status(503, "no")),
        }
        let (check, fresh) = tokio::join!(client.check("/livez"), client.fresh("/livez"));
        fresh.unwrap();
        let object = client.get("/api/v1/nodes/n", 1 << 20).await.unwrap();
        assert!(!object.timings.is_empty() || object.outcome != Outcome::Ok);
        seen.extend(check.unwrap().made.map(|made| made.why));
        server.act(Act::ok("ok"));
        let check = client.check("/livez").await.unwrap();
        seen.extend(check.made.map(|made| made.why));
        well().await;
    }
    for why in [ReconnectReason::Dead, ReconnectReason::Goaway, ReconnectReason::Closed, ReconnectReason::Reset] {
        assert!(seen.contains(&why), "{why:?} was never met: {seen:?}");
    }
    assert!(server.connections() > CYCLES, "{}", server.connections());
    common::eventually("one connection", || server.open() == 1);
    common::eventually("the descriptors of before", || descriptors() <= descriptors_before);
    common::eventually("the tasks of before", || tasks() <= tasks_before);
    drop(client);
    common::eventually("no connection", || server.open() == 0);
    common::eventually("no task", || tasks() < tasks_before);
    assert!(descriptors() < descriptors_before);
}
