//! What the runtime wants of a pod network. Others provide it: CNI plugins, or the built-in bridge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

/// Why a pod's network could not be set up, checked or taken down.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NetworkError {
    /// What failed, in the provider's words.
    pub message: String,
    /// Why.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl NetworkError {
    /// An error without a further cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }
}

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Its protocol.
    pub protocol: PortProtocol,
    /// The pod's port.
    pub container_port: u16,
    /// The node's port.
    pub host_port: u16,
    /// The node's address; empty means all of them.
    pub host_ip: String,
}

/// A pod whose network is wanted.
#[derive(Clone, Debug, Default)]
pub struct PodNetworkRequest {
    /// The sandbox, as CNI's container id.
    pub sandbox_id: String,
    /// The network namespace, loopback up. Empty where the pod's process is gone.
    pub netns: PathBuf,
    /// The pod.
    pub pod_namespace: String,
    /// The pod.
    pub pod_name: String,
    /// The pod.
    pub pod_uid: String,
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// The pod's annotations, bandwidth limits among them.
    pub annotations: BTreeMap<String, String>,
}

/// Sets up the networks of pods that are not on the node's own.
#[async_trait]
pub trait PodNetwork: Send + Sync + std::fmt::Debug {
    /// Gives the pod its interfaces. Answers its addresses, the primary one first.
    async fn add(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError>;

    /// Takes them away. Succeeds where there is nothing left to take.
    async fn del(&self, request: &PodNetworkRequest) -> Result<(), NetworkError>;

    /// Whether the pod's network is still as it was made.
    async fn check(&self, request: &PodNetworkRequest) -> Result<(), NetworkError>;

    /// Why pods cannot have a network now: what makes the node's `NetworkReady` false.
    fn not_ready(&self) -> Option<String>;
}

/// Pods have a loopback interface only.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopbackNetwork;

#[async_trait]
impl PodNetwork for LoopbackNetwork {
    async fn add(&self, _: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError> {
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }

    async fn del(&self, _: &PodNetworkRequest) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn check(&self, _: &PodNetworkRequest) -> Result<(), NetworkError> {
        Ok(())
    }

    fn not_ready(&self) -> Option<String> {
        None
    }
}
