//! What the lines of the source may be: how many to a file, and which words not.

use std::path::Path;

use anyhow::Context as _;

const MAX_LINES: usize = 1_000;

/// Put together here, so that this file may be checked as well.
const WORDS: &[(&str, &str)] = &[
    (concat!("to", "do!"), "write it, or leave it out"),
    (concat!("unimple", "mented!"), "write it, or leave it out"),
    (concat!("#[ig", "nore"), "a test runs, or is deleted"),
    (concat!("allow(", "dead_code)"), "delete dead code"),
    (concat!("allow(", "clippy"), "use #[expect(lint, reason)]"),
    (concat!("[allow", "("), "use #[expect(lint, reason)]"),
];

/// Looks at every Rust file below the root.
pub(super) fn complaints(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut complaints = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                directories.push(path);
            } else if kind.is_file() && name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let path = path.strip_prefix(root).unwrap_or(&path);
                complaints.extend(too_long(path, &text));
                complaints.extend(words(path, &text));
            }
        }
    }
    complaints.sort();
    Ok(complaints)
}

/// Tests and generated tables may be as long as they have to.
fn too_long(path: &Path, text: &str) -> Option<String> {
    let free = path
        .components()
        .any(|part| ["tests", "tests.rs", "generated"].iter().any(|free| part.as_os_str() == *free));
    let lines = text.lines().take_while(|line| *line != "mod tests {").count();
    (!free && lines > MAX_LINES).then(|| format!("{}: {lines} lines, more than {MAX_LINES}", path.display()))
}

fn words(path: &Path, text: &str) -> Vec<String> {
    text.lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let (word, advice) = WORDS.iter().find(|(word, _)| line.contains(word))?;
            Some(format!("{}:{}: {word}: {advice}", path.display(), index + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_forbidden_word_is_found_where_it_stands() {
        for (word, advice) in WORDS {
            let found = words(Path::new("a.rs"), &format!("fn main() {{\n    {word}\n}}\n"));
            assert_eq!(found.len(), 1, "{word}");
            assert!(found[0].starts_with("a.rs:2: ") && found[0].ends_with(advice), "{found:?}");
        }
        assert_eq!(words(Path::new("a.rs"), "#[expect(dead_code)]\nfn ignore() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn long_files_are_found_but_for_tests_and_tables() {
        let long = "\n".repeat(MAX_LINES + 1);
        assert!(too_long(Path::new("crates/a/src/b.rs"), &long).is_some());
        assert_eq!(too_long(Path::new("crates/a/src/b.rs"), &"\n".repeat(MAX_LINES)), None);
        assert_eq!(too_long(Path::new("crates/a/src/generated/b.rs"), &long), None);
        assert_eq!(too_long(Path::new("crates/a/tests/b.rs"), &long), None);
        assert_eq!(too_long(Path::new("crates/a/src/b/tests.rs"), &long), None);
        assert_eq!(too_long(Path::new("crates/a/src/b.rs"), &format!("mod tests {{\n{long}}}")), None);
    }
}
