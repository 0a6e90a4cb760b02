//! Dependencies point one way; this is the compiler for that rule.
//!
//! Every file below `src/` is parsed, what only tests see is dropped, and each name that is left is followed to the
//! module that declares it: in `use`, in paths, and in the tokens that macros are called with.
#![allow(clippy::disallowed_methods, reason = "tests look at the source with their own eyes")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The modules of the library from the leaves up, and which others each may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("metric", &["error"]),
    ("values", &["error"]),
    ("printable", &[]),
    ("humanize", &[]),
    ("log", &["printable"]),
    ("heap", &[]),
    ("host", &["error"]),
    ("client", &["host", "error"]),
    ("kubelet", &["client", "values", "host", "error"]),
    ("apiserver", &["client", "values", "host", "error"]),
    ("runtime", &["client", "kubelet", "values", "host", "error"]),
    ("services", &["apiserver", "runtime", "kubelet", "host", "metric", "error"]),
    ("modes", &["services", "apiserver", "runtime", "kubelet", "values", "host", "metric", "error", "humanize"]),
    ("probes", &["modes", "host", "error"]),
    ("scrape", &["services", "modes", "host", "metric", "error"]),
    ("exposition", &["metric"]),
    ("self_metrics", &["metric"]),
    ("verdict", &["modes", "metric", "humanize"]),
    ("report", &["verdict", "scrape", "modes", "self_metrics", "metric", "humanize", "printable"]),
    (
        "http",
        &[
            "report",
            "verdict",
            "scrape",
            "exposition",
            "services",
            "modes",
            "apiserver",
            "client",
            "kubelet",
            "values",
            "host",
            "self_metrics",
            "metric",
            "error",
        ],
    ),
    ("check_config", &["kubelet", "values", "host", "error", "printable"]),
    ("doctor", &["report", "verdict", "scrape", "probes", "services", "modes", "kubelet", "host", "self_metrics"]),
    (
        "config",
        &[
            "doctor",
            "check_config",
            "http",
            "services",
            "modes",
            "apiserver",
            "runtime",
            "kubelet",
            "values",
            "host",
            "log",
            "self_metrics",
        ],
    ),
    // Makes failures for the binary headroom-drill, so it writes; the exporter knows nothing of it.
    ("drill", &["kubelet", "values", "host", "error", "printable"]),
    ("catalog", &["config", "http", "services", "modes", "scrape", "self_metrics", "metric"]),
];

/// Crates that one module alone may name.
const ONLY_IN: &[(&str, &str)] = &[("prometheus_client", "exposition")];

/// Siblings that may name each other, and why.
const MAY_GO_ROUND: &[&[&str]] = &[
    // An expression is made of expressions, so the evaluator calls the functions and these call the evaluator.
    &["verdict::promql::aggregate", "verdict::promql::eval", "verdict::promql::functions", "verdict::promql::matching"],
];

#[test]
fn dependencies_point_one_way() {
    let tree = &*TREE;
    let mut offenders = BTreeSet::new();
    for name in &tree.names {
        let (Some(own), Some(other)) = (name.module.first(), name.target.first()) else { continue };
        let Some((_, may_use)) = MAY_USE.iter().find(|(module, _)| module == own) else { continue };
        if own != other && tree.modules.contains_key(&name.target[..1]) && !may_use.contains(&other.as_str()) {
            offenders.insert(format!("{} uses {}: {own} may not use {other}", name.place(), name.target.join("::")));
        }
    }
    for name in &tree.foreign {
        let module = name.module.first().map(String::as_str);
        for (krate, only) in ONLY_IN.iter().filter(|(krate, _)| name.target[0] == *krate) {
            if module != Some(*only) {
                offenders.insert(format!("{} uses {krate}: only {only} may", name.place()));
            }
        }
    }
    assert_none(&offenders);
}

/// Circles are looked for among the children of one module, each with all that is below it: a module and its own
/// children may name each other, since the parent holds the types that its parts share.
#[test]
fn siblings_do_not_go_round_in_circles() {
    let tree = &*TREE;
    let mut edges: BTreeMap<Vec<String>, BTreeMap<Vec<String>, &Name>> = BTreeMap::new();
    for name in &tree.names {
        let declared = tree.declared(&name.target);
        let target = tree.module_of(&declared);
        let common = name.module.iter().zip(target).take_while(|(own, other)| own == other).count();
        if let (Some(own), Some(other)) = (name.module.get(..=common), target.get(..=common)) {
            edges.entry(own.to_vec()).or_default().entry(other.to_vec()).or_insert(name);
        }
    }
    let comes_back = |own: &Vec<String>, other: &Vec<String>| {
        let (mut reached, mut todo) = (BTreeSet::new(), vec![other]);
        while let Some(next) = todo.pop() {
            todo.extend(edges.get(next).into_iter().flat_map(BTreeMap::keys).filter(|to| reached.insert(*to)));
        }
        reached.contains(own)
    };
    let mut offenders = BTreeSet::new();
    for (own, others) in &edges {
        for (other, name) in others.iter().filter(|(other, _)| comes_back(own, other)) {
            let (own, other) = (own.join("::"), other.join("::"));
            if !MAY_GO_ROUND.iter().any(|ring| ring.contains(&own.as_str()) && ring.contains(&other.as_str())) {
                let target = name.target.join("::");
                offenders.insert(format!("{} uses {target}, but {other} comes back to {own}", name.place()));
            }
        }
    }
    assert_none(&offenders);
}

