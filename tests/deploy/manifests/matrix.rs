//! Values as people set them, and wrong ones with the words by which they must be refused.

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) values: &'static str,
}

const fn case(name: &'static str, values: &'static str) -> Case {
    Case { name, values }
}

pub(crate) fn values(name: &str) -> &'static str {
    CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}")).values
}

pub(crate) const CASES: &[Case] = &[
    case("default", ""),
    case(
        "operator",
        "
monitor:
  enabled: true
  labels: {release: kube-prometheus-stack}
  namespace: monitoring
  interval: 1m
  relabelings: [{targetLabel: cluster, replacement: east}]
  metricRelabelings: [{action: drop, sourceLabels: [__name__], regex: process_.*}]
prometheusRule:
  enabled: true
  labels: {release: kube-prometheus-stack}
  namespace: monitoring
  exclude: [kmem]
  runbookUrl: https://wiki.example.com/headroom/
dashboards: {enabled: true, namespace: grafana, label: dash, labelValue: yes-please, annotations: {grafana_folder: Nodes}}",
    ),
    case(
        "service monitor",
        "
monitor: {enabled: true, kind: ServiceMonitor, endpoint: {bearerTokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}}
web: {kubernetesAuth: true}
service: {annotations: {a: b}}",
    ),
    case("nothing of the operator", "{monitor: {enabled: false}, prometheusRule: {enabled: false}, service: {enabled: false}}"),
    case("no runtime", "runtime: {enabled: false}"),
    case("own runtime", "runtime: {endpoint: unix:///run/k3s/containerd/containerd.sock}"),
    case("no apiserver", "apiserver: {enabled: false}"),
    case("probe of the kubelet", "apiserver: {probeKubelet: true}"),
    case(
        "few collectors",
        r#"flags: {"collector.disable-defaults": true, "collector.open_files": true, "collector.kmem": true}"#,
    ),
    case(
        "flags",
        r#"
flags:
  collector.node_status.lease-interval: 5s
  collector.cgroup_leak.max-directories: 1000000
  collector.open_files.runtime-sockets: [/run/a.sock, /run/b.sock]
  collector.kmem: false
  log.format: json
  web.telemetry-path: /node
  apiserver.probe-path: /livez?exclude=etcd
extraArgs: [--log.level=debug]
extraEnv: [{name: MALLOC_ARENA_MAX, value: "2"}]
extraVolumes: [{name: extra, emptyDir: {}}]
extraVolumeMounts: [{name: extra, mountPath: /extra}]"#,
    ),
    case(
        "tls",
        "
web:
  config:
    tls_server_config: {cert_file: /etc/headroom-exporter/tls/tls.crt, key_file: /etc/headroom-exporter/tls/tls.key}
    basic_auth_users: {prometheus: $2y$10$abcdefghijklmnopqrstuv}
  tlsSecret: headroom-tls
monitor: {enabled: true, endpoint: {tlsConfig: {insecureSkipVerify: true}}}",
    ),
    case(
        "client certificates",
        "
web:
  config:
    tls_server_config: {cert_file: /t/tls.crt, key_file: /t/tls.key, client_ca_file: /t/ca.crt, client_auth_type: RequireAndVerifyClientCert}
extraVolumes: [{name: t, secret: {secretName: t}}]
extraVolumeMounts: [{name: t, mountPath: /t, readOnly: true}]",
    ),
    case("own web secret", "web: {existingSecret: my-web, scheme: https}"),
    case("loopback", "web: {host: 127.0.0.1, port: 9999}"),
    case("loopback of IPv6", "web: {host: \"[::1]\"}"),
    case("no host network", "{hostNetwork: false, hostPID: false, networkPolicy: {enabled: true, from: [{namespaceSelector: {}}]}}"),
    case("network policy for all", "networkPolicy: {enabled: true}"),
    case("AppArmor profile of one's own", "appArmorProfile: Localhost/headroom"),
    case("a host whose / is private", "mountPropagation: None"),
    case("no AppArmor", "appArmorProfile: \"\""),
    case(
        "image by digest",
        "
image:
  repository: registry.example.com/headroom
  digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  pullPolicy: Always
imagePullSecrets: [{name: registry}]",
    ),
    case(
        "everything about the pod",
        "
nameOverride: hr
fullnameOverride: hr-nodes
commonLabels: {team: nodes}
podLabels: {tier: node}
podAnnotations: {a: b}
annotations: {c: d}
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: gpu, operator: DoesNotExist}]}]}}}
nodeSelector: {pool: system}
tolerations: [{key: dedicated, operator: Exists, effect: NoSchedule}]
priorityClassName: system-cluster-critical
criticalPodsQuota: true
updateStrategy: {type: OnDelete, rollingUpdate: null}
resources: {limits: {cpu: 200m}}
securityContext: {capabilities: {add: [SYS_PTRACE]}, seLinuxOptions: {type: spc_t}}
podSecurityContext: {supplementalGroups: [1]}
readinessProbe: {periodSeconds: 60}
terminationGracePeriodSeconds: 30",
    ),
    case("accounts of one's own", "{serviceAccount: {create: false, name: mine}, rbac: {create: false}}"),
    case("gke.yaml", include_str!("../../../deploy/helm/examples/gke.yaml")),
    case("k0s.yaml", include_str!("../../../deploy/helm/examples/k0s.yaml")),
    case("k3s.yaml", include_str!("../../../deploy/helm/examples/k3s.yaml")),
    case("kind.yaml", include_str!("../../../deploy/helm/examples/kind.yaml")),
    case("microk8s.yaml", include_str!("../../../deploy/helm/examples/microk8s.yaml")),
    case("openshift.yaml", include_str!("../../../deploy/helm/examples/openshift.yaml")),
    case("talos.yaml", include_str!("../../../deploy/helm/examples/talos.yaml")),
];

