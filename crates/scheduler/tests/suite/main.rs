//! The scheduler's decisions by table, and the whole of it against an API.

mod api;
mod configuration;
mod decisions;
mod devices;
mod fixture;
mod preemption;
mod queue;
mod running;
