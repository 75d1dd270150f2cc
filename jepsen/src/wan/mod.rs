//! A wide-area network for any program: sites are network namespaces, joined by a switch in user space that delays, loses,
//! doubles, reorders and cuts, for each pair of sites and each direction (`docs/wan.md`).
//!
//! [`mod@line`] and [`switch`] decide, from the seed, the time and the frames alone: no clock, socket or thread. [`command`] is
//! what people say, and [`device`] and [`site`] what touches the kernel.

pub mod command;
pub mod device;
pub mod line;
pub mod run;
pub mod site;
pub mod switch;
pub mod up;