#[test]
fn every_module_is_in_the_table() {
    let tree = &*TREE;
    let modules: BTreeSet<&str> =
        tree.modules.keys().filter(|path| path.len() == 1).map(|path| path[0].as_str()).collect();
    let rows: BTreeSet<&str> = MAY_USE.iter().map(|(module, _)| *module).collect();
    assert_eq!(modules, rows);
    for file in files_below(&src()).iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        assert!(tree.files.contains(file), "{} is a part of no module", file.display());
    }
}

#[test]
fn names_are_found_wherever_they_stand() {
    let text = "
        use crate::{alpha::{self, One}, beta as second};
        use super::super::gamma::Two as Renamed;
        fn code(argument: crate::delta::Three) -> super::sibling::Four {
            let x = second::five();
            macro_rules! inner { () => { $crate::epsilon::six() } }
            println!(\"{}\", vec![alpha::seven(crate::zeta::EIGHT)]);
        }
        mod inside {
            fn nine() { super::super::sibling::nine(); }
        }
        #[cfg(test)]
        use crate::hidden::Ten;
        impl Renamed {
            #[cfg(all(test, feature = \"x\"))]
            fn eleven() { crate::hidden::eleven() }
            #[cfg(not(test))]
            fn twelve() { crate::shown::twelve() }
        }
        #[cfg(test)]
        mod tests { use crate::hidden::Thirteen; }
    ";
    let mut tree = Tree::default();
    for module in ["outer", "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "shown", "hidden"] {
        tree.modules.insert(vec![module.into()], BTreeMap::new());
    }
    tree.modules.insert(vec!["outer".into(), "sibling".into()], BTreeMap::new());
    tree.take(&["outer".into(), "here".into()], &syn::parse_file(text).unwrap(), Path::new("src/outer/here.rs"));
    tree.resolve();
    let found: BTreeSet<String> = tree.names.iter().map(|name| name.target.join("::")).collect();
    let expected = [
        "alpha",
        "alpha::One",
        "alpha::seven",
        "beta",
        "beta::five",
        "delta::Three",
        "epsilon::six",
        "gamma::Two",
        "outer::sibling::Four",
        "outer::sibling::nine",
        "shown::twelve",
        "zeta::EIGHT",
    ];
    assert_eq!(found, expected.map(String::from).into());
    let eight = tree.names.iter().find(|name| name.target.ends_with(&["EIGHT".into()])).unwrap();
    assert_eq!(eight.place(), "src/outer/here.rs:7");
}

/// rustfmt wraps code and leaves comments as they are.
#[test]
fn comments_keep_to_120_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests", "benches"].into_iter().flat_map(|folder| files_below(&root.join(folder)));
    let mut offenders = BTreeSet::new();
    for path in folders.chain([root.join("build.rs"), root.join(".ci/run")]) {
        let bytes = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let first = text.lines().next().unwrap_or_default();
        let marker = match path.extension().is_some_and(|end| end == "rs") {
            true => "//",
            false if first.starts_with("#!") && first.ends_with("sh") => "#",
            // Recordings, and scripts that only made them.
            false => continue,
        };
        for (number, line) in text.lines().enumerate().filter(|(_, line)| is_too_long(line, marker)) {
            let name = Name { file: path.clone(), line: number + 1, module: Vec::new(), target: Vec::new() };
            offenders.insert(format!("{} has {} columns", name.place(), line.chars().count()));
        }
    }
    assert_none(&offenders);
}

/// Of a comment alone on its line. A row of a table cannot be wrapped, nor can a word, such as an address.
fn is_too_long(line: &str, marker: &str) -> bool {
    let Some(text) = line.trim_start().strip_prefix(marker) else { return false };
    let text = text.trim_start_matches(['/', '!']).trim_start();
    line.chars().count() > 120 && !text.starts_with('|') && text.contains(' ')
}

