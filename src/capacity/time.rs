//! Time as an argument: [`Moment`].
//!
//! Owns its arithmetic only. The shells read the clock.

use std::time::Duration;

/// A point in time: milliseconds since 1970-01-01 UTC, by the clock of the component that recorded it.
///
/// The clocks of two replicas of the server differ: see [`Patience`](crate::capacity::node::reservation::Patience).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub i64);

impl Moment {
    /// The moment that is later by `duration`; it saturates at the end of the range.
    #[must_use]
    pub fn after(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The moment that is earlier by `duration`; it saturates at the end of the range.
    #[must_use]
    pub fn before(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from this moment to a later one; zero if the other one is earlier.
    #[must_use]
    pub fn until(self, later: Moment) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}
