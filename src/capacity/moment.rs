//! [`Moment`]: a point in time as an argument. Owns nothing but arithmetic; the clock is the shells'.

use std::time::Duration;

/// Milliseconds since 1970, by the clock of whoever says so. Replicas' clocks differ: see
/// [`Patience`](super::reservation::Patience).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub i64);

impl Moment {
    /// Later by that much.
    #[must_use]
    pub fn after(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Earlier by that much.
    #[must_use]
    pub fn before(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}
