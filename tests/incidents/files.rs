//! I4: a client of the runtime's socket never closes a connection.

use std::time::Instant;

use crate::common;
use crate::machine::{Machine, NO_CGROUPS, Process};
use crate::pace::Pace;
use crate::stack::Stack;
use crate::{possible, tell};

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
/// Limit, connections a second.
const AGENT: &str = r"
import resource, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))
open('/proc/self/comm', 'w').write('agent')
kept = []
while True:
    try:
        client = socket.socket(socket.AF_UNIX)
        client.connect('/run/docker.sock')
        kept.append(client)
    except OSError: pass
    time.sleep(1 / float(sys.argv[2]))
";

fn python(machine: &Machine, script: &str, arguments: &[&str]) -> Process {
    machine.spawn(
        machine.namespace.command("python3").args(["-c", script]).args(arguments).stdout(std::process::Stdio::null()),
    )
}

#[test]
fn i4_a_client_that_leaks_connections_to_the_runtime() {
    if !possible() {
        return;
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    machine.namespace.run("mount -t tmpfs tmpfs /run");
    let machine = machine.with("", &NO_CGROUPS);
    let daemon = python(&machine, DAEMON, &[]);
    common::eventually("the runtime listens", || machine.namespace.run("ls /run").contains("docker.sock"));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace);
    stack.is_calm();
    let fault = Instant::now();
    let agent = python(&machine, AGENT, &["400", "25"]);
    let leak = stack.arrives("HeadroomRuntimeSocketClientLeak", &[("mode", "open_files"), ("comm", "agent")]);
    tell("I4, connections", pace, fault, &leak);
    assert_eq!((leak.label("severity"), leak.label("peer")), ("warning", "process"));
    leak.says("summary", &["agent holds", "/run/docker.sock"]);
    let near = stack.arrives("HeadroomProcessNearFdLimit", &[("mode", "open_files"), ("comm", "agent")]);
    tell("I4, limit", pace, fault, &near);
    near.says("description", &["of its soft limit of open files", "too many open files"]);
    drop(agent);
    stack.all_resolve();
    stack.only(&["HeadroomRuntimeSocketClientLeak", "HeadroomProcessNearFdLimit"]);
    drop(daemon);
}
