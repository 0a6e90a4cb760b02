//! Which networks the node's CNI configuration has, and from which addresses each gives.
//!
//! A runtime takes the first file of its directory, in the order of names. Further ones are other programs', or named
//! by a first one (multus).

use std::collections::BTreeSet;

use serde_json::Value;

use super::ranges::{Given, Range, RangeSet};
use crate::error::Error;
use crate::host::rootfs::Tree;

/// Where host-local keeps its reservations if it is not told (`backend/disk/backend.go`).
pub(super) const DATA_DIR: &str = "/var/lib/cni/networks";
/// Where flanneld writes the subnet of this node (`flannel-io/cni-plugin`).
const SUBNET_ENV: &str = "/run/flannel/subnet.env";
/// Files of one directory.
const MOST_FILES: usize = 64;
/// Networks of the node, and sets of ranges of one network.
pub(super) const MOST: usize = 32;

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// As the configuration calls it: also the name of its directory of reservations.
    pub(super) name: String,
    /// What gives its addresses: `host-local`, `calico-ipam`, … or the plugin that does so itself.
    pub(super) ipam: String,
    /// Where host-local keeps them.
    pub(super) data_dir: String,
    /// Of the file that a runtime takes.
    pub(super) first: bool,
    /// The sets, of each of which a pod gets an address. In words, why they are not known.
    pub(super) range_sets: Result<Vec<RangeSet>, String>,
}

impl Network {
    pub(super) fn is_host_local(&self) -> bool {
        self.ipam == "host-local"
    }
}

/// The networks of all of `directories`, and what could not be read. The first of a name counts.
pub(super) fn read(tree: &Tree, directories: &[String]) -> (Vec<Network>, Vec<Error>) {
    let (mut networks, mut errors) = (Vec::new(), Vec::new());
    for directory in directories {
        match of_directory(tree, directory, &mut errors) {
            Ok(found) => networks.extend(found),
            Err(error) if error.is_gone() => {}
            Err(error) => errors.push(error),
        }
    }
    let mut seen = BTreeSet::new();
    networks.retain(|network: &Network| seen.insert(network.name.clone()));
    networks.truncate(MOST);
    (networks, errors)
}

