//! The consistency suite: the deterministic simulator, and (in `src/bin`) the benchmarks.

pub mod sim;

#[cfg(feature = "memo")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
