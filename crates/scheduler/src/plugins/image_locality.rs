//! Likes nodes that have the pod's images already, weighed by how common each image is.

use crate::framework::{MAX_NODE_SCORE, Plugin, Point, Score};
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

const MEBIBYTE: i64 = 1024 * 1024;
const MIN_THRESHOLD: i64 = 23 * MEBIBYTE;
const MAX_CONTAINER_THRESHOLD: i64 = 1_000 * MEBIBYTE;

#[derive(Debug)]
pub struct ImageLocality;

struct Locality<'s> {
    /// Each image with the share of nodes that have it.
    images: Vec<(&'s str, f64)>,
    max_threshold: i64,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Score]
    }

    fn pre_score<'s>(
        &'s self,
        snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        let total = snapshot.node_order().len().max(1) as f64;
        let images: Vec<(&str, f64)> = pod
            .spec
            .images
            .iter()
            .map(|image| (image.as_str(), f64::from(snapshot.nodes_with_image(image)) / total))
            .filter(|(_, share)| *share > 0.0)
            .collect();
        if images.is_empty() {
            return None;
        }
        let containers = i64::try_from(pod.spec.container_count.max(1)).unwrap_or(i64::MAX);
        Some(Box::new(Locality { images, max_threshold: MAX_CONTAINER_THRESHOLD.saturating_mul(containers) }))
    }
}

impl Score for Locality<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "sizes are far below 2^53")]
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut sum = 0_i64;
        for (image, share) in &self.images {
            if let Some((_, size)) = node.facts.images.iter().find(|(name, _)| name == image) {
                sum = sum.saturating_add((*size as f64 * share) as i64);
            }
        }
        let clamped = sum.clamp(MIN_THRESHOLD, self.max_threshold);
        MAX_NODE_SCORE * (clamped - MIN_THRESHOLD) / (self.max_threshold - MIN_THRESHOLD)
    }
}
