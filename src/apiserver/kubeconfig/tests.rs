use std::path::Path;

use super::*;
use crate::error::Reason;

/// As kubeadm writes it for a kubelet.
const KUBELET: &str = "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Y2EtcGVt
    server: https://control-plane.example:6443
  name: default-cluster
contexts:
- context:
    cluster: default-cluster
    namespace: default
    user: default-auth
  name: default-context
current-context: default-context
kind: Config
preferences: {}
users:
- name: default-auth
  user:
    client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem
    client-key: /var/lib/kubelet/pki/kubelet-client-current.pem
";

/// As `aws eks update-kubeconfig` writes it.
const EKS: &str = "apiVersion: v1
kind: Config
clusters:
- cluster:
    server: https://0123456789ABCDEF.gr7.eu-central-1.eks.amazonaws.com
    certificate-authority: ../pki/ca.crt
  name: kubernetes
contexts:
- context: {cluster: kubernetes, user: kubelet}
  name: kubelet
current-context: kubelet
users:
- name: kubelet
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: /usr/bin/aws-iam-authenticator
      args: [token, -i, prod, --region, eu-central-1]
";

/// As kubeadm's admin.conf, with a second cluster; wrapped base64 as some tools write it.
const SEVERAL: &str = "apiVersion: v1
kind: Config
current-context: admin@prod
clusters:
- name: staging
  cluster: {server: 'https://10.1.0.1:6443', insecure-skip-tls-verify: true}
- name: prod
  cluster:
    server: https://[fd00:1::1]:6443/
    certificate-authority: /not/this
    certificate-authority-data: |
      Y2Et
      cGVt
    tls-server-name: kubernetes
contexts:
- name: admin@staging
  context: {cluster: staging, user: nobody}
- name: admin@prod
  context: {cluster: prod, user: admin}
users:
- name: admin
  user:
    client-certificate-data: Y2VydA==
    client-key-data: c2VjcmV0LWtleQ==
    token: unused-secret
    tokenFile: tokens/admin
";

fn parse(text: &str) -> Result<Kubeconfig> {
    Kubeconfig::parse(text, Path::new("/etc/kubernetes"))
}

fn file(path: &str) -> Source {
    Source::File(path.into())
}

#[test]
fn of_a_kubelet() {
    let kubelet = parse(KUBELET).unwrap();
    assert_eq!(kubelet.server.to_string(), "https://control-plane.example:6443");
    assert_eq!(kubelet.ca, Some(Source::Inline(b"ca-pem".to_vec())));
    let pem = file("/var/lib/kubelet/pki/kubelet-client-current.pem");
    assert_eq!(kubelet.client, Some((pem.clone(), pem)));
    assert_eq!((kubelet.token, kubelet.server_name, kubelet.insecure_skip_verify), (None, None, false));
}

#[test]
fn the_current_context_counts_and_data_wins_over_files() {
    let admin = parse(SEVERAL).unwrap();
    assert_eq!(admin.server.to_string(), "https://[fd00:1::1]:6443");
    assert_eq!(admin.ca, Some(Source::Inline(b"ca-pem".to_vec())));
    assert_eq!(admin.client, Some((Source::Inline(b"cert".to_vec()), Source::Inline(b"secret-key".to_vec()))));
    assert_eq!(admin.token, Some(Bearer::File("/etc/kubernetes/tokens/admin".into())));
    assert_eq!((admin.server_name.as_deref(), admin.insecure_skip_verify), (Some("kubernetes"), false));
    let staging = SEVERAL.replace("current-context: admin@prod", "current-context: admin@staging");
    assert!(parse(&staging).unwrap_err().to_string().contains("has no user \"nobody\""));
    let staging = staging.replace("user: nobody", "user: ''");
    let staging = parse(&staging).unwrap();
    assert_eq!((staging.insecure_skip_verify, staging.client, staging.token), (true, None, None));
}

