//! What the daemons are started with: command lines and configuration files.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::image::BUSYBOX;
use super::{ADDRESS, APISERVER, KUBERNETES_SERVICE, NODE, RUNTIME, SERVICES};

const PODS: &str = "10.244.0.0/24";

/// The command line of this daemon without its name.
pub(crate) fn arguments(name: &str, dir: &Path) -> Vec<String> {
    let state = dir.display().to_string();
    let pki = format!("{state}/pki");
    let kubeconfig = format!("{state}/{name}.kubeconfig");
    match name {
        "etcd" => vec![
            format!("--data-dir={state}/etcd"),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            // A cluster that lasts minutes has nothing to lose, and the disk may be busy.
            "--unsafe-no-fsync".to_owned(),
        ],
        "containerd" => vec![format!("--config={state}/containerd.toml")],
        "kube-apiserver" => vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={ADDRESS}"),
            format!("--advertise-address={ADDRESS}"),
            format!("--secure-port={}", APISERVER.rsplit(':').next().unwrap()),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--client-ca-file={pki}/ca.crt"),
            format!("--tls-cert-file={pki}/apiserver.crt"),
            format!("--tls-private-key-file={pki}/apiserver.key"),
            format!("--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt"),
            format!("--kubelet-client-key={pki}/apiserver-kubelet-client.key"),
            format!("--kubelet-certificate-authority={pki}/ca.crt"),
            // Else `kubectl exec` looks the node's name up in DNS.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--service-account-key-file={pki}/accounts.pub"),
            format!("--service-account-signing-key-file={pki}/accounts.key"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
        ],
        "kube-controller-manager" => vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            format!("--root-ca-file={pki}/ca.crt"),
            format!("--service-account-private-key-file={pki}/accounts.key"),
        ],
        "kube-scheduler" => vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
        ],
        "kubelet" => vec![
            format!("--config={state}/kubelet.yaml"),
            format!("--config-dir={state}/kubelet.conf.d"),
            format!("--kubeconfig={kubeconfig}"),
            // Another one than its default: what is below it is found by what the kubelet says.
            format!("--root-dir={state}/kubelet"),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={ADDRESS}"),
        ],
        _ => panic!("{name}: no such daemon"),
    }
}

/// The files that they name.
pub(crate) fn write(dir: &Path, systemd: bool, kubelet: Kubelet) {
    for folder in ["log", "static", "kubelet", "kubelet.conf.d", "cni", "kubectl"] {
        fs::create_dir(dir.join(folder)).unwrap();
    }
    write_kubelet(dir, systemd, kubelet);
    fs::write(dir.join("kubelet.conf.d/10-eviction.conf"), DROP_IN).unwrap();
    fs::write(dir.join("containerd.toml"), containerd(dir, systemd)).unwrap();
    fs::write(dir.join("cni/10-bridge.conflist"), network(dir)).unwrap();
}

/// Merged into the `evictionHard` of the file, key by key.
const DROP_IN: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard:
  nodefs.available: \"2%\"
  pid.available: \"3%\"
";

/// How the API of a kubelet is served: each is ordinary.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kubelet {
    /// On every address, with a certificate of the cluster's authority for the node's name and address.
    Signed,
    /// On every address, with the certificate that it makes and signs itself, as kubeadm leaves it.
    SelfSigned,
    /// On the node's address and another port only, with the certificate that it signs itself.
    AtTheNode,
}

pub(crate) fn write_kubelet(dir: &Path, systemd: bool, serves: Kubelet) {
    let pki = dir.join("pki").display().to_string();
    let certificate = format!("tlsCertFile: {pki}/kubelet-serving.crt\ntlsPrivateKeyFile: {pki}/kubelet-serving.key\n");
    let serving = match serves {
        Kubelet::Signed => certificate,
        Kubelet::SelfSigned => String::new(),
        Kubelet::AtTheNode => format!("address: {ADDRESS}\nport: 10270\n"),
    };
    fs::write(dir.join("kubelet.yaml"), kubelet(dir, systemd) + &serving).unwrap();
}

/// Thresholds of the disk at which a test can watch it evict.
pub(crate) fn evict(dir: &Path) {
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionPressureTransitionPeriod: 30s
evictionHard:
  nodefs.available: \"10%\"
  nodefs.inodesFree: \"5%\"
";
    fs::write(dir.join("kubelet.conf.d/50-evict.conf"), text).unwrap();
}

/// Thresholds of the file systems, and the image collector's, are below what a busy machine of CI has free: this
/// kubelet shall evict and delete nothing by itself. It asks the apiserver about each token anew, as any kubelet does
/// after two minutes at the latest.
fn kubelet(dir: &Path, systemd: bool) -> String {
    let state = dir.display();
    let driver = if systemd { "systemd" } else { "cgroupfs" };
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: {driver}
containerRuntimeEndpoint: unix://{RUNTIME}
staticPodPath: {state}/static
podLogsDir: {state}/pod-logs
volumePluginDir: {state}/plugins
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true, cacheTTL: 1s}}
  x509: {{clientCAFile: {state}/pki/ca.crt}}
authorization: {{mode: Webhook, webhook: {{cacheAuthorizedTTL: 1s, cacheUnauthorizedTTL: 1s}}}}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
healthzBindAddress: 127.0.0.1
healthzPort: 10248
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard:
  imagefs.available: \"1%\"
  memory.available: \"100Mi\"
  nodefs.available: \"3%\"
  nodefs.inodesFree: \"1%\"
evictionSoft:
  memory.available: \"200Mi\"
evictionSoftGracePeriod:
  memory.available: \"1m30s\"
"
    )
}

fn containerd(dir: &Path, systemd: bool) -> String {
    let state = dir.display();
    // Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj: "can't get final child's PID from pipe: EOF".
    let restrict = !may_lower_oom_score();
    format!(
        r#"version = 2
root = "{state}/containerd"
state = "/run/containerd"
[grpc]
  address = "{RUNTIME}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX}"
  disable_apparmor = true
  restrict_oom_score_adj = {restrict}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = {systemd}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni"
"#
    )
}

/// Bit 24 of the capabilities that we may use.
fn may_lower_oom_score() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << 24 != 0
}

fn network(dir: &Path) -> String {
    let bridge = json!({
        "type": "bridge",
        "bridge": "headroom0",
        "isGateway": true,
        "ipam": {
            "type": "host-local",
            "dataDir": dir.join("addresses"),
            "ranges": [[{"subnet": PODS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    json!({"cniVersion": "0.4.0", "name": "headroom", "plugins": [bridge]}).to_string()
}

/// Makes the address of the Service `kubernetes` lead to the apiserver, as kube-proxy does.
pub(crate) fn service_rules() -> String {
    let rule = format!("-d {KUBERNETES_SERVICE}/32 -p tcp --dport 443 -j DNAT --to-destination {APISERVER}");
    format!(
        "ip route replace {SERVICES} dev lo src {ADDRESS}
         for chain in OUTPUT PREROUTING; do
             iptables -w -t nat -C $chain {rule} 2>/dev/null || iptables -w -t nat -A $chain {rule}
         done"
    )
}
