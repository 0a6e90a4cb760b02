//! The real tools, and what they print as objects.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::written::Flag;

/// `apiVersion kind namespace/name` → object.
pub(crate) type Objects = BTreeMap<String, Value>;

/// Ends a test with a SKIP where one of these is missing.
macro_rules! needs {
    ($($tool:literal),+) => {
        $(if $crate::manifests::render::tool($tool).is_none() {
            crate::skip!("{} is not there (tests/deploy/tools.sh)", $tool);
        })+
    };
}
pub(crate) use needs;

pub(crate) fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(project(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What tests/deploy/tools.sh has made, or what is on the PATH.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_headroom-exporter")).parent()?.parent()?;
    let made = match name {
        "schemas" => target.join("tools/schemas/bin/python3"),
        name => target.join("tools").join(name),
    };
    if made.exists() && (name != "schemas" || target.join("tools/schemas.version").exists()) {
        return Some(made);
    }
    crate::common::has(name).then(|| name.into())
}

/// A file with this text, for as long as it is held.
pub(crate) struct File(tempfile::NamedTempFile);

impl File {
    pub(crate) fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

pub(crate) fn file(text: &str) -> File {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    File(file)
}

/// What a program prints if it succeeds, and everything that it says if it does not.
pub(crate) fn fed(program: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let home = std::env::temp_dir().join("headroom-deploy-helm");
    let mut child = Command::new(program)
        .args(arguments)
        // Neither somebody's plugins nor repositories.
        .envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, &home)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    if output.status.success() { Ok(out) } else { Err(out + &String::from_utf8_lossy(&output.stderr)) }
}

pub(crate) fn chart() -> String {
    project("deploy/helm/headroom-exporter").to_str().unwrap().to_owned()
}

pub(crate) fn helm(arguments: &[&str]) -> Result<String, String> {
    fed(&tool("helm").unwrap(), arguments, "")
}

pub(crate) fn validate(objects: &str) -> Result<String, String> {
    fed(&tool("schemas").unwrap(), &[project("tests/deploy/validate.py").to_str().unwrap()], objects)
}

/// Every document that is not empty.
pub(crate) fn parse_all(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

fn key(object: &Value) -> String {
    let field = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, metadata) = (field(&object["kind"]), &object["metadata"]);
    format!("{} {kind} {}/{}", field(&object["apiVersion"]), field(&metadata["namespace"]), field(&metadata["name"]))
}

fn objects(text: &str) -> Objects {
    let documents = parse_all(text);
    let count = documents.len();
    let objects: Objects = documents.into_iter().map(|object| (key(&object), object)).collect();
    assert_eq!(objects.len(), count, "two objects of one name");
    objects
}

/// What this chart makes of these values for a cluster of that version.
pub(crate) fn template_of(chart: &str, values: &str, version: &str, further: &[&str]) -> Objects {
    let values_file = file(values);
    let mut arguments = vec!["template", "headroom-exporter", chart, "--namespace", "headroom-exporter"];
    arguments.extend(["--kube-version", version, "-f", values_file.path()]);
    arguments.extend(further);
    objects(&helm(&arguments).unwrap_or_else(|said| panic!("{values}: {said}")))
}

pub(crate) fn template(values: &str, version: &str, further: &[&str]) -> Objects {
    template_of(&chart(), values, version, further)
}

pub(crate) fn text(objects: &Objects) -> String {
    objects.values().map(|object| format!("{object}\n")).collect()
}

fn build(folder: &str) -> Objects {
    objects(&fed(&tool("kustomize").unwrap(), &["build", folder], "").unwrap_or_else(|said| panic!("{folder}: {said}")))
}

pub(crate) fn kustomize(folder: &str) -> Objects {
    build(project(folder).to_str().unwrap())
}

/// The base with these components, as somebody's own overlay has them.
pub(crate) fn kustomize_with(components: &[&str]) -> Objects {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().canonicalize().unwrap();
    // kustomize takes relative paths only.
    let up = "../".repeat(real.components().count() - 1);
    let deploy = project("deploy/kustomize").canonicalize().unwrap();
    let deploy = format!("{up}{}", deploy.strip_prefix("/").unwrap().display());
    let list: String = components.iter().map(|name| format!("  - {deploy}/components/{name}\n")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {deploy}/base\ncomponents:\n{list}"
    );
    std::fs::write(real.join("kustomization.yaml"), text).unwrap();
    build(real.to_str().unwrap())
}

/// The container of the DaemonSet.
pub(crate) fn container(objects: &Objects) -> &Value {
    let daemonset = objects.values().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    &daemonset["spec"]["template"]["spec"]["containers"][0]
}

/// Its environment on the node `node-1`.
pub(crate) fn environment(container: &Value) -> Vec<(String, String)> {
    let value = |variable: &Value| match variable["value"].as_str() {
        Some(value) => value.to_owned(),
        None => {
            assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName", "{variable}");
            "node-1".to_owned()
        }
    };
    let variables = container["env"].as_array().unwrap();
    variables.iter().map(|variable| (variable["name"].as_str().unwrap().to_owned(), value(variable))).collect()
}

/// What the exporter is told, by its environment and by its arguments, all of it as arguments.
pub(crate) fn arguments(objects: &Objects) -> Vec<String> {
    let container = container(objects);
    let argument = |(name, value): &(String, String)| {
        let flag = Flag::of_variable(name).unwrap_or_else(|| panic!("{name} is no flag's variable"));
        assert!(!flag.is_argument(), "{name} is of no use to another command");
        flag.argument(value)
    };
    let environment = environment(container);
    let own = environment.iter().filter(|(name, _)| name.starts_with("HEADROOM_")).map(argument);
    let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap().to_owned());
    own.chain(arguments).collect()
}