#[test]
fn what_cannot_be_wrapped_is_not_too_long() {
    let long = "x".repeat(120);
    assert!(is_too_long(&format!("    /// A {long}"), "//") && is_too_long(&format!("# a {long}"), "#"));
    let fits = format!("// a {}", &long[..115]);
    for line in [format!("//! | a | {long} |"), format!("// https://{long}"), format!("let a = {long};"), fits] {
        assert!(!is_too_long(&line, "//"), "{line}");
    }
}

fn assert_none(offenders: &BTreeSet<String>) {
    let lines: Vec<&str> = offenders.iter().map(String::as_str).collect();
    assert!(lines.is_empty(), "{} offenders:\n{}", lines.len(), lines.join("\n"));
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// A path in the code of one file.
#[derive(Clone)]
struct Name {
    file: PathBuf,
    line: usize,
    /// The module that it stands in; empty for the crate's root.
    module: Vec<String>,
    /// What it names: from the crate's root on, or of another crate.
    target: Vec<String>,
}

impl Name {
    fn place(&self) -> String {
        let file = self.file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&self.file);
        format!("{}:{}", file.display(), self.line)
    }
}

static TREE: LazyLock<Tree> = LazyLock::new(Tree::read);

/// The library's modules and binaries, without what only tests see.
#[derive(Default)]
struct Tree {
    /// Each module with the names that `use` brings into it.
    modules: BTreeMap<Vec<String>, BTreeMap<String, Vec<String>>>,
    /// Names within the crate.
    names: Vec<Name>,
    /// Names of other crates.
    foreign: Vec<Name>,
    /// Names as they are written.
    written: Vec<Name>,
    /// Every file that was met, those of tests too.
    files: BTreeSet<PathBuf>,
}

impl Tree {
    fn read() -> Self {
        let mut tree = Tree::default();
        tree.file(Vec::new(), src().join("lib.rs"));
        // The binaries' crates are others; they may use everything of the library, but not what one module alone may.
        for entry in files_below(&src().join("bin")).into_iter().chain([src().join("main.rs")]) {
            let parsed = parse(&entry);
            tree.take(&["(binary)".into()], &parsed, &entry);
            tree.files.insert(entry);
        }
        tree.modules.remove(&["(binary)".to_owned()][..]);
        tree.resolve();
        tree
    }

    fn file(&mut self, module: Vec<String>, path: PathBuf) {
        let parsed = parse(&path);
        let folder = if module.is_empty() { src() } else { path.with_extension("") };
        self.files.insert(path.clone());
        self.take(&module, &parsed, &path);
        for item in &parsed.items {
            let syn::Item::Mod(syn::ItemMod { attrs, ident, content: None, .. }) = item else { continue };
            let (name, path) = (ident.to_string(), folder.join(format!("{ident}.rs")));
            if only_for_tests(attrs) {
                self.files.extend(files_below_module(&path));
            } else {
                self.file([&module[..], &[name]].concat(), path);
            }
        }
    }

    fn take(&mut self, module: &[String], parsed: &syn::File, file: &Path) {
        self.modules.entry(module.to_vec()).or_default();
        Walk { tree: self, file, module: module.to_vec() }.visit_file(parsed);
    }

    /// Once all modules are known: what the names stand for.
    fn resolve(&mut self) {
        for name in std::mem::take(&mut self.written) {
            match self.absolute(&name.module, &name.target, 0) {
                Some(target) => self.names.push(Name { target, ..name }),
                None => self.foreign.push(name),
            }
        }
    }

    fn absolute(&self, module: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let from = |base: &[String]| Some([base, rest].concat());
        match first.as_str() {
            "crate" | "$crate" => Some(rest.to_vec()),
            "self" => self.absolute_or_own(module, rest, depth),
            "super" => self.absolute_or_own(module.split_last()?.1, rest, depth),
            _ if depth > 8 => None,
            name => {
                let child = [module, &path[..1]].concat();
                if self.modules.contains_key(&child) {
                    return from(&child);
                }
                let alias = self.modules.get(module)?.get(name)?;
                // `use regex;` or `use host::host;` say nothing new.
                if alias.first() == Some(first) {
                    return None;
                }
                from(&self.absolute(module, alias, depth + 1)?)
            }
        }
    }

    /// After `self` and `super`: more of them, a name that is known there, or an item of that module's own.
    fn absolute_or_own(&self, module: &[String], rest: &[String], depth: usize) -> Option<Vec<String>> {
        match rest.first().map(String::as_str) {
            Some("self" | "super") => self.absolute(module, rest, depth),
            _ => Some([module, rest].concat()),
        }
    }

