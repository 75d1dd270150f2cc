//! The consistency suite: the deterministic simulator, the WAN emulator, the suite of workloads, faults and checkers that
//! looks at real clouds from outside, and (in `src/bin`) the benchmarks.

#[cfg(feature = "suite")]
pub mod check;
#[cfg(feature = "suite")]
pub mod client;
#[cfg(feature = "suite")]
pub mod cluster;
#[cfg(feature = "suite")]
pub mod edn;
#[cfg(feature = "suite")]
pub mod history;
#[cfg(feature = "suite")]
pub mod nemesis;
pub mod parts;
#[cfg(feature = "suite")]
pub mod prove;
#[cfg(feature = "suite")]
pub mod report;
#[cfg(feature = "suite")]
pub mod run;
#[cfg(feature = "suite")]
pub mod runner;
pub mod sim;
#[cfg(feature = "wan")]
pub mod wan;
#[cfg(feature = "suite")]
pub mod workload;

#[cfg(feature = "memo")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
