//! The server under the store's own suite, through etcd's client, and under `etcdctl` from Debian's etcd-client.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use etcd::{Flags, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use store::suite::Fixture;
use store::{Store, store_suite};
use store_embedded::EmbeddedStore;
use store_etcd::{EtcdOptions, EtcdStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Etcd {
    endpoint: String,
    addresses: Vec<SocketAddr>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    dir: TempDir,
}

impl Etcd {
    async fn start(scheme: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::start_in(dir, scheme, more).await
    }

    async fn start_in(dir: TempDir, scheme: &str, more: &[&str]) -> Self {
        let data_dir = dir.path().join("data");
        let listen = format!("{scheme}://127.0.0.1:0");
        let fixed =
            ["etcd", "--data-dir", data_dir.to_str().expect("a text"), "--listen-client-urls", &listen];
        let flags = Flags::parse_from(fixed.iter().chain(more));
        let server = Server::bind(flags).await.expect("the server starts");
        let addresses = server.addresses().expect("it has addresses");
        let shutdown = CancellationToken::new();
        let serve = server.serve(shutdown.clone());
        let server = tokio::spawn(async move { serve.await.expect("the server serves") });
        Self { endpoint: format!("{scheme}://{}", addresses[0]), addresses, shutdown, server, dir }
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.server.await.expect("the server ends");
        self.dir
    }

    /// The address alone: `etcdctl` before 3.5 sends a scheme along as the name of the host in some of its calls,
    /// which the HTTP/2 server takes for the malformed header it is.
    fn host(&self) -> &str {
        self.endpoint.split_once("://").map_or(&self.endpoint, |(_, host)| host)
    }

    /// Runs `etcdctl` and answers what it printed.
    async fn ctl(&self, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", self.host()]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().expect("etcdctl starts: it is in Debian's etcd-client");
            child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
            child.wait_with_output().expect("it ends")
        });
        let output = output.await.expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            text
        } else {
            format!("{text}{errors}exit {}", output.status.code().unwrap_or(-1))
        }
    }

    async fn check(&self, command: &str, expected: &str) {
        let arguments: Vec<_> = command.split(' ').collect();
        assert_eq!(self.ctl(&arguments, "").await.trim_end(), expected, "etcdctl {command}");
    }
}

struct Served {
    store: Arc<EtcdStore>,
    _etcd: Etcd,
}

impl Fixture for Served {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }
}

async fn served() -> Served {
    let etcd = Etcd::start("http", &[]).await;
    let options = EtcdOptions { endpoints: vec![etcd.endpoint.clone()], ..EtcdOptions::default() };
    let store = EtcdStore::connect(options).await.expect("the options are right");
    Served { store: Arc::new(store), _etcd: etcd }
}

store_suite!(served_suite, served);

#[tokio::test]
async fn keys_are_put_read_and_deleted() {
    let etcd = Etcd::start("http", &[]).await;
    for (command, expected) in [
        ("put a 1", "OK"),
        ("put b 2", "OK"),
        ("put a 3", "OK"),
        ("get a", "a\n3"),
        ("get a --rev=2", "a\n1"),
        ("get a c --keys-only", "a\n\nb"),
        ("get --from-key b", "b\n2"),
        ("get a z --order=DESCEND --sort-by=MODIFY --print-value-only", "3\n2"),
        ("get a z --order=DESCEND --sort-by=KEY --limit=1", "b\n2"),
        ("put --prev-kv a 4", "OK\na\n3"),
        ("put --ignore-value a", "OK"),
        ("get nothing", ""),
        ("del b --prev-kv", "1\nb\n2"),
        ("del b", "0"),
        ("compaction 4", "compacted revision 4"),
    ] {
        etcd.check(command, expected).await;
    }
    let compacted = etcd.ctl(&["get", "a", "--rev=2"], "").await;
    assert!(compacted.contains("etcdserver: mvcc: required revision has been compacted"), "{compacted}");
    let future = etcd.ctl(&["get", "a", "--rev=99"], "").await;
    assert!(future.contains("etcdserver: mvcc: required revision is a future revision"), "{future}");
}

