//! I4: a client of the runtime's socket never closes a connection.

use super::drill::Drill;
use super::machine::{Machine, NO_CGROUPS};
use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common;
use crate::common::prometheus::Release;

/// The runtime's stand-in: takes every connection and keeps it, with room for more than the client has.
const DAEMON: &str = r"
import resource, socket
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
open('/proc/self/comm', 'w').write('dockerd')
server = socket.socket(socket.AF_UNIX)
server.bind('/run/docker.sock')
server.listen(64)
print('ready', flush=True)
kept = []
while True: kept.append(server.accept())
";
pub fn i4_a_client_that_leaks_connections_to_the_runtime() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    machine.namespace.run("mount -t tmpfs tmpfs /run");
    let machine = machine.with("", &NO_CGROUPS);
    let mut python = machine.namespace.command("python3");
    let daemon = machine.spawn(python.args(["-c", DAEMON]).stdout(std::process::Stdio::null()));
    common::eventually("the runtime listens", || machine.namespace.run("ls /run").contains("docker.sock"));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Three);
    stack.is_calm();
    // Who else has such a user on this machine has its inotify as well.
    let uid = 300_000 + fastrand::u32(..100_000);
    let inotify = Drill::start(&machine.namespace, &format!("inotify --uid {uid}"));
    let leak = "open-files --runtime-socket /run/docker.sock --every 40ms --count 380 --limit 400";
    let mut agent = Drill::start(&machine.namespace, leak);
    let fault = agent.says("t=0s");
    let of = [("mode", "open_files"), ("comm", "headroom-drill")];
    let leak = stack.arrives("HeadroomRuntimeSocketClientLeak", &of);
    tell("I4, connections", pace, fault, &leak);
    assert_eq!((leak.label("severity"), leak.label("peer")), ("warning", "process"));
    leak.says("summary", &["headroom-drill holds", "runtime connections"]);
    let near = stack.arrives("HeadroomProcessNearFdLimit", &of);
    tell("I4, limit", pace, fault, &near);
    near.says("description", &["of its soft limit of open files", "too many open files"]);
    let uid = uid.to_string();
    let user = stack.arrives("HeadroomInotifyInstancesNearLimit", &[("severity", "warning"), ("uid", &uid)]);
    tell("I1, inotify", pace, fault, &user);
    agent.end(&["HeadroomRuntimeSocketClientLeak"]);
    inotify.end(&["HeadroomInotifyInstancesNearLimit"]);
    stack.all_resolve();
    stack.only(&["HeadroomRuntimeSocketClientLeak", "HeadroomProcessNearFdLimit", "HeadroomInotifyInstancesNearLimit"]);
    drop(daemon);
}
