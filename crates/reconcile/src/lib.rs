//! What every component that watches and acts is made of: shared informers with indexes, a deduplicating
//! work queue, the controller loop, a supervisor, events, leader election and the clock.
//!
//! It must never know a kind's behaviour: that belongs to the component. Start reading at [`informer`],
//! then [`queue`] and [`controller`].

pub mod backoff;
pub mod clock;
pub mod controller;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod leader;
pub mod object;
pub mod queue;
mod reflector;
pub mod supervisor;

pub use clock::{Clock, SharedClock};
pub use controller::{Action, Controller, ReconcileError, Reconciler};
pub use informer::{Informer, InformerEvent, Informers, Subscription};
pub use object::{chain, key_of};
pub use queue::Queue;
