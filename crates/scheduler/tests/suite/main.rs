//! The scheduler's decisions, by table.

mod configuration;
mod decisions;
mod fixture;
mod preemption;
mod queue;
