//! Claims and volumes: binding, protection from deletion, and claims that live with their pod.

pub(super) mod binder;
pub(super) mod ephemeral;
mod matching;
pub(super) mod protection;
