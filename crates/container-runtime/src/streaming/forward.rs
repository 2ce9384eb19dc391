//! Connections to the ports of a pod, made in its network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::error::RuntimeError;
use crate::runtime::Runtime;

/// How long a process in the pod may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to a port of a pod's loopback interface.
pub(crate) async fn connect_in_namespace(
    runtime: &Runtime,
    sandbox: &str,
    port: u16,
) -> Result<TcpStream, RuntimeError> {
    let sandbox = runtime.find_sandbox(sandbox)?;
    let record = sandbox.record();
    if !record.live.ready {
        let message = format!("sandbox {:?} is not running", record.id);
        return Err(RuntimeError::Precondition { message });
    }
    let holder = record.live.holder;
    let (sender, receiver) = oneshot::channel();
    // A thread's network namespace is its own; this one does nothing else and ends.
    let spawned = std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        // Whoever asked may be gone.
        drop(sender.send(connect(holder, port)));
    });
    let failed = RuntimeError::file("connect to port", port.to_string());
    spawned.map_err(RuntimeError::file("start a thread for port", port.to_string()))?;
    let stream = receiver.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
    stream.and_then(TcpStream::from_std).map_err(failed)
}

fn connect(holder: i32, port: u16) -> io::Result<std::net::TcpStream> {
    let namespace = File::open(format!("/proc/{holder}/ns/net"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut failure = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in addresses {
        match std::net::TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
