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
    /// A request waits for every other site, and long for one that says nothing.
    AsksEverybody,
    /// A domain is left running when its server is deleted.
    DomainLeft,
    /// An image that came damaged from another site is stored and used.
    ImageUnchecked,
    /// An image's data stay where they were uploaded: other sites say that they are out of reach.
    ImageUnfetched,
    /// Hosts are filled beyond what they have: neither scheduler nor ledger looks at the rights to them.
    HostOverbooked,
    /// A claim of addresses leaves them free.
    AddressTwice,
    /// What is in use of a quota counts the own claims only.
    UsageOfOwn,
    /// A creation that has succeeded is tried once more.
    RequestTwice,
    /// A list shows its first element twice.
    ListedTwice,
    /// A metadata item is written under its neighbour's key too.
    MetadataMixed,
    /// Metadata are written as they were seconds ago, but for what is changed.
    StaleWrite,
    /// Changes that others make to servers are forgotten.
    ChangeSkipped,
    /// Every third observation of a server is forgotten.
    ObservationLost,
    /// What peers lack of what they were not pushed is not sent.
    HolesKept,
    /// What ends a token is forgotten after seconds.
    TokenForgiven,
    /// Tokens that another site has issued are refused.
    ForeignTokenRefused,
    /// Of several users of one name, each site takes its own.
    OwnNameFirst,
    /// A replica whose certificate was revoked is talked to as before.
    CertificateKept,
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