fn of_directory(tree: &Tree, directory: &str, errors: &mut Vec<Error>) -> crate::error::Result<Vec<Network>> {
    let (mut names, _) = tree.names(directory, MOST_FILES)?;
    names.sort_unstable();
    let mut networks: Vec<Network> = Vec::new();
    for name in names {
        let path = format!("{directory}/{}", name.display());
        if ![".conf", ".conflist", ".json"].iter().any(|end| path.ends_with(end)) {
            continue;
        }
        let text = match tree.read(&path) {
            Ok(text) => text,
            Err(error) => {
                errors.extend(Some(error).filter(|error| !error.is_gone()));
                continue;
            }
        };
        match serde_json::from_str(&text) {
            Ok(value) => {
                let first = networks.is_empty();
                of_configuration(tree, &value, first, &mut networks);
            }
            // A runtime passes over it as well.
            Err(error) => errors.push(Error::malformed(format!("{path}: {error}"))),
        }
    }
    Ok(networks)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// A plugin's configuration, a list of plugins, or one of either with others in it, as multus has them.
fn of_configuration(tree: &Tree, value: &Value, first: bool, networks: &mut Vec<Network>) {
    let name = text(value, "name");
    // Of a list the first plugin makes the interface, and those behind it change what there is.
    let plugin = list(value, "plugins").next().unwrap_or(value);
    for delegate in list(plugin, "delegates").take(MOST) {
        // Deeper ones there are none: multus delegates to no other multus.
        let plugin = list(delegate, "plugins").next().unwrap_or(delegate);
        networks.extend(of_plugin(tree, text(delegate, "name"), plugin, first));
    }
    if list(plugin, "delegates").next().is_none() {
        networks.extend(of_plugin(tree, name, plugin, first));
    }
}

fn of_plugin(tree: &Tree, name: &str, plugin: &Value, first: bool) -> Option<Network> {
    // What no runtime takes for a name leads out of the directory.
    if name.is_empty() || name.len() > 128 || name.contains('/') || name.starts_with('.') {
        return None;
    }
    let kind = text(plugin, "type");
    let none = Value::Null;
    let ipam = plugin.get("ipam").unwrap_or(&none);
    let flannel = kind == "flannel";
    let of_ipam = match text(ipam, "type") {
        "" if flannel => "host-local",
        "" => kind,
        other => other,
    };
    let range_sets = match of_ipam {
        "host-local" if flannel => of_flannel(tree, plugin),
        "host-local" => of_host_local(ipam),
        other => Err(format!("{other} keeps no reservations on this node that can be counted")),
    };
    let data_dir = Some(text(ipam, "dataDir")).filter(|path| path.starts_with('/')).unwrap_or(DATA_DIR);
    let data_dir = data_dir.trim_end_matches('/').to_owned();
    Some(Network { name: name.to_owned(), ipam: of_ipam.to_owned(), data_dir, first, range_sets })
}

fn range(value: &Value) -> Result<Range, String> {
    let of = |key| text(value, key);
    Range::new(Given {
        subnet: of("subnet"),
        range_start: of("rangeStart"),
        range_end: of("rangeEnd"),
        gateway: of("gateway"),
    })
}

/// `LoadIPAMConfig`: the single range of old, and then the sets.
fn of_host_local(ipam: &Value) -> Result<Vec<RangeSet>, String> {
    let mut sets = Vec::new();
    if !text(ipam, "subnet").is_empty() {
        sets.push(RangeSet::new(vec![range(ipam)?])?);
    }
    for set in list(ipam, "ranges").take(MOST) {
        let ranges = set.as_array().into_iter().flatten().map(range).collect::<Result<Vec<_>, _>>()?;
        sets.push(RangeSet::new(ranges)?);
    }
    if sets.is_empty() { Err("no ranges".to_owned()) } else { Ok(sets) }
}

/// flannel's plugin gives host-local the node's own subnets, whatever the configuration says of ranges.
fn of_flannel(tree: &Tree, plugin: &Value) -> Result<Vec<RangeSet>, String> {
    let path = Some(text(plugin, "subnetFile")).filter(|path| !path.is_empty()).unwrap_or(SUBNET_ENV);
    let environment = tree.read(path).map_err(|error| error.to_string())?;
    let mut sets = Vec::new();
    for variable in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"] {
        let value = environment.lines().find_map(|line| line.strip_prefix(variable)?.strip_prefix('='));
        let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { continue };
        sets.push(RangeSet::new(vec![range(&Value::from_iter([("subnet", network_of(value)?)]))?])?);
    }
    if sets.is_empty() { Err(format!("{path}: no subnet")) } else { Ok(sets) }
}

