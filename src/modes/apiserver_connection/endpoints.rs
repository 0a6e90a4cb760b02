//! Which addresses are the apiserver's: what flags say, where our own probe goes, what the kubelet's kubeconfig names,
//! and what stands behind the service address.
//!
//! A socket knows the address that its process connected to. Through a service address that is the service's own
//! (kube-proxy rewrites packets, not sockets), unless the CNI replaces it at `connect` (Cilium): then it is one of the
//! endpoints of the `kubernetes` service, which take the right to `get` `endpointslices` to know. Names are resolved in
//! the background; an address that a name once had stays, because a connection outlives it.
//!
//! Where the kubelet itself connects is [`Hop`]: its server, or the proxy before that. Which of its sockets go there is
//! in `way.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::apiserver::kubeconfig::{self, TheirServer};
use crate::apiserver::{Address, HostPort};
use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};
use crate::kubelet::{handle, proxy};

/// How long the kubelet's kubeconfig is not read again, and how long one that could not be.
const KUBECONFIG_HOLDS: Duration = Duration::from_secs(60);
const KUBECONFIG_FAILS: Duration = Duration::from_secs(5);
/// Addresses of one name that are remembered, the newest ones.
const MOST_ADDRESSES: usize = 16;
/// How long one lookup may take: what the resolver's own defaults come to with two servers is more.
const LOOKUP: Duration = Duration::from_secs(10);
/// How often names are looked up, and how often while there is one without any address.
const LOOK_UP_EVERY: Duration = Duration::from_secs(60);
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);

/// Who says that an address is the apiserver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// `--apiserver.endpoints`
    Flag,
    /// The kubelet's own kubeconfig.
    Kubeconfig,
    /// Where our own probe goes.
    Probe,
    /// The endpoints of the `kubernetes` service.
    EndpointSlice,
    /// The kubelet's own connection, where its server is a name.
    Connection,
}

impl Source {
    /// The label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Source::Flag => "flag",
            Source::Kubeconfig => "kubeconfig",
            Source::Probe => "probe",
            Source::EndpointSlice => "endpointslice",
            Source::Connection => "connection",
        }
    }
}

/// Where the kubelet connects first on its way to the apiserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    /// Its server, or its proxy.
    pub(super) place: HostPort,
    /// It is a proxy: what is behind it is the proxy's.
    pub(super) is_proxy: bool,
    /// That of an IP address; every one that the name ever had.
    pub(super) addresses: Vec<IpAddr>,
    /// It is a name, whose addresses may be others for the kubelet, and may have been others.
    pub(super) is_name: bool,
    /// Why the name has no address.
    pub(super) error: Option<Error>,
    /// Where the kubelet goes is known as it is now: its kubeconfig and its environment could be read.
    pub(super) is_certain: bool,
}

impl Hop {
    pub(super) fn port(&self) -> u16 {
        self.place.port
    }
}

/// The addresses that are known at the moment.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Each with the first who says so.
    pub(super) addresses: BTreeMap<SocketAddr, Source>,
    /// Somebody names an apiserver, whether or not its name could be resolved.
    pub(super) named: bool,
    /// Where the kubelet connects; `None` if its kubeconfig does not say it.
    pub(super) hop: Option<Hop>,
    /// What could not be read or resolved.
    pub(super) errors: Vec<Error>,
}

/// Finds them out, and remembers.
#[derive(Debug)]
pub(super) struct Endpoints {
    flags: Vec<HostPort>,
    state: Mutex<State>,
    /// There is a name to look up now.
    look_up: Notify,
}

#[derive(Debug, Default)]
struct State {
    kubeconfig: Option<Read>,
    probe: Option<HostPort>,
    names: BTreeMap<String, Name>,
    slice: Vec<SocketAddr>,
}

