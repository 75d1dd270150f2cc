//! Seeded bugs of a whole site, which only who looks at it from outside can notice: the suite of real processes must.
//!
//! They are switched on for a whole process, once, when it starts ([`crate::mutant`]'s are for a thread). Without the feature
//! `mutants` none of them can be, and [`on`] is a constant.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One seeded bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum SiteMutant { $($(#[$doc])* $name,)* }

        impl SiteMutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

mutants! {
    /// A write is acknowledged long before it is flushed.
    AckBeforeFlush,
    /// The store says that it has flushed, and has not.
    FlushSkipped,
    /// A deletion is acknowledged, and forgotten.
    DeleteForgotten,
    /// Reads are answered from a view that is seconds old.
    StaleRead,
    /// A request's frontier is not waited for.
    FrontierIgnored,
    /// A revoked token works on.
    RevocationIgnored,
    /// A request waits until every other site can be reached.
    AsksEverybody,
    /// A domain is left running when its server is deleted.
    DomainLeft,
    /// An image that came damaged from another site is stored and used.
    ImageUnchecked,
}

impl SiteMutant {
    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| format!("{mutant:?}") == name)
    }
}

/// Whether a seeded bug is switched on.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn on(_: SiteMutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switch::{on, set};

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::SiteMutant;

    /// 0 for none.
    static ON: AtomicU8 = AtomicU8::new(0);

    /// Whether a seeded bug is switched on, in this process.
    #[must_use]
    pub fn on(mutant: SiteMutant) -> bool {
        ON.load(Ordering::Relaxed) == mutant as u8 + 1
    }

    /// Switches one on, in this process.
    pub fn set(mutant: SiteMutant) {
        ON.store(mutant as u8 + 1, Ordering::Relaxed);
    }
}
