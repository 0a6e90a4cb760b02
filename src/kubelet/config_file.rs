//! One configuration file of a kubelet: YAML or JSON text to a JSON value, as sigs.k8s.io/yaml does it.
//!
//! Its dialect is YAML 1.1: `yes` and `on` are booleans, `017` is octal, and only the first document of a file counts.
//! An unquoted `10%` or `100Mi` is a string, an unquoted `5` is a number, and where the kubelet wants a string it
//! refuses a number.

use serde_json::{Map, Value};
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::error::{Error, Result};

/// A file of a kubelet's configuration is a few kilobytes.
const LONGEST: usize = 1 << 20;

/// Which of the kubelet's two ways to read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `--config`: a key that appears twice is forgiven, the last one wins (decoded again leniently,
    /// `pkg/kubelet/kubeletconfig/util/codec/codec.go`).
    Base,
    /// A drop-in: a key that appears twice is refused.
    Dropin,
}

/// Parses a file of kind KubeletConfiguration.
///
/// # Errors
/// Malformed if a kubelet would refuse it as a whole: empty, no YAML, another kind.
pub(super) fn parse(text: &str, role: Role) -> Result<Map<String, Value>> {
    if text.is_empty() {
        return Err(Error::malformed("is empty, which a kubelet refuses"));
    }
    if text.len() > LONGEST {
        return Err(Error::malformed(format!("is larger than {LONGEST} bytes")));
    }
    let options = serde_saphyr::options! {
        duplicate_keys: match role {
            Role::Base => DuplicateKeyPolicy::LastWins,
            Role::Dropin => DuplicateKeyPolicy::Error,
        },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut bytes = text.as_bytes();
    let first = serde_saphyr::read_with_options::<_, Value>(&mut bytes, options).next();
    let value = match first {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(Error::malformed(format!("is not YAML: {}", one_line(&error.to_string())))),
        None => Value::Null,
    };
    let Value::Object(map) = value else {
        return Err(Error::malformed("is not a YAML mapping: it needs apiVersion, kind and the settings"));
    };
    let field = |name: &str| map.get(name).and_then(Value::as_str).unwrap_or("");
    let (version, kind) = (field("apiVersion"), field("kind"));
    if version != "kubelet.config.k8s.io/v1beta1" || kind != "KubeletConfiguration" {
        return Err(Error::malformed(format!(
            "says apiVersion {version:?} and kind {kind:?}; a kubelet wants kubelet.config.k8s.io/v1beta1 and KubeletConfiguration"
        )));
    }
    Ok(map)
}

/// Merges a drop-in into what there is: RFC 7386. `null` takes a key away.
pub(super) fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(patch) => {
                let entry = target.entry(key).or_insert(Value::Null);
                if !entry.is_object() {
                    *entry = Value::Object(Map::new());
                }
                if let Value::Object(target) = entry {
                    merge(target, patch);
                }
            }
            other => {
                target.insert(key, other);
            }
        }
    }
}

