//! The vocabulary every other crate shares: names, group/version/kind, quantities, selectors, times,
//! `Status` and field errors. No I/O, no clock, no async. Start reading at [`names`].

pub mod content;
pub mod field;
pub mod intstr;
pub mod names;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod time;
