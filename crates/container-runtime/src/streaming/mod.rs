//! Exec, attach and port-forward for clients that stream: URLs good for one use, served on loopback.
//!
//! A kubelet asks for a URL and passes its client's connection on to it. The client upgrades that to WebSocket
//! (`v4.channel.k8s.io`, `v5.channel.k8s.io`) or to SPDY/3.1 (`v4.channel.k8s.io`, `portforward.k8s.io`).

mod forward;
mod server;
mod session;
mod spdy;
mod spdy_session;
mod websocket;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use forward::connect_in_namespace;
pub(crate) use server::{bind, serve};
pub(crate) use session::exec_sync;

use crate::error::RuntimeError;

/// How long a URL waits for its use, and how many wait.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
const MAX_TOKENS: usize = 1000;

/// What a URL stands for.
#[derive(Clone, Debug)]
pub(crate) enum StreamRequest {
    Exec { container: String, args: Vec<String>, io: Io },
    Attach { container: String, io: Io },
    PortForward { sandbox: String, ports: Vec<u16> },
}

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Io {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// The URLs that were given out.
#[derive(Debug)]
pub(crate) struct Tokens {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Instant, StreamRequest)>>,
}

impl Tokens {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, waiting: Mutex::default() }
    }

    /// Makes a URL for a request.
    pub(crate) fn issue(&self, request: StreamRequest) -> Result<String, RuntimeError> {
        let kind = match request {
            StreamRequest::Exec { .. } => "exec",
            StreamRequest::Attach { .. } => "attach",
            StreamRequest::PortForward { .. } => "portforward",
        };
        let token = hex::encode(rand::random::<[u8; 16]>());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (issued, _)| issued.elapsed() < TOKEN_LIFETIME);
        if waiting.len() >= MAX_TOKENS {
            return Err(RuntimeError::Precondition {
                message: "too many streams wait to be used".to_owned(),
            });
        }
        waiting.insert(token.clone(), (Instant::now(), request));
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }

    /// Takes the request of a URL, once.
    fn redeem(&self, token: &str) -> Option<StreamRequest> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (issued, request) = waiting.remove(token)?;
        (issued.elapsed() < TOKEN_LIFETIME).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_good_for_one_use() {
        let tokens = Tokens::new(SocketAddr::from(([127, 0, 0, 1], 1)));
        let request = StreamRequest::PortForward { sandbox: "s".into(), ports: vec![80] };
        let url = tokens.issue(request).unwrap();
        let token = url.rsplit('/').next().unwrap();
        assert!(url.starts_with("http://127.0.0.1:1/portforward/"));
        assert!(tokens.redeem(token).is_some() && tokens.redeem(token).is_none());
    }
}