/// What the kubelet's kubeconfig said, of which kubelet and when.
#[derive(Debug)]
struct Read {
    pid: Option<u32>,
    at: Instant,
    server: Result<Option<TheirServer>>,
    /// What it said last, for when it can no longer be read: the same kubelet goes on with it.
    last: Option<TheirServer>,
}

impl Read {
    fn holds(&self) -> bool {
        self.at.elapsed() < if self.server.is_ok() { KUBECONFIG_HOLDS } else { KUBECONFIG_FAILS }
    }
}

#[derive(Clone, Debug, Default)]
struct Name {
    addresses: Vec<IpAddr>,
    error: Option<Error>,
}

impl Endpoints {
    pub(super) fn new(flags: &[Address]) -> Self {
        Endpoints { flags: flags.iter().map(Address::place).collect(), state: Mutex::default(), look_up: Notify::new() }
    }

    /// True if somebody names addresses by a flag: then the others are a convenience.
    pub(super) fn were_told(&self) -> bool {
        !self.flags.is_empty()
    }

    /// What is known now. Names that are new are resolved by and by, see [`Endpoints::resolve`].
    /// `environment` is the kubelet's, if it could be read.
    pub(super) fn known(
        &self,
        host: &Host,
        kubelet: &handle::Look,
        environment: Option<&handle::Environment>,
        deadline: Deadline,
    ) -> Known {
        let mut state = self.lock();
        let mut known = Known::default();
        let (server, error) = state.kubeconfig(host, kubelet, deadline);
        known.named = server.is_some() || error.is_some();
        let is_read = error.is_none();
        known.errors.extend(error);
        let mut places: Vec<_> = self.flags.iter().map(|place| (place.clone(), Source::Flag)).collect();
        places.extend(server.iter().map(|server| (server.place.clone(), Source::Kubeconfig)));
        places.extend(state.probe.clone().map(|place| (place, Source::Probe)));
        known.named |= !places.is_empty();
        for (place, source) in places {
            let name = self.name(&mut state, &place);
            // Of the kubelet's and the probe's own names others tell: the hop, and how the probe ends.
            known.errors.extend(name.error.filter(|_| source == Source::Flag));
            for ip in name.addresses {
                known.addresses.entry(SocketAddr::new(ip, place.port)).or_insert(source);
            }
        }
        for address in &state.slice {
            known.addresses.entry(*address).or_insert(Source::EndpointSlice);
        }
        known.hop = server.map(|server| {
            let of_environment =
                environment.and_then(|one| one.proxies.for_server(server.tls, &server.place.host, server.place.port));
            let url = server.proxy.as_deref().or(of_environment);
            let by = url.map(proxy::place);
            // By a URL that is none nobody can connect.
            let is_certain = is_read && environment.is_some() && by != Some(None);
            let place = by.flatten().unwrap_or(server.place.clone());
            let Name { addresses, error } = self.name(&mut state, &place);
            let is_name = place.ip().is_none();
            Hop { place, is_proxy: url.is_some(), addresses, is_name, error, is_certain }
        });
        known
    }

    /// The addresses of a place, as far as they are known.
    fn name(&self, state: &mut State, place: &HostPort) -> Name {
        if let Some(ip) = place.ip() {
            return Name { addresses: vec![ip], error: None };
        }
        if let Some(name) = state.names.get(&place.host) {
            return name.clone();
        }
        self.look_up.notify_one();
        state.names.entry(place.host.clone()).or_default().clone()
    }

    /// Something speaks for it that a name has other addresses now.
    pub(super) fn look_up_now(&self) {
        self.look_up.notify_one();
    }

    /// Where our own probe goes.
    pub(super) fn probe_goes_to(&self, address: &Address) {
        self.lock().probe = Some(address.place());
    }

    /// What stands behind the service address, from now on.
    pub(super) fn behind_service(&self, addresses: Vec<SocketAddr>) {
        self.lock().slice = addresses;
    }

