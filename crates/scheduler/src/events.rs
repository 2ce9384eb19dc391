//! What can happen in the cluster that may make a waiting pod schedulable.

use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::NodeChange;

/// Something that changed outside the queue.
#[derive(Debug, Clone, Copy)]
pub enum ClusterEvent<'a> {
    Node {
        node: &'a NodeInfo,
        change: NodeChange,
    },
    /// A pod came to its node (or its labels changed there).
    PodAssigned(&'a PodInfo),
    /// A pod left its node, finished, or asks for less.
    PodReleased(&'a PodInfo),
    Namespace(&'a str),
    Storage(StorageEvent),
    Devices(DeviceEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageEvent {
    Claim,
    Volume,
    Class,
    CsiNode,
    CsiDriver,
    Capacity,
    Attachment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEvent {
    Claim,
    Slice,
    Class,
}
