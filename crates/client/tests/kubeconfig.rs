//! Kubeconfig files, read back by `kube` and by nobody else but their owner.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use client::kubeconfig::{Credentials, Entry, KubeconfigError, default_path, merge, remove, write};
use kube::config::Kubeconfig;
use tempfile::{TempDir, tempdir};

fn entry(name: &str, server: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        server: server.to_owned(),
        certificate_authority: b"-----BEGIN CERTIFICATE-----\n".repeat(40),
        credentials: Credentials::Certificate { certificate: b"cert".to_vec(), key: b"key".to_vec() },
        namespace: None,
    }
}

fn file() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a temporary directory");
    let path = dir.path().join("kube/config");
    (dir, path)
}

fn read(path: &Path) -> Kubeconfig {
    Kubeconfig::read_from(path).expect("it is a kubeconfig")
}

fn names(config: &Kubeconfig) -> [Vec<&str>; 3] {
    [
        config.clusters.iter().map(|item| item.name.as_str()).collect(),
        config.contexts.iter().map(|item| item.name.as_str()).collect(),
        config.auth_infos.iter().map(|item| item.name.as_str()).collect(),
    ]
}

#[test]
fn a_first_entry_makes_the_file() {
    let (_dir, path) = file();
    merge(&path, &entry("coracle", "https://127.0.0.1:6443")).expect("it is merged");
    let config = read(&path);
    assert_eq!(names(&config), [["coracle"], ["coracle"], ["coracle"]]);
    assert_eq!(config.current_context.as_deref(), Some("coracle"));
    let cluster = config.clusters[0].cluster.as_ref().expect("a cluster");
    assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:6443"));
    let mode = fs::metadata(&path).expect("the file is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let left: Vec<_> = fs::read_dir(path.parent().expect("a directory")).expect("it is read").collect();
    assert_eq!(left.len(), 1, "no lock and no temporary file is left");
}

#[test]
fn other_entries_and_unknown_fields_stay() {
    let (_dir, path) = file();
    fs::create_dir_all(path.parent().expect("a directory")).expect("it is made");
    let before = "apiVersion: v1\nkind: Config\npreferences:\n  colors: true\ncurrent-context: work\n\
        clusters:\n- name: work\n  cluster:\n    server: https://work:6443\n    new-field: \"0123\"\n\
        contexts:\n- name: work\n  context: {cluster: work, user: me, namespace: \"yes\"}\n\
        users:\n- name: me\n  user:\n    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: login\n      \
        args: [\"--flag\", \"on\"]\n";
    fs::write(&path, before).expect("it is written");
    for server in ["https://one:6443", "https://two:6443"] {
        merge(&path, &entry("coracle", server)).expect("it is merged");
    }
    let config = read(&path);
    assert_eq!(names(&config), [["work", "coracle"], ["work", "coracle"], ["me", "coracle"]]);
    let cluster = config.clusters[1].cluster.as_ref().expect("a cluster");
    assert_eq!(cluster.server.as_deref(), Some("https://two:6443"));
    let context = config.contexts[0].context.as_ref().expect("a context");
    assert_eq!(context.namespace.as_deref(), Some("yes"));
    let exec =
        config.auth_infos[0].auth_info.as_ref().and_then(|user| user.exec.as_ref()).expect("a command");
    assert_eq!(exec.args.as_deref(), Some(&["--flag".to_owned(), "on".to_owned()][..]));
    let text = fs::read_to_string(&path).expect("it is read");
    assert!(text.contains("colors: true"), "{text}");
    assert!(text.contains("new-field: \"0123\"") || text.contains("new-field: '0123'"), "{text}");

    remove(&path, "coracle").expect("it is removed");
    let config = read(&path);
    assert_eq!(names(&config), [["work"], ["work"], ["me"]]);
    assert_eq!(config.current_context.as_deref(), Some(""));
}

#[test]
fn a_file_of_its_own_holds_one_entry() {
    let (_dir, path) = file();
    merge(&path, &entry("other", "https://other:1")).expect("it is merged");
    let token = Entry {
        credentials: Credentials::Token("abc.def".to_owned()),
        namespace: Some("team".to_owned()),
        ..entry("coracle", "https://127.0.0.1:6443")
    };
    write(&path, &token).expect("it is written");
    let config = read(&path);
    assert_eq!(names(&config), [["coracle"], ["coracle"], ["coracle"]]);
    assert_eq!(
        config.contexts[0].context.as_ref().and_then(|context| context.namespace.as_deref()),
        Some("team")
    );
    assert!(!format!("{token:?}").contains("abc.def"), "a token is not printed");
}

#[test]
fn a_link_stays_a_link() {
    let (dir, path) = file();
    let target = dir.path().join("target");
    merge(&target, &entry("old", "https://old:1")).expect("it is merged");
    fs::create_dir_all(path.parent().expect("a directory")).expect("it is made");
    symlink(&target, &path).expect("it is linked");
    merge(&path, &entry("coracle", "https://new:1")).expect("it is merged");
    assert!(fs::symlink_metadata(&path).expect("it is there").is_symlink());
    assert_eq!(names(&read(&target))[0], ["old", "coracle"]);
}

#[test]
fn what_is_no_kubeconfig_is_left_alone() {
    for text in ["- a\n- b\n", "clusters: {a: b}\n", "a: [\n"] {
        let (_dir, path) = file();
        fs::create_dir_all(path.parent().expect("a directory")).expect("it is made");
        fs::write(&path, text).expect("it is written");
        let error = merge(&path, &entry("coracle", "https://new:1")).expect_err("it is refused");
        assert!(matches!(error, KubeconfigError::Shape { .. } | KubeconfigError::Parse { .. }), "{error:?}");
        assert_eq!(fs::read_to_string(&path).expect("it is read"), text);
    }
}

#[test]
fn two_writers_do_not_mix() {
    let (_dir, path) = file();
    merge(&path, &entry("coracle", "https://new:1")).expect("it is merged");
    fs::write(path.with_file_name("config.lock"), "").expect("it is locked");
    let error = merge(&path, &entry("coracle", "https://new:2")).expect_err("somebody writes");
    assert!(matches!(error, KubeconfigError::Locked { .. }), "{error:?}");
}

#[test]
fn the_default_file_is_the_first_that_is_named() {
    let home = Path::new("/home/me");
    let table = [
        (None, "/home/me/.kube/config"),
        (Some(""), "/home/me/.kube/config"),
        (Some("/a"), "/a"),
        (Some(":/a:/b"), "/a"),
    ];
    for (variable, expected) in table {
        assert_eq!(default_path(variable, home), Path::new(expected), "{variable:?}");
    }
}
