//! A range of host-local runs out: Debian's host-local is asked for addresses, in a namespace of its own, until it has
//! none.

use super::machine::{Machine, NO_CGROUPS};
use super::pace::Pace;
use super::stack::Stack;
use super::{possible, tell};
use crate::common::prometheus::Release;

const HOST_LOCAL: &str = "/usr/lib/cni/host-local";
const CONFIGURATION: &str =
    r#"{"cniVersion":"0.4.0","name":"replay","type":"bridge","ipam":{"type":"host-local","subnet":"10.77.3.0/27"}}"#;

/// Asks for the addresses of pods, and says how many were given.
fn ask(machine: &Machine, pods: std::ops::Range<u32>) -> usize {
    let given = pods.filter(|pod| {
        let script = format!(
            "echo '{CONFIGURATION}' | CNI_COMMAND=ADD CNI_CONTAINERID={pod:064x} CNI_NETNS=/none CNI_IFNAME=eth0 \\
             CNI_PATH=/usr/lib/cni {HOST_LOCAL} >/dev/null"
        );
        machine.namespace.command("sh").args(["-c", &script]).status().unwrap().success()
    });
    given.count()
}

pub fn host_local_has_no_address_left() {
    if !possible() {
        return;
    }
    if !std::path::Path::new(HOST_LOCAL).exists() {
        return crate::common::say_skip("no host-local (Debian: containernetworking-plugins)");
    }
    let pace = Pace::of_this_run();
    let machine = Machine::new();
    machine.namespace.run(&format!(
        "mkdir -p /etc/cni && mount -t tmpfs tmpfs /etc/cni && mkdir /etc/cni/net.d &&
         echo '{CONFIGURATION}' > /etc/cni/net.d/10-replay.conf"
    ));
    let machine = machine.with("", &NO_CGROUPS);
    // 29 addresses: 25 pods leave more than a tenth.
    assert_eq!(ask(&machine, 0..25), 25);
    let set = r#"{network="replay",range_set="10.77.3.1-10.77.3.30"}"#;
    assert_eq!(machine.scrape().get(&format!("headroom_cni_addresses_free{set}")), Some(4.0));
    let stack = Stack::start(&machine.namespace, machine.exporter().address, pace, Release::Installed);
    stack.is_calm();
    let fault = std::time::Instant::now();
    assert_eq!(ask(&machine, 25..40), 4, "host-local gives what we say is free");
    let labels = [("mode", "cni_leak"), ("severity", "critical"), ("network", "replay")];
    let notice = stack.arrives("HeadroomCniAddressesLow", &labels);
    tell("host-local without an address", pace, fault, &notice);
    notice.says("summary", &["0 addresses left for pods in network replay"]);
    notice.says("description", &["no IP addresses available in range set", "10.77.3.1-10.77.3.30"]);
    // As the runbook says.
    machine.namespace.run("cd /var/lib/cni/networks/replay && rm 10.77.3.2? 10.77.3.30");
    stack.all_resolve();
    stack.only(&["HeadroomCniAddressesLow"]);
}