    /// Looks names up, for ever: one lookup at a time, because none can be stopped.
    pub(super) async fn resolve(self: Arc<Self>) {
        loop {
            let names: Vec<String> = self.lock().names.keys().cloned().collect();
            for name in names {
                let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((name.clone(), 0))).await;
                let found = match found {
                    Ok(Ok(addresses)) => Ok(addresses.map(|address| address.ip()).collect::<Vec<_>>()),
                    Ok(Err(error)) => Err(Error::new(Reason::Io, format!("{name}: {error}"))),
                    Err(_) => Err(Error::new(Reason::Timeout, format!("{name}: no answer from the name service"))),
                };
                self.lock().names.entry(name).or_default().note(found);
            }
            let wanting = self.lock().names.values().any(|name| name.addresses.is_empty());
            let pause = if wanting { LOOK_UP_AGAIN } else { LOOK_UP_EVERY };
            let _ = tokio::time::timeout(pause, self.look_up.notified()).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The kubelet's server, and why it could not be read as it is now.
    fn kubeconfig(
        &mut self,
        host: &Host,
        kubelet: &handle::Look,
        deadline: Deadline,
    ) -> (Option<TheirServer>, Option<Error>) {
        let pid = kubelet.process().map(|kubelet| kubelet.pid);
        let before = self.kubeconfig.take().filter(|read| read.pid == pid);
        let read = match before {
            Some(read) if read.holds() => read,
            before => {
                let server = kubelet.kubeconfig(host, deadline).and_then(|text| {
                    let Some(text) = text else { return Ok(None) };
                    kubeconfig::server(&text.text).map(Some).map_err(|error| error.context(text.path.display()))
                });
                let last = match &server {
                    Ok(server) => server.clone(),
                    Err(_) => before.and_then(|before| before.last),
                };
                Read { pid, at: Instant::now(), server, last }
            }
        };
        let found = (read.last.clone(), read.server.clone().err());
        self.kubeconfig = Some(read);
        found
    }
}

impl Name {
    fn note(&mut self, found: Result<Vec<IpAddr>>) {
        match found {
            Ok(found) => {
                self.addresses.retain(|address| !found.contains(address));
                self.addresses.splice(0..0, found);
                self.addresses.truncate(MOST_ADDRESSES);
                self.error = None;
            }
            // While an address is known, a name service that is down is no obstacle here.
            Err(error) => self.error = Some(error).filter(|_| self.addresses.is_empty()),
        }
    }
}

/// The addresses in an EndpointSlice. An endpoint that is not ready has connections all the same.
pub(super) fn of_slice(body: &[u8]) -> Result<Vec<SocketAddr>> {
    let malformed = |what: &str| Error::malformed(format!("EndpointSlice default/kubernetes: {what}"));
    let slice: serde_json::Value = serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))?;
    let list = |key: &str| slice[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let ports: Vec<u16> = list("ports").iter().filter_map(|port| port["port"].as_u64()?.try_into().ok()).collect();
    let texts = list("endpoints").iter().flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
    let ips: Vec<IpAddr> = texts.filter_map(|text| text.as_str()?.parse().ok()).collect();
    if slice["kind"] != "EndpointSlice" {
        return Err(malformed("is none"));
    }
    let all = ips.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
    Ok(all.take(MOST_ADDRESSES).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;
    use crate::kubelet::handle::Kubelet;
    use crate::kubelet::sources::Overrides;

    fn endpoints(flags: &[&str], kubeconfig: Option<&str>) -> (tempfile::TempDir, Host, Endpoints, Kubelet) {
        let dir = tempfile::tempdir().unwrap();
        let mut overrides = Overrides::default();
        if let Some(text) = kubeconfig {
            std::fs::write(dir.path().join("kubelet.conf"), text).unwrap();
            overrides.kubeconfig = Some("/kubelet.conf".into());
        }
        let flags: Vec<Address> = flags.iter().map(|flag| Address::apiserver(flag).unwrap()).collect();
        // No process: a kubelet of this very machine is none of ours.
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let roots = Roots { root: dir.path().into(), proc: dir.path().join("proc"), ..Roots::default() };
        let host = Host::new(roots);
        let kubelet = Kubelet::new(handle::Settings { overrides, ..handle::Settings::default() });
        (dir, host, Endpoints::new(&flags), kubelet)
    }

    fn known(endpoints: &Endpoints, host: &Host, kubelet: &Kubelet) -> Known {
        let deadline = Deadline::after(Duration::from_secs(60));
        endpoints.known(host, &kubelet.look(host, deadline, Instant::now()).unwrap(), None, deadline)
    }

    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n\
        clusters: [{name: c, cluster: {server: 'https://10.250.0.1:6443'}}]\nusers: [{name: u, user: {}}]\n";

    #[test]
    fn addresses_are_known_at_once_and_names_by_and_by() {
        let flags = ["https://[fd00::1]:6443", "https://api.example"];
        let (_dir, host, endpoints, kubelet) = endpoints(&flags, Some(KUBECONFIG));
        let look = || known(&endpoints, &host, &kubelet);
        let known = look();
        let listed: Vec<_> = known.addresses.iter().map(|(a, source)| format!("{a} {}", source.as_str())).collect();
        assert_eq!(listed, ["10.250.0.1:6443 kubeconfig", "[fd00::1]:6443 flag"]);
        assert!(known.errors.is_empty() && known.named);
        let note = |found| endpoints.lock().names.get_mut("api.example").unwrap().note(found);
        note(Err(Error::new(Reason::Io, "api.example: no")));
        assert_eq!(look().errors.len(), 1);
        note(Ok(vec!["192.0.2.1".parse().unwrap()]));
        note(Ok(vec!["192.0.2.2".parse().unwrap()]));
        note(Err(Error::new(Reason::Io, "api.example: no")));
        let known = look();
        let has = |text: &str| known.addresses.contains_key(&text.parse().unwrap());
        assert!(has("192.0.2.1:443") && has("192.0.2.2:443"), "a connection outlives the record: {known:?}");
        assert!(known.errors.is_empty());
    }

    #[test]
    fn names_do_not_grow_for_ever() {
        let mut name = Name::default();
        for number in 0..100 {
            name.note(Ok(vec![[192, 0, 2, number].into()]));
        }
        assert_eq!(name.addresses.len(), MOST_ADDRESSES);
        assert_eq!(name.addresses[0], IpAddr::from([192, 0, 2, 99]));
    }

    #[test]
    fn nobody_names_one() {
        let (_dir, host, endpoints, kubelet) = endpoints(&[], None);
        let look = || known(&endpoints, &host, &kubelet);
        let known = look();
        assert!(!known.named && known.addresses.is_empty() && known.errors.is_empty(), "{known:?}");
        endpoints.probe_goes_to(&Address::apiserver("https://10.0.0.9:6443").unwrap());
        assert_eq!(look().addresses.len(), 1);
    }

    #[test]
    fn a_broken_kubeconfig_is_an_error_that_names_it() {
        let (_dir, host, endpoints, kubelet) = endpoints(&[], Some("{"));
        let look = || known(&endpoints, &host, &kubelet);
        let known = look();
        assert!(known.named, "there is an apiserver, whichever");
        assert!(known.errors[0].to_string().contains("/kubelet.conf"), "{:?}", known.errors);
    }

    #[test]
    fn slices() {
        let body = br#"{"kind":"EndpointSlice","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":false}},
            {"addresses":["10.0.0.2"]}],"ports":[{"name":"https","port":6443}]}"#;
        assert_eq!(of_slice(body).unwrap(), ["10.0.0.1:6443", "10.0.0.2:6443"].map(|text| text.parse().unwrap()));
        assert!(of_slice(b"{}").is_err() && of_slice(b"<html>").is_err());
        assert!(of_slice(br#"{"kind":"EndpointSlice"}"#).unwrap().is_empty());
    }
}