    /// Where an item is declared that is named by one of the modules that use it or hand it on.
    fn declared(&self, target: &[String]) -> Vec<String> {
        let mut target = target.to_vec();
        for _ in 0..8 {
            let module = self.module_of(&target).to_vec();
            let Some(name) = target.get(module.len()) else { break };
            let Some(alias) = self.modules.get(&module).and_then(|names| names.get(name)) else { break };
            let Some(next) = self.absolute(&module, alias, 0) else { break };
            target = [&next, &target[module.len() + 1..]].concat();
        }
        target
    }

    /// The module that a path from the root leads to or into.
    fn module_of<'a>(&self, target: &'a [String]) -> &'a [String] {
        let lengths = (0..=target.len()).rev();
        lengths.map(|length| &target[..length]).find(|module| self.modules.contains_key(*module)).unwrap_or_default()
    }
}

fn parse(path: &Path) -> syn::File {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files_below_module(file: &Path) -> Vec<PathBuf> {
    let folder = file.with_extension("");
    let below = if folder.is_dir() { files_below(&folder) } else { Vec::new() };
    below.into_iter().chain([file.to_owned()]).collect()
}

/// Whether the compiler drops it unless it builds tests: `test` alone, or as one of `all`.
fn only_for_tests(attrs: &[syn::Attribute]) -> bool {
    fn demands_test(meta: &syn::Meta) -> bool {
        let all = syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated;
        match meta {
            syn::Meta::Path(path) => path.is_ident("test"),
            syn::Meta::List(list) if list.path.is_ident("cfg") || list.path.is_ident("all") => {
                list.parse_args_with(all).is_ok_and(|inner| inner.iter().any(demands_test))
            }
            _ => false,
        }
    }
    attrs.iter().any(|attr| attr.path().is_ident("cfg") && demands_test(&attr.meta))
}

/// Collects the names of one file.
struct Walk<'a> {
    tree: &'a mut Tree,
    file: &'a Path,
    module: Vec<String>,
}

impl Walk<'_> {
    fn name(&mut self, target: Vec<String>, line: usize) {
        self.tree.written.push(Name { file: self.file.to_owned(), line, module: self.module.clone(), target });
    }

    fn use_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let (ident, alias) = match tree {
            syn::UseTree::Path(path) => {
                return self.use_tree(&[prefix, &[path.ident.to_string()]].concat(), &path.tree);
            }
            syn::UseTree::Group(group) => return group.items.iter().for_each(|item| self.use_tree(prefix, item)),
            syn::UseTree::Glob(glob) => return self.name(prefix.to_vec(), glob.star_token.span.start().line),
            syn::UseTree::Name(name) => (&name.ident, &name.ident),
            syn::UseTree::Rename(rename) => (&rename.ident, &rename.rename),
        };
        let (mut path, mut alias) = (prefix.to_vec(), alias.to_string());
        if ident != "self" {
            path.push(ident.to_string());
        } else if let (Some(last), "self") = (path.last(), alias.as_str()) {
            alias = last.clone();
        }
        self.name(path.clone(), ident.span().start().line);
        self.tree.modules.entry(self.module.clone()).or_default().insert(alias, path);
    }

    /// Macros take any tokens, so here whatever looks like a path is one.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut line, mut colons) = (Vec::new(), 0, 0);
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.tokens_path(&mut path, line);
                    colons = 0;
                    match other {
                        TokenTree::Ident(ident) => (path, line) = (vec![ident.to_string()], ident.span().start().line),
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                    }
                }
            }
        }
        self.tokens_path(&mut path, line);
    }

    fn tokens_path(&mut self, path: &mut Vec<String>, line: usize) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.name(path, line);
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item;
        let attrs: &[syn::Attribute] = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            other => panic!("{}: an item of a kind that is new here: {other:?}", self.file.display()),
        };
        if !only_for_tests(attrs) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if let Some((_, items)) = &item.content {
            self.module.push(item.ident.to_string());
            self.tree.modules.entry(self.module.clone()).or_default();
            items.iter().for_each(|item| self.visit_item(item));
            self.module.pop();
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attrs: &[syn::Attribute] = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            _ => &[],
        };
        if !only_for_tests(attrs) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !only_for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !only_for_tests(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !only_for_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.name(segments, path.segments[0].ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }
}

/// rustc denies it, and a word in the source could allow it.
#[test]
fn unsafe_code_is_in_two_files() {
    let says = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains("unsafe_code");
    let mut found: Vec<PathBuf> = files_below(&src()).into_iter().filter(says).collect();
    found.sort();
    assert_eq!(found, ["heap.rs", "host/process/user_namespace.rs"].map(|path| src().join(path)));
}
