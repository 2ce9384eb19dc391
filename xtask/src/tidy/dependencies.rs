//! Third-party crates: what they may be licensed under, where they come from, and how often each is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::Package;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that are there in several versions and cannot be helped, one a line: a name and its versions.
const DUPLICATES: &str = "xtask/duplicates.txt";

/// Licences a dependency may come under. The weak copyleft of MPL-2.0 stays within its own files.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "MPL-2.0+",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that name no licence but carry its text, read by a person.
const READ: &[(&str, &str)] = &[("rust-criu", "0.6.1")];

pub(super) fn complaints(root: &Path, packages: &[Package]) -> anyhow::Result<Vec<String>> {
    let mut complaints = Vec::new();
    for package in packages.iter().filter(|package| !package.is_ours()) {
        complaints.extend(licence(package));
        complaints.extend(source(package));
    }
    for package in packages.iter().filter(|package| package.is_ours()) {
        complaints.extend(package.dependencies.iter().filter_map(|dependency| {
            let loose = dependency.source.is_some() && !dependency.req.starts_with('=');
            loose.then(|| {
                format!(
                    "{}: {} {} is not exact; pin it in the workspace table with =",
                    package.name, dependency.name, dependency.req
                )
            })
        }));
    }
    let manifest = read(&root.join("Cargo.toml"))?;
    complaints.extend(loose_pins(&toml::from_str(&manifest).context("cannot parse Cargo.toml")?));
    let accepted = read(&root.join(DUPLICATES))?;
    complaints.extend(new_duplicates(&accepted, &duplicates(packages)));
    Ok(complaints)
}

pub(super) fn write_duplicates(root: &Path, packages: &[Package]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for (name, versions) in duplicates(packages) {
        writeln!(lines, "{name} {versions}")?;
    }
    std::fs::write(root.join(DUPLICATES), lines).with_context(|| format!("cannot write {DUPLICATES}"))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn licence(package: &Package) -> Option<String> {
    let Package { name, version, .. } = package;
    match &package.license {
        Some(expression) if accepted(expression) => None,
        Some(expression) => Some(format!("{name} {version}: licence {expression:?} is not on the list")),
        None if READ.contains(&(name.as_str(), version.as_str())) => None,
        None => Some(format!("{name} {version}: names no licence")),
    }
}

fn source(package: &Package) -> Option<String> {
    let source = package.source.as_deref().filter(|source| *source != REGISTRY)?;
    Some(format!("{} {}: comes from {source}, not from the registry", package.name, package.version))
}

/// Whether a licence expression leaves a choice that is on the list. `/` is how crates once wrote OR.
fn accepted(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest) && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> bool {
    let mut good = all_of(words);
    while let Some(("OR", rest)) = split(words) {
        *words = rest;
        good |= all_of(words);
    }
    good
}

fn all_of(words: &mut &[&str]) -> bool {
    let mut good = one(words);
    while let Some(("AND", rest)) = split(words) {
        *words = rest;
        good &= one(words);
    }
    good
}

/// A name, with or without an exception (which only ever grants more), or a group in parentheses.
fn one(words: &mut &[&str]) -> bool {
    let Some((word, rest)) = split(words) else { return false };
    *words = rest;
    if word == "(" {
        let good = any_of(words);
        let Some((")", rest)) = split(words) else { return false };
        *words = rest;
        return good;
    }
    if let ["WITH", _, rest @ ..] = *words {
        *words = rest;
    }
    LICENCES.contains(&word)
}

fn split<'a, 'b>(words: &'b [&'a str]) -> Option<(&'a str, &'b [&'a str])> {
    words.split_first().map(|(word, rest)| (*word, rest))
}

/// The versions of each crate that is there more than once.
fn duplicates(packages: &[Package]) -> BTreeMap<&str, String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| (name, versions.into_iter().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn new_duplicates(accepted: &str, found: &BTreeMap<&str, String>) -> Vec<String> {
    let accepted: BTreeMap<&str, &str> = accepted.lines().filter_map(|line| line.split_once(' ')).collect();
    let differs = |(name, versions): &(&&str, &String)| accepted.get(**name) != Some(&versions.as_str());
    let mut complaints: Vec<String> = found
        .iter()
        .filter(differs)
        .map(|(name, versions)| {
            format!(
                "{name}: several versions, {versions}; agree on one, or take it into {DUPLICATES} \
                 with `cargo xtask tidy --accept-duplicates` and say why"
            )
        })
        .collect();
    complaints.extend(
        accepted
            .keys()
            .filter(|name| !found.contains_key(*name))
            .map(|name| format!("{name}: is there once now; take it out of {DUPLICATES}")),
    );
    complaints
}

/// Entries of the workspace table that leave the version open.
fn loose_pins(manifest: &toml::Table) -> Vec<String> {
    let table = manifest["workspace"]["dependencies"].as_table();
    table
        .into_iter()
        .flatten()
        .filter(|(_, entry)| entry.get("path").is_none())
        .filter(|(_, entry)| {
            let version = entry.as_str().or_else(|| entry.get("version")?.as_str());
            !version.is_some_and(|version| version.starts_with('='))
        })
        .map(|(name, _)| format!("Cargo.toml: {name} has no exact version; pin it with ="))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_must_leave_an_accepted_choice() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
            "(Apache-2.0 OR GPL-3.0) AND BSD-3-Clause",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(accepted(good), "{good}");
        }
        for bad in ["GPL-3.0", "AGPL-3.0-only OR LGPL-3.0", "MIT AND GPL-2.0", "(MIT", "MIT MIT", ""] {
            assert!(!accepted(bad), "{bad}");
        }
    }

    #[test]
    fn duplicates_are_those_of_the_list() {
        let found = BTreeMap::from([("rand", "0.8.8 0.10.3".to_owned())]);
        assert_eq!(new_duplicates("rand 0.8.8 0.10.3\n", &found), Vec::<String>::new());
        assert!(new_duplicates("", &found)[0].starts_with("rand: several versions"));
        assert!(new_duplicates("rand 0.8.8 0.9.5\n", &found)[0].starts_with("rand: several versions"));
        assert!(new_duplicates("rand 0.8.8 0.10.3\nsyn 1 2\n", &found)[0].starts_with("syn: is there once"));
    }

    #[test]
    fn versions_are_exact() {
        let manifest = "[workspace.dependencies]\na = '=1.0.0'\nb = { version = '=2.0.0', features = [] }\n\
                        c = { path = 'crates/c' }\nd = '1.0'\ne = { version = '^2' }\n";
        let found = loose_pins(&toml::from_str(manifest).unwrap());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains(" d ") && found[1].contains(" e "), "{found:?}");
    }
}
