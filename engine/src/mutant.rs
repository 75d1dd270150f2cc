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
    /// A grant counts before the receiver has seen it.
    GrantUnseen,
    /// Accounts are judged by what the receiver holds, not by the entry's past.
    JudgedByReceiver,
    /// A host claim is released without its agent's word.
    ReleaseWithoutWord,
    /// Whoever asks releases a claim.
    ReleaseByAnybody,
    /// A release gives its amount back twice.
    ReleaseTwice,
    /// A grant arrives twice.
    TransferTwice,
    /// A grant is not taken from who gives it.
    GrantKept,
    /// An entry is applied though its author's entries before it are missing.
    GapAccepted,
    /// An entry is applied before what its author had seen.
    PastIgnored,
    /// Of two observations the one that came last is shown.
    ObservationOrder,
    /// What was deleted comes back with a change that was made apart.
    DeleteLosesToUpdate,
    /// A deleted record leaves no tombstone.
    TombstoneDropped,
    /// A deletion takes a running server away at once.
    KeptIgnored,
    /// The quota and the host are claimed by two entries.
    ClaimsSplit,
    /// Of two bindings of one name the one that came last stands.
    NameByArrival,
    /// A survivor takes what it has sealed not to take.
    SealIgnored,
    /// A retirement takes effect with the first seal.
    OwnSealOnly,
    /// The lowest seal is the cut.
    LowestSeal,
    /// The lines of an account are not written with its entry.
    AccountUnwritten,
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
