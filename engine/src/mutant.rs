//! Seeded bugs: what the simulator must notice. Without the feature `mutants` none of them can be switched on, and
//! [`on`] is a constant.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One seeded bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

mutants! {
    /// Claims, grants and burns are not held against the author's account.
    RightsUnchecked,
    /// The driver answers before the flush.
    FlushSkipped,
    /// The driver sends before the flush.
    PushedBeforeFlush,
    /// A host claim is released without its agent's word.
    ReleaseWithoutWord,
    /// A release gives its amount back twice.
    ReleaseTwice,
    /// A grant arrives twice.
    TransferTwice,
    /// A deleted record leaves no tombstone.
    TombstoneDropped,
    /// The quota and the host are claimed by two entries.
    ClaimsSplit,
}

/// Whether a seeded bug is switched on.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn on(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switches::{on, set};

#[cfg(feature = "mutants")]
mod switches {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether a seeded bug is switched on, in this thread.
    #[must_use]
    pub fn on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }

    /// Switches one on in this thread, or all off.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }
}
