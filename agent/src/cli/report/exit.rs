//! Exit codes, and which of two counts.

/// What the process returns. The numbers are promised to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything was done, exactly.
    Exact = 0,
    /// Nothing was done or committed.
    Failed = 1,
    /// The command line or the configuration makes no sense.
    Usage = 2,
    /// Done, with defects that were listed.
    Defects = 3,
    /// The server cannot be reached.
    Unreachable = 10,
    /// There is no such volume or snapshot.
    NotFound = 11,
    /// Not authorised, or a wrong or missing key.
    NotAuthorised = 12,
    /// Damage was found in stored data.
    Damage = 13,
    /// The server's history was rolled back.
    RolledBack = 14,
    /// A hook failed.
    Hook = 20,
    /// No space is left, or the quota is used up.
    NoSpace = 21,
    /// A container could not be restarted.
    Container = 22,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl Exit {
    /// The meaning of `code`, if vsync ever returns it.
    #[must_use]
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        const ALL: [Exit; 13] = [
            Exit::Exact,
            Exit::Failed,
            Exit::Usage,
            Exit::Defects,
            Exit::Unreachable,
            Exit::NotFound,
            Exit::NotAuthorised,
            Exit::Damage,
            Exit::RolledBack,
            Exit::Hook,
            Exit::NoSpace,
            Exit::Container,
            Exit::Interrupted,
        ];
        ALL.into_iter().find(|exit| *exit as u8 == code)
    }

    /// Whether all was done that could be.
    #[must_use]
    pub(crate) const fn is_done(self) -> bool {
        matches!(self, Self::Exact | Self::Defects)
    }

    /// Of two things that happened, the one to be told.
    #[must_use]
    pub(crate) fn graver(self, other: Self) -> Self {
        if other.gravity() > self.gravity() { other } else { self }
    }

    /// From what is well to what cannot wait: an application that is down, before all that is wrong with backups.
    const fn gravity(self) -> u8 {
        match self {
            Self::Exact => 0,
            Self::Defects => 1,
            Self::Hook => 2,
            Self::NotFound => 3,
            Self::Usage => 4,
            Self::Failed => 5,
            Self::Unreachable => 6,
            Self::NoSpace => 7,
            Self::NotAuthorised => 8,
            Self::RolledBack => 9,
            Self::Damage => 10,
            Self::Interrupted => 11,
            Self::Container => 12,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_as_documented() {
        for (exit, code) in [
            (Exit::Exact, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::Defects, 3),
            (Exit::Unreachable, 10),
            (Exit::NotFound, 11),
            (Exit::NotAuthorised, 12),
            (Exit::Damage, 13),
            (Exit::RolledBack, 14),
            (Exit::Hook, 20),
            (Exit::NoSpace, 21),
            (Exit::Container, 22),
            (Exit::Interrupted, 130),
        ] {
            assert_eq!(exit as u8, code, "{exit:?}");
        }
    }

    #[test]
    fn the_gravest_of_several_codes_is_returned() {
        for (one, other, gravest) in [
            (Exit::Exact, Exit::Defects, Exit::Defects),
            (Exit::Container, Exit::Defects, Exit::Container),
            (Exit::Defects, Exit::Unreachable, Exit::Unreachable),
            (Exit::Hook, Exit::Failed, Exit::Failed),
            (Exit::NoSpace, Exit::Damage, Exit::Damage),
            (Exit::Interrupted, Exit::Container, Exit::Container),
        ] {
            assert_eq!((one.graver(other), other.graver(one)), (gravest, gravest));
        }
    }
}
