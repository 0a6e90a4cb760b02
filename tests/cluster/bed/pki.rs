//! Certificates, keys and kubeconfigs of the cluster, and the account that the exporter has in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use super::{ADDRESS, APISERVER, Cluster, KUBERNETES_SERVICE, NODE};

const SERVER: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ServerAuth;
const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;

/// Everything that the daemons are started with, into `pki/` and `<user>.kubeconfig`.
pub(crate) fn issue(dir: &Path) {
    let pki = dir.join("pki");
    fs::create_dir(&pki).unwrap();
    let key = KeyPair::generate().unwrap();
    fs::write(pki.join("ca.key"), key.serialize_pem()).unwrap();
    fs::write(pki.join("ca.crt"), authority().self_signed(&key).unwrap().pem()).unwrap();
    let authority = Issuer::new(authority(), key);
    let sign = |name: &str, user: (&str, Option<&str>), usage: ExtendedKeyUsagePurpose, names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = params(user, names);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        fs::write(pki.join(format!("{name}.crt")), params.signed_by(&key, &authority).unwrap().pem()).unwrap();
        fs::write(pki.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    let node = format!("system:node:{NODE}");
    let service =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let addresses = ["localhost", "127.0.0.1", ADDRESS, KUBERNETES_SERVICE];
    let names: Vec<&str> = service.into_iter().chain(addresses).collect();
    sign("apiserver", ("kube-apiserver", None), SERVER, &names);
    sign("kubelet-serving", (&node, Some("system:nodes")), SERVER, &[NODE, ADDRESS]);
    sign("apiserver-kubelet-client", ("kube-apiserver-kubelet-client", Some("system:masters")), CLIENT, &[]);
    for (name, user) in [
        ("admin", ("admin", Some("system:masters"))),
        ("kubelet", (node.as_str(), Some("system:nodes"))),
        ("kube-controller-manager", ("system:kube-controller-manager", None)),
        ("kube-scheduler", ("system:kube-scheduler", None)),
    ] {
        sign(name, user, CLIENT, &[]);
        let credentials = json!({
            "client-certificate": pki.join(format!("{name}.crt")),
            "client-key": pki.join(format!("{name}.key")),
        });
        kubeconfig(dir, name, &credentials);
    }
    let accounts = KeyPair::generate().unwrap();
    fs::write(pki.join("accounts.key"), accounts.serialize_pem()).unwrap();
    fs::write(pki.join("accounts.pub"), accounts.public_key_pem()).unwrap();
}

fn authority() -> CertificateParams {
    let mut params = params(("headroom-test", None), Vec::new());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Gives the kubelet, once it is started again, a client's certificate that is valid for this long from now; for good
/// without.
pub(crate) fn kubelet_for(dir: &Path, valid: Option<Duration>) {
    let read = |name: &str| KeyPair::from_pem(&fs::read_to_string(dir.join("pki").join(name)).unwrap()).unwrap();
    let node = format!("system:node:{NODE}");
    let mut params = params((&node, Some("system:nodes")), Vec::new());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![CLIENT];
    if let Some(valid) = valid {
        params.not_after = (SystemTime::now() + valid).into();
    }
    let authority = Issuer::new(authority(), read("ca.key"));
    let certificate = params.signed_by(&read("kubelet.key"), &authority).unwrap();
    fs::write(dir.join("pki/kubelet.crt"), certificate.pem()).unwrap();
}

/// Of a user and perhaps its group.
fn params((user, group): (&str, Option<&str>), names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    // A century from a clock that may be wrong, and no more than what Kubernetes can subtract.
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2100, 1, 1);
    params
}

/// JSON is YAML.
fn kubeconfig(dir: &Path, name: &str, credentials: &serde_json::Value) -> PathBuf {
    let path = dir.join(format!("{name}.kubeconfig"));
    let server = json!({"server": format!("https://{APISERVER}"), "certificate-authority": dir.join("pki/ca.crt")});
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": name, "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "current-context": "test",
    });
    fs::write(&path, config.to_string()).unwrap();
    path
}

/// What an exporter outside of a pod is given.
pub(crate) struct Account {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) token: PathBuf,
}

/// A service account that may read what `deploy/` lets the exporter read, and its token.
pub(crate) fn account(cluster: &Cluster) -> Account {
    let token = cluster.dir().join("exporter.token");
    if !token.exists() {
        let rule =
            |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["get"]});
        let rules = [
            rule("", &["nodes", "nodes/configz"]),
            rule("coordination.k8s.io", &["leases"]),
            rule("discovery.k8s.io", &["endpointslices"]),
        ];
        let meta = json!({"name": "host-exporter", "namespace": "default"});
        let api = "rbac.authorization.k8s.io";
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
            {"apiVersion": format!("{api}/v1"), "kind": "ClusterRole", "metadata": {"name": "host-exporter"}, "rules": rules},
            {"apiVersion": format!("{api}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "host-exporter"},
             "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "host-exporter"},
             "subjects": [{"kind": "ServiceAccount", "name": "host-exporter", "namespace": "default"}]},
        ]});
        cluster.apply(&objects.to_string());
        let made = cluster.kubectl(&["create", "token", "host-exporter", "--duration=24h"]).unwrap();
        fs::write(&token, made.trim()).unwrap();
    }
    Account { kubeconfig: kubeconfig(cluster.dir(), "host-exporter", &json!({"tokenFile": &token})), token }
}
