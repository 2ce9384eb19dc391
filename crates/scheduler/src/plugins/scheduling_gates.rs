//! Pods with scheduling gates stay out of the queue (KEP-3521).

use crate::framework::{Plugin, Point};
use crate::pod::PodInfo;

#[derive(Debug)]
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreEnqueue]
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), String> {
        if pod.gates.is_empty() {
            return Ok(());
        }
        Err(format!("waiting for scheduling gates: [{}]", pod.gates.join(" ")))
    }
}
