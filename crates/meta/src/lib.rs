//! The vocabulary every other crate shares: names, group/version/kind, quantities, selectors, times,
//! `Status` and field errors. No I/O, no clock, no async. Start reading at [`names`].

pub mod field;
pub mod names;
pub mod status;
