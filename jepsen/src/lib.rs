//! The consistency suite: the deterministic simulator, the WAN emulator, and (in `src/bin`) the benchmarks.

pub mod sim;
#[cfg(feature = "wan")]
pub mod wan;

#[cfg(feature = "memo")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