pub(crate) const WRONG: &[(&str, &[&str])] = &[
    ("tolerationz: []", &["tolerationz"]),
    ("image: {repo: x}", &["/image", "repo"]),
    ("image: {digest: deadbeef}", &["/image/digest"]),
    ("web: {port: 99999}", &["/web/port"]),
    ("web: {port: \"10843\"}", &["/web/port", "integer"]),
    ("runtime: {enabled: \"no\"}", &["/runtime/enabled", "boolean"]),
    ("runtime: {endpoint: tcp://127.0.0.1:2375}", &["/runtime/endpoint"]),
    ("{runtime: {enabled: false, endpoint: /run/x.sock}}", &["runtime.enabled is false"]),
    ("flags: {collector.kmen: false}", &["/flags", "collector.kmen"]),
    ("flags: {log: {level: debug}}", &["/flags", "log"]),
    ("flags: {node-name: x}", &["/flags", "node-name"]),
    ("flags: {web.max-requests: true}", &["/flags/web.max-requests"]),
    ("extraArgs: [debug]", &["/extraArgs/0"]),
    ("securityContext: {capabilities: {add: [CAP_SYS_PTRACE]}}", &["/securityContext/capabilities/add/0"]),
    ("securityContext: {readOnlyRootFilesytem: true}", &["readOnlyRootFilesytem"]),
    ("monitor: {enabled: yes-please}", &["/monitor/enabled", "auto"]),
    ("monitor: {kind: Probe}", &["/monitor/kind", "PodMonitor"]),
    ("monitor: {interval: 15}", &["/monitor/interval"]),
    (
        "{monitor: {enabled: true, kind: ServiceMonitor}, service: {enabled: false}}",
        &["ServiceMonitor needs service.enabled"],
    ),
    ("prometheusRule: {exclude: [memory]}", &["/prometheusRule/exclude/0", "kmem"]),
    ("mountPropagation: Bidirectional", &["/mountPropagation"]),
    ("appArmorProfile: unconfined", &["/appArmorProfile"]),
    ("{web: {kubernetesAuth: true}, apiserver: {enabled: false}}", &["web.kubernetesAuth asks the apiserver"]),
    (
        "{apiserver: {enabled: false}, flags: {apiserver.url: https://x}}",
        &["apiserver.enabled is false", "apiserver.url"],
    ),
    ("{apiserver: {enabled: false, probeKubelet: true}}", &["apiserver.probeKubelet asks the apiserver"]),
    ("web: {tlsSecret: x}", &["web.tlsSecret is only mounted"]),
    ("web: {existingSecret: x, config: {tls_server_config: {}}}", &["leave one out"]),
    ("serviceAccount: {create: false}", &["serviceAccount.name must say"]),
];
