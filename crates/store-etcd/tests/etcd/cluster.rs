//! Real etcd members on loopback, ended with the value that stands for them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use store::Store;
use store_etcd::{EtcdOptions, EtcdStore};
use tempfile::TempDir;

pub(crate) struct Cluster {
    members: Vec<Child>,
    commands: Vec<Command>,
    clients: Vec<String>,
    files: Option<TlsFiles>,
    _dir: TempDir,
}

/// A CA, and one certificate of it for servers and clients alike.
#[derive(Clone)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Cluster {
    /// Starts members and waits until they answer.
    pub(crate) async fn start(members: usize, tls: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = tls.then(|| TlsFiles::make(dir.path()));
        let scheme = if tls { "https" } else { "http" };
        let ports = free_ports(2 * members);
        let url = |port: &u16| format!("{scheme}://127.0.0.1:{port}");
        let clients: Vec<_> = ports[..members].iter().map(url).collect();
        let peers: Vec<_> = ports[members..].iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let initial: Vec<_> = peers.iter().enumerate().map(|(n, peer)| format!("m{n}={peer}")).collect();
        let initial = initial.join(",");
        let command = |number: usize| {
            let mut command = Command::new("etcd");
            let (client, peer) = (&clients[number], &peers[number]);
            command
                .arg(format!("--name=m{number}"))
                .arg("--data-dir")
                .arg(dir.path().join(format!("m{number}")))
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(["--initial-cluster", &initial, "--logger=zap", "--log-level=panic"])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if let Some(files) = &files {
                command.arg("--client-cert-auth");
                command.arg("--trusted-ca-file").arg(&files.ca);
                command.arg("--cert-file").arg(&files.cert).arg("--key-file").arg(&files.key);
            }
            command
        };
        let mut commands: Vec<_> = (0..members).map(command).collect();
        let members = commands.iter_mut().map(spawn).collect();
        let cluster = Self { members, commands, clients, files, _dir: dir };
        cluster.wait().await;
        cluster
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        let files = self.files.clone();
        EtcdOptions {
            endpoints: self.clients.clone(),
            ca_file: files.as_ref().map(|files| files.ca.clone()),
            cert_file: files.as_ref().map(|files| files.cert.clone()),
            key_file: files.map(|files| files.key),
            prefix: String::new(),
        }
    }

    pub(crate) async fn store(&self) -> EtcdStore {
        EtcdStore::connect(self.options()).await.expect("the options are right")
    }

    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].kill().expect("the member is killed");
        self.members[member].wait().expect("the member has ended");
    }

    pub(crate) fn restart(&mut self, member: usize) {
        self.members[member] = spawn(&mut self.commands[member]);
    }

    async fn wait(&self) {
        let store = self.store().await;
        let ready = async {
            while store.revision().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ready).await.expect("etcd answers in time");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if member.kill().is_ok() {
                member.wait().expect("the member has ended");
            }
        }
    }
}

impl TlsFiles {
    fn make(dir: &Path) -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "etcd-ca");
        let ca_key = KeyPair::generate().expect("a key is made");
        let ca = CertifiedIssuer::self_signed(ca, ca_key).expect("a CA is made");
        let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("the name is right");
        leaf.distinguished_name.push(DnType::CommonName, "etcd");
        let key = KeyPair::generate().expect("a key is made");
        let cert = leaf.signed_by(&key, &ca).expect("a certificate is made");
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("the file is written");
            path
        };
        Self {
            ca: write("ca.crt", ca.pem()),
            cert: write("etcd.crt", cert.pem()),
            key: write("etcd.key", key.serialize_pem()),
        }
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().expect("etcd starts: it is in Debian's etcd-server")
}

/// Ports nobody uses: all are held until the last one is known.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port is free")).collect();
    held.iter().map(|listener| listener.local_addr().expect("it has an address").port()).collect()
}