#[tokio::test]
async fn a_transaction_takes_one_of_its_branches() {
    let etcd = Etcd::start("http", &[]).await;
    etcd.check("put a 1", "OK").await;
    let txn = "value(\"a\") = \"1\"\nversion(\"b\") = \"0\"\n\nput a 2\nput b 2\nget a\n\nget a\ndel b\n\n";
    assert_eq!(etcd.ctl(&["txn"], txn).await, "SUCCESS\n\nOK\n\nOK\n\na\n2\n");
    assert_eq!(etcd.ctl(&["txn"], txn).await, "FAILURE\n\na\n2\n\n1\n");
    let twice = etcd.ctl(&["txn"], "\nput a 1\nput a 2\n\n\n").await;
    assert!(twice.contains("etcdserver: duplicate key given in txn request"), "{twice}");
}

#[tokio::test]
async fn a_watch_prints_events() {
    let etcd = Etcd::start("http", &[]).await;
    for command in ["put a 1", "put a 2"] {
        etcd.check(command, "OK").await;
    }
    etcd.check("del a", "1").await;
    let mut command = Command::new("timeout");
    command.args(["3", "etcdctl", "--endpoints", etcd.host(), "watch", "--prev-kv", "--rev=2", "a"]);
    let output = tokio::task::spawn_blocking(move || command.env("ETCDCTL_API", "3").output());
    let output = output.await.expect("it ends").expect("etcdctl starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "PUT\na\n1\nPUT\na\n1\na\n2\nDELETE\na\n2\na\n\n");
}

#[tokio::test]
async fn leases_are_granted_and_end() {
    let etcd = Etcd::start("http", &[]).await;
    etcd.check("lease list", "found 0 leases").await;
    let granted = etcd.ctl(&["lease", "grant", "300"], "").await;
    let id = granted.split(' ').nth(1).expect("an id").to_owned();
    assert_eq!(granted.trim_end(), format!("lease {id} granted with TTL(300s)"));
    etcd.check(&format!("put --lease={id} a 1"), "OK").await;
    etcd.check("lease list", &format!("found 1 leases\n{id}")).await;
    let left = etcd.ctl(&["lease", "timetolive", "--keys", &id], "").await;
    assert!(left.starts_with(&format!("lease {id} granted with TTL(300s), remaining(")), "{left}");
    assert!(left.trim_end().ends_with("attached keys([a])"), "{left}");
    etcd.check(&format!("lease keep-alive --once {id}"), &format!("lease {id} keepalived with TTL(300)"))
        .await;
    etcd.check(&format!("lease revoke {id}"), &format!("lease {id} revoked")).await;
    etcd.check("get a", "").await;
    let gone = etcd.ctl(&["put", "--lease=1234", "a", "1"], "").await;
    assert!(gone.contains("etcdserver: requested lease not found"), "{gone}");
}

#[tokio::test]
async fn the_member_tells_about_itself() {
    let etcd = Etcd::start("http", &["--name", "one"]).await;
    etcd.check("put a 1", "OK").await;
    let health = etcd.ctl(&["endpoint", "health", "--write-out=json"], "").await;
    assert!(health.contains("\"health\":true"), "{health}");
    let status = etcd.ctl(&["endpoint", "status", "--write-out=fields"], "").await;
    for line in ["\"Revision\" : 2", "\"Version\" : \"3.5.21\"", "\"RaftTerm\" : 1"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let members = etcd.ctl(&["member", "list"], "").await;
    assert!(
        members.contains(", started, one, http://localhost:2380, http://localhost:2379, false"),
        "{members}"
    );
    etcd.check("alarm list", "").await;
    let hash = etcd.ctl(&["endpoint", "hashkv"], "").await;
    assert!(hash.starts_with(etcd.host()), "{hash}");
    let auth = etcd.ctl(&["user", "list"], "").await;
    assert!(auth.contains("authentication is not enabled"), "{auth}");
    let alone = etcd.ctl(&["member", "add", "two", "--peer-urls=http://127.0.0.1:1"], "").await;
    assert!(alone.contains("one member"), "{alone}");
    let again = etcd.ctl(&["member", "list"], "").await;
    assert_eq!(members, again);
}

#[tokio::test]
async fn a_saved_snapshot_can_be_restored() {
    let etcd = Etcd::start("http", &[]).await;
    for number in 0..50 {
        etcd.check(&format!("put key-{number} {number}"), "OK").await;
    }
    let path = etcd.dir.path().join("saved");
    let name = path.to_str().expect("a text");
    let saved = etcd.ctl(&["snapshot", "save", name], "").await;
    assert!(saved.contains("Snapshot saved at"), "{saved}");
    let length = std::fs::metadata(&path).expect("it was saved").len();
    assert_eq!(length % 512, 32, "clients see by the length that a checksum is there");

    let dir = etcd.stop().await;
    let restored = tempfile::tempdir().expect("a temporary directory");
    EmbeddedStore::restore(dir.path().join("saved"), restored.path().join("data")).expect("it is restored");
    let etcd = Etcd::start_in(restored, "http", &[]).await;
    etcd.check("get key-49 --print-value-only", "49").await;
    let status = etcd.ctl(&["endpoint", "status", "--write-out=fields"], "").await;
    assert!(status.contains("\"Revision\" : 51"), "{status}");
}

#[tokio::test]
async fn a_restart_keeps_the_keys() {
    let etcd = Etcd::start("http", &[]).await;
    etcd.check("put a 1", "OK").await;
    let dir = tokio::time::timeout(Duration::from_secs(20), etcd.stop()).await.expect("it stops in time");
    let etcd = Etcd::start_in(dir, "http", &[]).await;
    etcd.check("get a", "a\n1").await;
}

#[tokio::test]
async fn health_is_told_apart_from_the_store() {
    let etcd = Etcd::start("http", &["--listen-metrics-urls=http://127.0.0.1:0"]).await;
    let health = |path: &'static str| {
        let address = etcd.addresses[1];
        async move {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            let request = format!("GET {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("it is sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("it answers");
            text
        }
    };
    for (path, expected) in [("/health", "\"health\":\"true\""), ("/readyz", "ok"), ("/version", "3.5.21")] {
        let text = health(path).await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains(expected), "{path}: {text}");
    }
    let address = etcd.addresses[1].to_string();
    let other = Etcd { endpoint: format!("http://{address}"), ..etcd };
    let text = other.ctl(&["--command-timeout=2s", "get", "a"], "").await;
    assert!(text.contains("exit "), "the store is not to be had there: {text}");
}

#[tokio::test]
async fn clients_show_their_certificate() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = Files::make(dir.path());
    let flags = [
        "--cert-file",
        &files.cert,
        "--key-file",
        &files.key,
        "--trusted-ca-file",
        &files.ca,
        "--client-cert-auth",
    ];
    let etcd = Etcd::start("https", &flags).await;
    let with = ["--cacert", &files.ca, "--cert", &files.cert, "--key", &files.key, "put", "a", "1"];
    assert_eq!(etcd.ctl(&with, "").await, "OK\n");
    let without = etcd.ctl(&["--cacert", &files.ca, "--command-timeout=2s", "put", "a", "1"], "").await;
    assert!(without.contains("exit "), "{without}");
}

struct Files {
    ca: String,
    cert: String,
    key: String,
}

impl Files {
    fn make(dir: &Path) -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let cert = leaf.signed_by(&key, &ca).expect("a certificate");
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("the file is written");
            path.to_str().expect("a text").to_owned()
        };
        Self {
            ca: write("ca.crt", ca.pem()),
            cert: write("etcd.crt", cert.pem()),
            key: write("etcd.key", key.serialize_pem()),
        }
    }
}