/// The subnet that an address with a length is in: flanneld writes its own address there.
fn network_of(text: &str) -> Result<String, String> {
    let wrong = || format!("no subnet: {text:?}");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let length: u32 = length.parse().map_err(|_| wrong())?;
    match super::ranges::address(address).ok_or_else(wrong)? {
        std::net::IpAddr::V4(address) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Ok(format!("{}/{length}", std::net::Ipv4Addr::from_bits(address.to_bits() & mask)))
        }
        std::net::IpAddr::V6(address) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Ok(format!("{}/{length}", std::net::Ipv6Addr::from_bits(address.to_bits() & mask)))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(files: &[(&str, &str)]) -> Vec<String> {
        let (_dir, tree) = Tree::recorded(files);
        let directories = ["/etc/cni/net.d".to_owned(), "/var/lib/rancher/k3s/agent/etc/cni/net.d".to_owned()];
        let (networks, errors) = read(&tree, &directories);
        let of = |network: &Network| {
            let sets = match &network.range_sets {
                Ok(sets) => sets.iter().map(|set| format!("{set}={}", set.size())).collect::<Vec<_>>().join(" "),
                Err(_) => "unknown".to_owned(),
            };
            format!(
                "{}{} {} {}: {sets}",
                if network.first { "*" } else { "" },
                network.name,
                network.ipam,
                network.data_dir
            )
        };
        networks.iter().map(of).chain(errors.iter().map(|error| format!("error: {}", error.reason()))).collect()
    }

    #[test]
    fn a_bridge_the_old_way_and_both_families() {
        let one = r#"{"cniVersion":"0.3.1","name":"kubenet","type":"bridge","ipam":{"type":"host-local","subnet":"10.88.0.0/16"}}"#;
        let both = r#"{"cniVersion":"1.0.0","name":"kindnet","plugins":[
            {"type":"ptp","ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state/",
             "ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:10:244::/64","rangeStart":"fd00:10:244::10"}]]}},
            {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let found = networks(&[
            ("etc/cni/net.d/10-kindnet.conflist", both),
            ("etc/cni/net.d/20-kubenet.conf", one),
            ("etc/cni/net.d/05-old.conf.bak", "no configuration"),
        ]);
        assert_eq!(
            found,
            [
                "*kindnet host-local /run/cni-ipam-state: 10.244.0.1-10.244.0.254=253 \
                 fd00:10:244::10-fd00:10:244:0:ffff:ffff:ffff:ffff=18446744073709551600",
                "kubenet host-local /var/lib/cni/networks: 10.88.0.1-10.88.255.254=65533",
            ]
        );
    }

    #[test]
    fn flannel_and_k3s() {
        let flannel = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[
            {"type":"flannel","delegate":{"hairpinMode":true,"forceAddress":true,"isDefaultGateway":true}},
            {"type":"portmap","capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}"#;
        let place = "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist";
        let environment =
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let found = networks(&[(place, flannel), ("run/flannel/subnet.env", environment)]);
        assert_eq!(found, ["*cbr0 host-local /var/lib/cni/networks: 10.42.3.1-10.42.3.254=253"]);
        assert_eq!(networks(&[(place, flannel)]), ["*cbr0 host-local /var/lib/cni/networks: unknown"]);
    }

    #[test]
    fn others_say_who_gives() {
        let calico = r#"{"name":"k8s-pod-network","plugins":[{"type":"calico","ipam":{"type":"calico-ipam"}}]}"#;
        let canal =
            r#"{"name":"canal","plugins":[{"type":"calico","ipam":{"type":"host-local","subnet":"usePodCidr"}}]}"#;
        let cilium = r#"{"name":"cilium","plugins":[{"type":"cilium-cni","enable-debug":false}]}"#;
        let multus = r#"{"name":"multus-cni-network","type":"multus","delegates":[
            {"name":"default","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"10.5.0.0/24"}}]}]}"#;
        assert_eq!(
            networks(&[
                ("etc/cni/net.d/00-multus.conf", multus),
                ("etc/cni/net.d/05-cilium.conflist", cilium),
                ("etc/cni/net.d/10-calico.conflist", calico),
                ("etc/cni/net.d/11-canal.conflist", canal),
            ]),
            [
                "*default host-local /var/lib/cni/networks: 10.5.0.1-10.5.0.254=253",
                "cilium cilium-cni /var/lib/cni/networks: unknown",
                "k8s-pod-network calico-ipam /var/lib/cni/networks: unknown",
                "canal host-local /var/lib/cni/networks: unknown",
            ]
        );
    }

    #[test]
    fn what_is_odd_costs_itself_alone() {
        let good = r#"{"name":"good","type":"bridge","ipam":{"type":"host-local","subnet":"10.5.0.0/24"}}"#;
        let again = r#"{"name":"good","type":"bridge","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}}"#;
        let found = networks(&[
            ("etc/cni/net.d/01-broken.conf", "{"),
            ("etc/cni/net.d/02-good.conf", good),
            ("etc/cni/net.d/03-again.conf", again),
            ("etc/cni/net.d/04-out.conf", r#"{"name":"../../etc","type":"bridge","ipam":{"type":"host-local"}}"#),
            ("etc/cni/net.d/05-none.conf", r#"{"type":"bridge"}"#),
            ("etc/cni/net.d/06-list.conf", "[]"),
        ]);
        assert_eq!(found, ["*good host-local /var/lib/cni/networks: 10.5.0.1-10.5.0.254=253", "error: malformed"]);
    }
}