/// Lays one configuration over another: what it says counts, key by key, and nothing is taken away.
pub(super) fn overlay(target: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (value, target.get_mut(&key)) {
            (Value::Object(over), Some(Value::Object(target))) => overlay(target, over),
            (Value::Null, _) => {}
            (value, _) => {
                target.insert(key, value);
            }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn value(yaml: &str) -> Value {
        parse(&format!("{HEAD}a: {yaml}"), Role::Base).unwrap()["a"].clone()
    }

    #[test]
    fn scalars_as_sigs_yaml_reads_them() {
        let vectors = [
            ("10%", json!("10%")),
            ("100Mi", json!("100Mi")),
            ("5", json!(5)),
            ("\"5\"", json!("5")),
            ("!!str 5", json!("5")),
            ("yes", json!(true)),
            ("NO", json!(false)),
            ("on", json!(true)),
            ("~", json!(null)),
            ("", json!(null)),
            ("1_000", json!(1000)),
            ("017", json!(15)),
            ("0x1F", json!(31)),
            ("1:30", json!("1:30")),
            ("1m30s", json!("1m30s")),
            (".5", json!(0.5)),
            ("{b: 10%, c: [pods]}", json!({"b": "10%", "c": ["pods"]})),
            ("\n  memory.available: 200Mi # enough\n", json!({"memory.available": "200Mi"})),
        ];
        for (yaml, json) in vectors {
            assert_eq!(value(yaml), json, "{yaml}");
        }
    }

    #[test]
    fn json_is_yaml() {
        let text =
            r#"{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "a": {"b": "1"}}"#;
        assert_eq!(parse(text, Role::Dropin).unwrap()["a"], json!({"b": "1"}));
    }

    #[test]
    fn anchors_and_merge_keys() {
        let map = parse(&format!("{HEAD}x: &d {{b: '1'}}\na: {{<<: *d, c: '2'}}"), Role::Base).unwrap();
        assert_eq!(map["a"], json!({"b": "1", "c": "2"}));
    }

    #[test]
    fn a_key_twice() {
        let text = format!("{HEAD}a: {{b: '1'}}\na: {{c: '2'}}");
        assert_eq!(parse(&text, Role::Base).unwrap()["a"], json!({"c": "2"}));
        assert!(parse(&text, Role::Dropin).is_err());
    }

    #[test]
    fn only_the_first_document_counts() {
        let map = parse(&format!("---\n{HEAD}a: 1\n---\nb: [\n"), Role::Base).unwrap();
        assert_eq!(map["a"], json!(1));
    }

    #[test]
    fn what_a_kubelet_refuses() {
        let text = |text: &str| parse(text, Role::Base).unwrap_err().to_string();
        assert!(text("").contains("empty"));
        assert!(text("# nothing\n").contains("not a YAML mapping"));
        assert!(text("just text").contains("not a YAML mapping"));
        assert!(text("a: [1,2").contains("not YAML"));
        assert!(text("a: 1").contains("apiVersion"));
        assert!(text(&HEAD.replace("v1beta1", "v1alpha1")).contains("v1alpha1"));
        assert!(text(&HEAD.replace("KubeletConfiguration", "Pod")).contains("Pod"));
        assert!(text("a: *x").contains("not YAML"));
        assert!(!text("\u{0}\u{1}\n\n:").contains('\n'));
    }

    #[test]
    fn a_billion_laughs_are_refused() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let refs = vec![format!("*a{}", level - 1); 10].join(",");
            text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(parse(&format!("{HEAD}{text}"), Role::Base).is_err());
    }

    #[test]
    fn rfc_7386() {
        let merged = |target: Value, patch: Value| {
            let (Value::Object(mut target), Value::Object(patch)) = (target, patch) else { unreachable!() };
            merge(&mut target, patch);
            Value::Object(target)
        };
        assert_eq!(merged(json!({"a": "b"}), json!({"a": "c"})), json!({"a": "c"}));
        assert_eq!(merged(json!({"a": "b", "b": "c"}), json!({"a": null})), json!({"b": "c"}));
        assert_eq!(merged(json!({"a": ["b"]}), json!({"a": "c"})), json!({"a": "c"}));
        assert_eq!(merged(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}})), json!({"a": {"b": "d"}}));
        assert_eq!(merged(json!({"a": "foo"}), json!({"a": {"b": {"c": null}}})), json!({"a": {"b": {}}}));
        assert_eq!(merged(json!({"e": null}), json!({"a": 1})), json!({"e": null, "a": 1}));
        assert_eq!(merged(json!({}), json!({"a": {"bb": {"ccc": null}}})), json!({"a": {"bb": {}}}));
    }

    #[test]
    fn deep_ones_are_refused_and_quickly() {
        let began = std::time::Instant::now();
        for (open, close) in [("[", "]"), ("{a: ", "}")] {
            let text = format!("{HEAD}x: {}{}\n", open.repeat(50_000), close.repeat(50_000));
            assert!(parse(&text, Role::Base).is_err() && parse(&text, Role::Dropin).is_err());
        }
        let deep = format!("{{\"kubeletconfig\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(super::super::configuration::Configuration::of_configz(&deep).is_err());
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
