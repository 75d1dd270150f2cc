//! The consistency suite: the deterministic simulator, and (in `src/bin`) the benchmarks.

pub mod sim;