#[test]
fn nothing_secret_is_printed() {
    let inline = SEVERAL.replace("    tokenFile: tokens/admin\n", "");
    let inline = parse(&inline).unwrap();
    assert!(matches!(inline.token, Some(Bearer::Inline(_))));
    let shown = format!("{inline:?}");
    assert!(!shown.contains("secret") && !shown.contains("115, 101, 99"), "{shown}");
    for broken in ["users:\n- user: {token: secret\n  x", "users: [\"secret", "{\"token\": \"secret\", }", "secret"] {
        let error = parse(broken).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
    let error = parse(&SEVERAL.replace("c2VjcmV0LWtleQ==", "secret!")).unwrap_err().to_string();
    assert_eq!(error, "client-key-data is not base64");
    let error = parse(&SEVERAL.replace("token: unused-secret", "token: \"a\\nsecret\"").replace("tokenFile", "x"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cannot be a token") && !error.contains("secret"), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    let error = parse(EKS).unwrap_err();
    assert_eq!(error.reason(), Reason::Malformed);
    assert!(error.to_string().contains("\"exec\"") && error.to_string().contains("not supported"), "{error}");
    let user = "    exec:\n      apiVersion: client.authentication.k8s.io/v1beta1\n      command: /usr/bin/aws-iam-authenticator\n      args: [token, -i, prod, --region, eu-central-1]\n";
    for (line, word) in [
        ("auth-provider: {name: gcp}", "auth-provider"),
        ("username: admin", "username"),
        ("password: secret", "password"),
        ("as: somebody", "\"as\""),
    ] {
        let text = EKS.replace(user, &format!("    {line}\n"));
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains("secret"), "{line}: {error}");
    }
    let proxy = KUBELET.replace("    server:", "    proxy-url: http://proxy:3128\n    server:");
    assert!(parse(&proxy).unwrap_err().to_string().contains("proxy-url"));
    let plain = KUBELET.replace("https://", "http://");
    assert!(parse(&plain).unwrap_err().to_string().contains("expected https://"));
}

#[test]
fn what_is_no_kubeconfig() {
    for (text, words) in [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "not a mapping"),
        ("clusters: [", "neither YAML nor JSON"),
        ("{\"clusters\": [", "neither YAML nor JSON (line 1"),
        ("apiVersion: v1\nkind: Config\nclusters: []\n", "no current-context"),
        ("current-context: a\ncontexts: null\n", "has no context \"a\""),
        ("current-context: a\ncontexts: [{name: a, context: {user: b}}]\n", "names no cluster"),
        ("current-context: a\ncontexts: [{name: a, context: {cluster: b}}]\n", "has no cluster \"b\""),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.reason(), Reason::Malformed, "{text}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
    let no_server = KUBELET.replace("    server: https://control-plane.example:6443\n", "");
    assert!(parse(&no_server).unwrap_err().to_string().contains("has no server"));
    let no_key = KUBELET.replace("    client-key: ", "    x: ");
    assert!(parse(&no_key).unwrap_err().to_string().contains("no client-key"));
    assert!(parse(&"#".repeat(LONGEST + 1)).unwrap_err().to_string().contains("larger than"));
}

#[test]
fn json_is_as_good() {
    let json = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
	"clusters": [{"name": "k", "cluster": {"server": "https://rancher.example/k8s/clusters/c-abc", "certificate-authority": "ca.pem"}}],
	"contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
	"users": [{"name": "u", "user": {"token": "abc"}}]}"#;
    let parsed = parse(json).unwrap();
    assert_eq!(parsed.server.to_string(), "https://rancher.example/k8s/clusters/c-abc");
    assert_eq!(parsed.ca, Some(file("/etc/kubernetes/ca.pem")));
    assert_eq!(parsed.token, Some(Bearer::Inline(Token::new("abc").unwrap())));
}

/// A kubeconfig of one context, whose cluster says this.
fn theirs(cluster: &str) -> String {
    format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k}}}}]\nclusters: [{{name: k, cluster: {{{cluster}}}}}]\n"
    )
}

#[test]
fn the_server_of_somebody_elses_kubeconfig() {
    let shown = |text: &str| {
        server(text).map(|TheirServer { tls, place: HostPort { host, port }, proxy }| {
            let proxy = proxy.map(|proxy| format!(" by {proxy}")).unwrap_or_default();
            format!("{} {host} {port}{proxy}", if tls { "https" } else { "http" })
        })
    };
    assert_eq!(shown(KUBELET).unwrap(), "https control-plane.example 6443");
    assert_eq!(shown(SEVERAL).unwrap(), "https fd00:1::1 6443");
    // Whatever we could not use ourselves does not matter.
    assert_eq!(shown(EKS).unwrap(), "https 0123456789ABCDEF.gr7.eu-central-1.eks.amazonaws.com 443");
    for (cluster, expected) in [
        ("server: 'http://10.0.0.1'", "http 10.0.0.1 80"),
        ("server: 'http://10.0.0.1:8080/prefix'", "http 10.0.0.1 8080"),
        ("server: '10.0.0.1:6443'", "http 10.0.0.1 6443"),
        ("server: api.example, certificate-authority: ca.pem", "https api.example 443"),
        ("server: 'api.example:6443', insecure-skip-tls-verify: true", "https api.example 6443"),
        ("server: 'https://[fd00::1]'", "https fd00::1 443"),
        ("server: 'https://a:1', proxy-url: 'http://p:3128'", "https a 1 by http://p:3128"),
    ] {
        assert_eq!(shown(&theirs(cluster)).unwrap(), expected, "{cluster}");
    }
    let lost = SEVERAL.replace("current-context: admin@prod", "current-context: gone");
    assert!(shown(&lost).unwrap_err().to_string().contains("no context \"gone\""));
    let none = theirs("server: 'https://10.0.0.1:6443'").replace("current-context: c\n", "");
    assert!(shown(&none).unwrap_err().to_string().contains("no current-context"), "client-go takes none either");
    assert!(shown("").is_err() && shown("clusters: 7").is_err());
}

/// A text that grows by aliases, one that nests by brackets, one by the other notation.
fn bombs() -> [String; 3] {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let refs = vec![format!("*a{}", level - 1); 10].join(",");
        laughs.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    let deep = format!("a: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let json = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    [laughs, deep, json]
}

#[test]
fn bombs_are_refused_and_quickly() {
    let began = std::time::Instant::now();
    for bomb in bombs() {
        let text = format!("{bomb}current-context: c\n");
        assert!(parse(&text).is_err() && server(&text).is_err() && server(&bomb).is_err());
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

/// A kubeconfig of the kubelet's names a server and no more: neither its program is run, nor a file of it read.
#[test]
fn what_a_kubelets_kubeconfig_could_send_us_to() {
    for server_of in ["file:///etc/shadow", "unix:///run/containerd.sock", "gopher://x", "https://", "https://a b", ""]
    {
        let text = theirs(&format!("server: '{server_of}'"));
        assert!(server(&text).is_err(), "{server_of:?}");
    }
    let with_program = theirs("server: 'https://10.0.0.1:6443', certificate-authority: /dev/zero")
        + "users: [{name: u, user: {exec: {command: /bin/false}}}]";
    assert_eq!(server(&with_program).unwrap().place.host, "10.0.0.1");
}
